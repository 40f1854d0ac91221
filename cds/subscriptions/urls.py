"""The address that is given to FHIR servers as the endpoint of a Subscription."""

from django.urls import path

from cds.subscriptions import views

urlpatterns = [
    path("fhir/subscriptions/<uuid:subscription_id>", views.notified, name="subscription"),
    path(
        "fhir/subscriptions/<uuid:subscription_id>/<slug:resource_type>/<str:resource_id>",
        views.notified,
        name="subscription-resource",
    ),
]
