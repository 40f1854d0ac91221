"""Addresses of the CDS Hooks API, as the specification spells them."""

from django.urls import path

from cds.hooks import views

urlpatterns = [
    path("cds-services", views.discovery, name="cds-services"),
    path("cds-services/<str:service_id>", views.call_service, name="cds-service"),
    path("cds-services/<str:service_id>/feedback", views.feedback, name="cds-feedback"),
]
