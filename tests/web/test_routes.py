"""Every route, for every role: who gets in, who is told no, and who is not told that there is anything."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import URLPattern

from cds.audit.models import AuditEvent
from cds.hooks.models import HookClient
from cds.launch.models import SmartServer
from cds.risk.models import HeatMap, RiskPrediction
from cds.studies.models import Series
from tests.cds.sending import results
from tests.web.clinic import Clinic, ehrs
from web import urls

ROLES = ("", "clinician", "stranger", "admin", "approver", "nobody")
#                            ""   clinician stranger admin approver nobody
GET: dict[str, tuple[int, int, int, int, int, int]] = {
    "/":                    (302, 302, 302, 302, 302, 200),
    "/login":               (200, 302, 302, 302, 302, 302),
    "/login/hospital":      (400, 400, 400, 400, 400, 400),
    "/login/hospital/callback": (400, 400, 400, 400, 400, 400),
    "/help":                (200, 200, 200, 200, 200, 200),
    "/logout":              (405, 405, 405, 405, 405, 405),
    "/stay":                (405, 405, 405, 405, 405, 405),
    "/worklist":            (302, 200, 200, 403, 403, 403),
    "/worklist/rows/P":     (302, 200, 404, 403, 403, 403),
    "/patients/P/risk":     (302, 200, 404, 403, 403, 403),
    "/patients/P/risk/score":   (302, 200, 404, 403, 403, 403),
    "/patients/P/risk/imaging": (302, 200, 404, 403, 403, 403),
    "/patients/P/risk/act":     (302, 200, 404, 403, 403, 403),
    "/patients/P/risk/other":   (302, 404, 404, 404, 404, 404),
    "/patients/P/rescore":      (405, 405, 405, 405, 405, 405),
    "/patients/P/responses/N/acknowledge": (405, 405, 405, 405, 405, 405),
    "/patients/P/responses/U/undo":        (405, 405, 405, 405, 405, 405),
    "/patients/P/series/S/frames/0.png":   (302, 200, 404, 403, 403, 403),
    "/patients/P/series/S/frames/9.png":   (302, 404, 404, 403, 403, 403),
    "/patients/Q/series/S/frames/0.png":   (302, 404, 404, 403, 403, 403),
    "/patients/P/heatmaps/H.png":          (302, 200, 404, 403, 403, 403),
    "/patients/Q/heatmaps/H.png":          (302, 404, 404, 403, 403, 403),
    "/models":              (302, 403, 403, 200, 200, 403),
    "/models/V":            (302, 403, 403, 200, 200, 403),
    "/models/U":            (302, 403, 403, 404, 404, 403),
    "/models/V/card":       (302, 200, 200, 200, 200, 403),
    "/models/V/card.json":  (302, 200, 200, 200, 200, 403),
    "/models/U/card":       (302, 404, 404, 404, 404, 403),
    "/models/V/card/purpose.use": (302, 200, 200, 200, 200, 403),
    "/models/V/card/nothing":     (302, 404, 404, 404, 404, 403),
    "/models/V/request":    (405, 405, 405, 405, 405, 405),
    "/models/rollback":     (405, 405, 405, 405, 405, 405),
    "/models/promotions/U/approve": (405, 405, 405, 405, 405, 405),
    "/models/runs/new":     (302, 403, 403, 200, 403, 403),
    "/models/runs/R":       (302, 403, 403, 200, 200, 403),
    "/models/runs/R/progress": (302, 403, 403, 200, 200, 403),
    "/models/runs/R/cancel":   (405, 405, 405, 405, 405, 405),
    "/monitoring":          (302, 403, 403, 200, 200, 403),
    "/monitoring?version=U": (302, 403, 403, 404, 404, 403),
    "/hooks/sandbox":       (302, 403, 403, 200, 403, 403),
    "/sources":             (302, 403, 403, 200, 403, 403),
    "/sources/O":           (302, 403, 403, 200, 403, 403),
    "/sources/O/set-aside.csv": (302, 403, 403, 200, 403, 403),
    "/sources/O/pause":     (405, 405, 405, 405, 405, 405),
    "/ehrs":                (302, 403, 403, 200, 403, 403),
    "/ehrs/clients/new":    (302, 403, 403, 200, 403, 403),
    "/ehrs/clients/C":      (302, 403, 403, 200, 403, 403),
    "/ehrs/clients/U":      (302, 403, 403, 404, 403, 403),
    "/ehrs/clients/C/edit":     (302, 403, 403, 200, 403, 403),
    "/ehrs/clients/C/withdraw": (302, 403, 403, 200, 403, 403),
    "/ehrs/clients/C/keys":     (405, 405, 405, 405, 405, 405),
    "/ehrs/servers/new":    (302, 403, 403, 200, 403, 403),
    "/ehrs/servers/L":      (302, 403, 403, 200, 403, 403),
    "/ehrs/servers/L/edit":     (302, 403, 403, 200, 403, 403),
    "/ehrs/servers/L/withdraw": (302, 403, 403, 200, 403, 403),
    "/destinations":        (302, 403, 403, 302, 403, 403),
    "/destinations/ehr":    (302, 403, 403, 200, 403, 403),
    "/destinations/none":   (302, 403, 403, 404, 403, 403),
    "/destinations/ehr/pause": (405, 405, 405, 405, 405, 405),
    "/launch":              (200, 200, 200, 200, 200, 200),
    "/launch/callback":     (400, 400, 400, 400, 400, 400),
    "/launch/callback/an-ehr": (400, 400, 400, 400, 400, 400),
    "/launch/ended":        (200, 200, 200, 200, 200, 200),
    "/launch/style.css":    (200, 200, 200, 200, 200, 200),
    "/openapi.json":        (200, 200, 200, 200, 200, 200),
    "/audit":               (302, 403, 403, 200, 403, 403),
    "/events":              (204, 204, 204, 204, 204, 204),
}  # fmt: skip
POST: dict[str, tuple[int, int, int, int, int, int]] = {
    "/worklist":            (302, 200, 200, 403, 403, 403),
    "/stay":                (302, 204, 204, 204, 204, 204),
    "/patients/P/rescore":  (302, 302, 404, 403, 403, 403),
    "/patients/P/responses/N/acknowledge": (302, 302, 404, 403, 403, 403),
    "/patients/P/responses/N/override":    (302, 400, 404, 403, 403, 403),
    "/patients/Q/responses/N/acknowledge": (302, 404, 404, 403, 403, 403),
    "/patients/P/responses/N/cheer":       (302, 404, 404, 404, 404, 404),
    "/patients/P/responses/U/undo":        (302, 404, 404, 403, 403, 403),
    "/models/V/request":    (302, 403, 403, 400, 403, 403),
    "/models/V/card/purpose.use": (302, 403, 403, 400, 403, 403),
    "/models/rollback":     (302, 403, 403, 403, 409, 403),
    "/models/promotions/U/approve": (302, 403, 403, 404, 404, 403),
    "/models/promotions/U/cheer":   (302, 404, 404, 404, 404, 404),
    "/models/runs/new":     (302, 403, 403, 400, 403, 403),
    "/models/runs/R/cancel":   (302, 403, 403, 409, 403, 403),
    "/hooks/sandbox":       (302, 403, 403, 404, 403, 403),
    "/sources/O/pause":     (302, 403, 403, 302, 403, 403),
    "/sources/O/cheer":     (302, 404, 404, 404, 404, 404),
    "/ehrs/clients/new":    (302, 403, 403, 400, 403, 403),
    "/ehrs/clients/C/edit": (302, 403, 403, 400, 403, 403),
    "/ehrs/clients/C/keys": (302, 403, 403, 302, 403, 403),
    "/ehrs/clients/U/withdraw": (302, 403, 403, 404, 403, 403),
    "/ehrs/servers/new":    (302, 403, 403, 400, 403, 403),
    "/ehrs/servers/L/edit": (302, 403, 403, 400, 403, 403),
    "/ehrs/servers/U/withdraw": (302, 403, 403, 404, 403, 403),
    "/destinations/ehr/pause": (302, 403, 403, 302, 403, 403),
    "/destinations/ehr/cheer": (302, 404, 404, 404, 404, 404),
    "/logout":              (302, 302, 302, 302, 302, 302),
}  # fmt: skip


def address(pattern: str, ward: Clinic) -> str:
    """The letters of the table as ids of the ward."""
    first = ward.patients[0]
    letters = {
        "P": first.pk,
        "Q": ward.patients[1].pk,
        "S": Series.objects.filter(frames=1).get().pk,
        "U": uuid.UUID(int=7),
        "N": RiskPrediction.objects.filter(assessment__patient=first).order_by("-assessment__as_of")[0].pk,
        "H": HeatMap.objects.get().pk,
        "V": ward.version.pk,
        "R": ward.version.run_id,
        "O": ward.patients[0].source_id,
        "C": getattr(HookClient.objects.first(), "pk", ""),
        "L": getattr(SmartServer.objects.first(), "pk", ""),
    }
    parts = [part.removesuffix(".png") for part in pattern.split("/")]
    made = "/".join(str(letters.get(part, part)) for part in parts)
    return made + ".png" if pattern.endswith(".png") else made


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_exactly_what_it_may(
    role: str, ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    ehrs(ward)
    place = ROLES.index(role)
    results.add_destination(source=ward.patients[0].source)
    got, wanted = {}, {}
    for table, method in ((GET, "get"), (POST, "post")):
        for pattern, statuses in table.items():
            client = sign_in(role)
            got[method, pattern] = getattr(client, method)(address(pattern, ward)).status_code
            wanted[method, pattern] = statuses[place]
    assert got == wanted


def test_the_table_names_every_route() -> None:
    listed = {pattern.split("?")[0].strip("/").count("/") for pattern in GET}
    assert listed
    tested = {_shape(pattern) for pattern in GET}
    routes = {_shape(str(route.pattern)) for route in urls.urlpatterns if isinstance(route, URLPattern)}
    assert routes <= tested


def _shape(address: str) -> tuple[str, ...]:
    parts = address.strip("/").removesuffix(".png").split("/")
    fixed = {
        "login",
        "logout",
        "stay",
        "help",
        "events",
        "worklist",
        "rows",
        "patients",
        "risk",
        "rescore",
        "responses",
        "undo",
        "series",
        "frames",
        "heatmaps",
        "models",
        "rollback",
        "monitoring",
        "hooks",
        "hospital",
        "openapi.json",
        "sandbox",
        "promotions",
        "runs",
        "new",
        "progress",
        "cancel",
        "request",
        "card",
        "launch",
        "callback",
        "style.css",
        "card.json",
        "audit",
        "ehrs",
        "clients",
        "servers",
        "edit",
        "withdraw",
        "keys",
        "sources",
        "destinations",
    }
    return tuple(part if part in fixed else "*" for part in parts if part)


def test_somebody_elses_patient_is_refused_and_the_refusal_is_on_record(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    patient = ward.patients[0]
    sign_in("stranger").get(f"/patients/{patient.pk}/risk")
    sign_in("stranger").get(address("/patients/P/series/S/frames/0.png", ward))
    refused = AuditEvent.objects.filter(
        patient_id=patient.pk, outcome="refused", actor=f"user:{ward.people['stranger'].pk}"
    )
    assert sorted(refused.values_list("action", flat=True)) == ["image.view", "patient.view"]


def test_a_page_beyond_ones_role_is_on_record(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    sign_in("clinician").get("/audit")
    event = AuditEvent.objects.get(action="page.open", outcome="refused")
    assert (event.object_id, event.actor) == ("audit", f"user:{ward.people['clinician'].pk}")


def test_frames_of_one_series_are_one_look(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    cine = Series.objects.get(frames__gt=1)
    client = sign_in("clinician")
    for number in range(5):
        client.get(f"/patients/{ward.patients[0].pk}/series/{cine.pk}/frames/{number}.png")
    assert AuditEvent.objects.filter(action="image.view", object_id=str(cine.pk)).count() == 1


def test_forms_need_their_token(ward: Clinic) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(ward.people["clinician"], backend="django.contrib.auth.backends.ModelBackend")
    answer = strict.post(f"/patients/{ward.patients[0].pk}/rescore")
    assert answer.status_code == 403
    assert "Please send it again" in answer.content.decode()
