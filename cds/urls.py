"""Every address: the EHR's, the operator's, and the people's."""

from django.urls import URLPattern, URLResolver, include, path

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("django_prometheus.urls")),
    path("", include("cds.hooks.urls")),
    path("", include("web.urls")),
]
