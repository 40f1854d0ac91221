"""Every address: the EHR's, the operator's, and the people's."""

from django.urls import URLPattern, URLResolver, include, path

from cds import health, metrics, signing

urlpatterns: list[URLPattern | URLResolver] = [
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path(".well-known/jwks.json", signing.jwks, name="jwks"),
    path("metrics", metrics.metrics, name="metrics"),
    path("", include("cds.hooks.urls")),
    path("", include("cds.subscriptions.urls")),
    path("", include("web.urls")),
]

handler400 = "cds.hooks.endpoints.malformed"
handler500 = "web.views.faults.server_error"
