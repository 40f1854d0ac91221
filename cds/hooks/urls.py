"""Addresses of the CDS Hooks API, as the specification spells them; every other one below answers 404."""

from django.urls import path, re_path, register_converter
from django.urls.converters import StringConverter

from cds.hooks import endpoints, views


class ServiceId(StringConverter):
    """What stands in an address as it is; nothing else is an id, nor asked of the database."""

    regex = "[A-Za-z0-9._~-]{1,120}"


register_converter(ServiceId, "service_id")

urlpatterns = [
    path("cds-services", views.discovery, name="cds-services"),
    path("cds-services/<service_id:service_id>", views.call_service, name="cds-service"),
    path("cds-services/<service_id:service_id>/feedback", views.feedback, name="cds-feedback"),
    re_path("^cds-services/", endpoints.elsewhere, name="cds-elsewhere"),
]
