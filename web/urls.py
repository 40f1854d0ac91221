"""Every address of the screens. They carry random ids only: no name, no record number, no search word."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path

from web import launch
from web.views import (
    audit,
    entrance,
    live,
    model_card,
    models,
    monitoring,
    panel,
    pixels,
    responses,
    runs,
    sources,
    worklist,
)

urlpatterns: list[URLPattern | URLResolver] = [
    path("", entrance.home, name="home"),
    path("login", entrance.SignIn.as_view(), name="login"),
    path("logout", entrance.SignOut.as_view(), name="logout"),
    path("stay", entrance.stay, name="stay"),
    path("help", entrance.help_page, name="help"),
    path("events", live.events, name="events"),
    path("worklist", worklist.worklist, name="worklist"),
    path("worklist/rows/<uuid:patient_id>", worklist.row, name="worklist-row"),
    path("patients/<uuid:patient_id>/risk", panel.panel, name="panel"),
    path("patients/<uuid:patient_id>/risk/<str:part>", panel.part, name="panel-part"),
    path("patients/<uuid:patient_id>/rescore", responses.rescore, name="rescore"),
    path(
        "patients/<uuid:patient_id>/responses/<int:prediction_id>/<str:kind>",
        responses.respond,
        name="respond",
    ),
    path("patients/<uuid:patient_id>/responses/<uuid:response_id>/undo", responses.undo, name="undo"),
    path(
        "patients/<uuid:patient_id>/series/<uuid:series_id>/frames/<int:number>.png",
        pixels.frame,
        name="frame",
    ),
    path("patients/<uuid:patient_id>/heatmaps/<int:heat_map_id>.png", pixels.heat_map, name="heat-map"),
    path("models", models.registry, name="models"),
    path("models/rollback", models.rollback, name="rollback"),
    path("models/promotions/<uuid:promotion_id>/<str:answer>", models.decide, name="decide"),
    path("models/runs/new", runs.new, name="new-run"),
    path("models/runs/<uuid:run_id>", runs.run, name="run"),
    path("models/runs/<uuid:run_id>/progress", runs.progress, name="run-progress"),
    path("models/runs/<uuid:run_id>/cancel", runs.cancel, name="cancel-run"),
    path("models/<uuid:version_id>", models.model, name="model"),
    path("launch", launch.launch, name="smart-launch"),
    path("launch/callback", launch.callback, name="smart-callback"),
    path("launch/style.css", launch.style, name="smart-style"),
    path("models/<uuid:version_id>/card", model_card.card, name="model-card"),
    path("models/<uuid:version_id>/card.json", model_card.as_json, name="model-card-json"),
    path("models/<uuid:version_id>/card/<str:key>", model_card.attribute, name="card-attribute"),
    path("models/<uuid:version_id>/request", models.request_promotion, name="request-promotion"),
    path("sources", sources.listing, name="sources"),
    path("sources/<int:source_id>", sources.source, name="source"),
    path("sources/<int:source_id>/set-aside.csv", sources.set_aside, name="source-set-aside"),
    path("sources/<int:source_id>/<str:kind>", sources.act, name="source-act"),
    path("monitoring", monitoring.monitoring, name="monitoring"),
    path("audit", audit.events, name="audit"),
]
