"""The call of a service, from outside, line by line of INTEROP 8-13."""

from __future__ import annotations

import gzip
import uuid
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.db import OperationalError
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.hooks.models import CardShown, PrefetchRead
from cds.patients.models import Observation, Patient
from cds.registry.models import ModelVersion
from cds.risk import responding
from cds.risk.models import RiskAssessment
from tests.cds.hooks.conftest import (
    SERVICE,
    Call,
    heart_rate,
    hook_body,
    make_score,
    patient_resource,
    searchset,
)


def issue(response: Any) -> dict[str, Any]:
    """The one issue of the OperationOutcome that every refusal must be."""
    outcome = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    return outcome["issue"][0]


def test_an_unknown_patient_is_imported_and_gets_a_card_that_says_not_yet_known(
    call: Call, version: ModelVersion
) -> None:
    response = call(SERVICE, hook_body())
    assert response.status_code == 200
    (card,) = response.json()["cards"]
    assert card["summary"] == "Admission to intensive care within 14 days: not yet known"
    assert "not a low risk" in card["detail"]
    patient = Patient.objects.get(resource_id="p1", source__slug="ehr")
    assert patient.family == "Testperson"
    assert Observation.objects.get(patient=patient).value == 88
    assert RiskAssessment.objects.get(patient=patient).version == version  # a score was asked for
    shown = CardShown.objects.get(pk=card["uuid"])
    assert (shown.kind, shown.prediction) == ("not-yet-known", None)
    assert shown.version == version
    assert shown.milliseconds is not None
    assert 0 < shown.milliseconds < 60_000
    event = AuditEvent.objects.get(action="hook.call")
    assert (event.outcome, event.patient_id) == ("success", patient.pk)
    assert event.detail["user"] == "Practitioner/example"
    assert response["Cache-Control"] == "no-store"


def test_a_current_score_is_shown_with_everything_beside_it(call: Call, version: ModelVersion) -> None:
    body = hook_body()
    call(SERVICE, body)
    assessment = make_score(Patient.objects.get(resource_id="p1"), version)
    (card,) = call(SERVICE, body).json()["cards"]
    assert card["summary"].startswith("High: 31 % (22–43 %)")
    assert card["indicator"] == "warning"
    assert card["source"]["label"] == "Tessera icu-admission v3"
    assert {"code", "system", "display"} == set(card["overrideReasons"][0])
    (link,) = card["links"]
    assert f"/patients/{assessment.patient_id}/risk" in link["url"]
    for said in ("90 % interval", "average 12 %", "cine, lactate", "Research use only", "icu-admission v3"):
        assert said in card["detail"]
    assert CardShown.objects.get(pk=card["uuid"]).prediction == assessment.predictions.get()


def test_a_newer_value_makes_the_old_number_stale_never_current(call: Call, version: ModelVersion) -> None:
    call(SERVICE, hook_body())
    make_score(Patient.objects.get(resource_id="p1"), version)
    vitals = searchset(heart_rate(131, at=timezone.now() - timedelta(minutes=1), resource_id="hr2"))
    (card,) = call(SERVICE, hook_body(prefetch={"vitals": vitals})).json()["cards"]
    assert card["summary"].startswith("Stale: was 31 %")
    assert card["indicator"] == "info"
    assert "**This number is out of date:**" in card["detail"]


def test_a_fresh_score_is_waited_for_within_the_budget(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.HOOKS_WAIT_S = 0.3
    made = []

    def compute_meanwhile(_: float) -> None:
        asked = RiskAssessment.objects.get()
        if not made:
            made.append(make_score(asked.patient, version, risk=0.04))
            RiskAssessment.objects.filter(pk=asked.pk).update(work_state="cancelled")

    monkeypatch.setattr("cds.risk.assessing.time.sleep", compute_meanwhile)
    (card,) = call(SERVICE, hook_body()).json()["cards"]
    assert card["summary"].startswith("Low: 4 %")


def test_the_same_prefetch_again_is_not_parsed_again(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = hook_body()
    call(SERVICE, body)
    monkeypatch.setattr("ehr.read_prefetch", lambda *_, **__: pytest.fail("parsed again"))
    assert call(SERVICE, body).status_code == 200
    assert PrefetchRead.objects.count() == 1


def test_an_older_prefetch_after_a_newer_one_is_read_again(call: Call, version: ModelVersion) -> None:
    first = hook_body()
    call(SERVICE, first)
    at = timezone.now() - timedelta(minutes=30)
    call(SERVICE, hook_body(prefetch={"vitals": searchset(heart_rate(99, at=at))}))
    assert Observation.objects.get().value == 99
    call(SERVICE, first)
    assert Observation.objects.get().value == 88


def test_of_a_prefetch_that_changed_only_what_is_new_is_read(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the rest of the record stays as it was read."""
    first = hook_body()
    call(SERVICE, first)
    family = Patient.objects.get().family
    read = list[Any]()
    whole = ehr.read_prefetch

    def watched(*args: Any, **kwargs: Any) -> Any:
        read.append(whole(*args, **kwargs))
        return read[-1]

    monkeypatch.setattr("ehr.read_prefetch", watched)
    sent = first["prefetch"]
    newer = {**heart_rate(95, at=timezone.now() - timedelta(minutes=1)), "id": "newer"}
    vitals = searchset(*(entry["resource"] for entry in sent["vitals"]["entry"]), newer)
    assert call(SERVICE, hook_body(prefetch={**sent, "vitals": vitals})).status_code == 200
    (record,) = read
    assert [one.resource_id for one in record.observations] == ["newer"]
    assert record.patient.is_stub
    patient = Patient.objects.get()
    assert (patient.family, patient.revision) == (family, 2)
    assert set(Observation.objects.values_list("value", flat=True)) == {88.0, 95.0}


def test_once_somebody_else_has_changed_the_patient_everything_is_read(
    call: Call, version: ModelVersion
) -> None:
    """What was sent before may have been overwritten since, so it is not taken for known."""
    first = hook_body()
    call(SERVICE, first)
    patient = Patient.objects.get()
    Observation.objects.update(value=1, digest="x")
    patient.touch(timezone.now())
    sent = first["prefetch"]
    newer = {**heart_rate(95, at=timezone.now() - timedelta(minutes=1)), "id": "newer"}
    vitals = searchset(*(entry["resource"] for entry in sent["vitals"]["entry"]), newer)
    call(SERVICE, hook_body(prefetch={**sent, "vitals": vitals}))
    assert set(Observation.objects.values_list("value", flat=True)) == {88.0, 95.0}


@pytest.mark.parametrize("last", [True, False])
def test_the_length_of_a_prefetch_is_found_wherever_it_stands(
    call: Call, version: ModelVersion, last: bool
) -> None:
    body = hook_body()
    prefetch = body.pop("prefetch")
    ordered = {**body, "prefetch": prefetch} if last else {"prefetch": prefetch, **body}
    call(SERVICE, ordered)
    assert PrefetchRead.objects.get().length == len(orjson.dumps(prefetch))


def test_a_snoozed_outcome_gives_no_card(call: Call, version: ModelVersion) -> None:
    body = hook_body()
    call(SERVICE, body)
    assessment = make_score(Patient.objects.get(resource_id="p1"), version)
    by = recording.system("tests")
    responding.snooze(assessment.predictions.get(), by=by, user=None, now=timezone.now())
    assert call(SERVICE, body).json() == {"cards": []}


def told(severity: str) -> dict[str, Any]:
    """An OperationOutcome, as an entry of a searchset."""
    return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "processing"}]}


# -- INTEROP 7: what a prefetch may look like ------------------------------------------------------
def test_what_the_ehr_did_not_send_is_said_on_the_card(call: Call, version: ModelVersion) -> None:
    prefetch = {
        "patient": patient_resource(),
        "conditions": None,  # the EHR says: none
        "labs": {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "timeout"}]},
        "vitals": searchset(link=[{"relation": "next", "url": "https://ehr.example.org/page2"}]),
        "medications": searchset(told("error"), told("information")),  # a Bundle, and a failure all the same
        "encounters": searchset(told("information")),  # no match, in words
    }
    (card,) = call(SERVICE, hook_body(prefetch=prefetch)).json()["cards"]
    line = next(line for line in card["detail"].splitlines() if "Not supplied" in line)
    assert "labs" in line
    assert "vitals" in line
    assert "medications" in line
    assert "encounters" not in line
    assert "conditions" not in line
    assert "patient" not in line


@pytest.mark.parametrize(
    "prefetch",
    [
        ...,
        None,
        {},
        {"patient": None},
        {"patient": {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "login"}]}},
        {"vitals": searchset(told("error"))},
    ],
)
def test_without_data_it_is_412_and_never_empty_cards(
    call: Call, version: ModelVersion, prefetch: Any
) -> None:
    body = hook_body(fhirServer="https://ehr.example.org/fhir", prefetch=prefetch)
    if prefetch is ...:
        del body["prefetch"]
    response = call(SERVICE, body)
    assert response.status_code == 412
    assert issue(response)["expression"] == ["prefetch"]


def test_a_prefetch_about_another_patient_is_refused(call: Call, version: ModelVersion) -> None:
    response = call(SERVICE, hook_body("p1", prefetch={"patient": patient_resource("p2")}))
    assert response.status_code == 422
    assert not Patient.objects.exists()


# -- INTEROP 8-10: each broken field is named --------------------------------------------------------
CONTEXT = {"userId": "Practitioner/1", "patientId": "p1"}
AUTHORIZATION = {"access_token": "t", "token_type": "Bearer", "expires_in": 300, "scope": "s", "subject": "c"}
SERVER = {"fhirServer": "https://ehr.example.org/fhir"}


def authorized(**changes: Any) -> dict[str, Any]:
    """Access to the EHR's FHIR server, as it comes with a call."""
    return {**SERVER, "fhirAuthorization": {**AUTHORIZATION, **changes}}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hook": ...}, "hook"),
        ({"hook": "order-sign"}, "hook"),
        ({"hook": 7}, "hook"),
        ({"hookInstance": ...}, "hookInstance"),
        ({"hookInstance": "42"}, "hookInstance"),
        ({"context": ...}, "context"),
        ({"context": []}, "context"),
        ({"context": {"patientId": "p1"}}, "context.userId"),
        ({"context": {"userId": "1", "patientId": "p1"}}, "context.userId"),
        ({"context": {"userId": "Practitioner/1"}}, "context.patientId"),
        ({"context": {**CONTEXT, "patientId": "a/b"}}, "context.patientId"),
        ({"context": {**CONTEXT, "patientId": 5}}, "context.patientId"),
        ({"context": {**CONTEXT, "encounterId": "?"}}, "context.encounterId"),
        ({"prefetch": []}, "prefetch"),
        ({"prefetch": {"patient": "p1"}}, "prefetch.patient"),
        ({"prefetch": {"patient": {"id": "p1"}}}, "prefetch.patient"),
        ({"fhirServer": "ftp://x"}, "fhirServer"),
        ({"fhirAuthorization": AUTHORIZATION}, "fhirServer"),
        (
            {**SERVER, "fhirAuthorization": {**AUTHORIZATION, "access_token": ""}},
            "fhirAuthorization.access_token",
        ),
        (
            {**SERVER, "fhirAuthorization": {**AUTHORIZATION, "token_type": "MAC"}},
            "fhirAuthorization.token_type",
        ),
        (
            {**SERVER, "fhirAuthorization": {**AUTHORIZATION, "expires_in": "5"}},
            "fhirAuthorization.expires_in",
        ),
    ],
)
def test_what_is_wrong_is_named(
    call: Call, version: ModelVersion, changes: dict[str, Any], field: str
) -> None:
    response = call(SERVICE, hook_body(**changes))
    assert response.status_code == 400
    assert issue(response)["expression"] == [field]


def test_a_token_for_the_fhir_server_is_kept_nowhere(
    call: Call, version: ModelVersion, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "canary-token-1234567"
    response = call(SERVICE, hook_body(**authorized(access_token=secret)))
    assert response.status_code == 200
    assert secret not in caplog.text
    assert secret not in str(list(AuditEvent.objects.values_list("detail", flat=True)))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"raw": b"{"}, 400),
        ({"raw": b"[]"}, 400),
        ({"raw": b" "}, 400),
        ({"raw": b'{"hook": "\\u0000"}'}, 400),
        ({"raw": b'{"hook": "\\\\\\u0000"}'}, 400),
        ({"raw": b"{}", "content_type": "text/plain"}, 415),
        ({"raw": b"{}", "content_type": "application/x-www-form-urlencoded"}, 415),
        ({"raw": gzip.compress(b"{}"), "content-encoding": "gzip"}, 415),
        ({"raw": b"{}", "content-encoding": "br"}, 415),
        ({"raw": b"{}", "content-encoding": "identity"}, 400),
        ({"raw": b" " * (5 * 1024 * 1024 + 1)}, 413),
    ],
)
def test_bodies_that_are_not_a_request(
    call: Call, version: ModelVersion, sent: dict[str, Any], status: int
) -> None:
    response = call(SERVICE, **sent)
    assert response.status_code == status
    issue(response)


def test_a_body_at_the_limit_is_read(call: Call, version: ModelVersion) -> None:
    response = call(SERVICE, raw=b" " * (5 * 1024 * 1024 - 2) + b"{}")
    assert response.status_code == 400  # read, and found to lack its fields
    assert issue(response)["expression"] == ["hook"]


def test_an_unknown_service_is_404_and_audited(call: Call, version: ModelVersion) -> None:
    response = call("/cds-services/nonsense", hook_body())
    assert response.status_code == 404
    issue(response)
    assert AuditEvent.objects.get(action="hook.call").outcome == "refused"


def test_another_method_is_405(call: Call, version: ModelVersion) -> None:
    response = call(SERVICE)
    assert response.status_code == 405
    assert "POST" in response["Allow"]


# -- INTEROP 11: what fails says so ------------------------------------------------------------------
def test_without_a_database_it_is_503(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("cds.hooks.offering.registry_queries.answering", away)
    response = call(SERVICE, hook_body())
    assert response.status_code == 503
    assert response["Retry-After"]
    assert issue(response)["code"] == "transient"


def test_an_unexpected_error_is_a_500_without_its_words(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("Ada Testperson")

    monkeypatch.setattr("cds.hooks.views.assessing.current_of", break_down)
    response = call(SERVICE, hook_body())
    assert response.status_code == 500
    assert "Ada" not in response.content.decode()
    assert AuditEvent.objects.get(action="hook.call").outcome == "failed"


def test_every_card_has_its_own_uuid(call: Call, version: ModelVersion) -> None:
    body = hook_body()
    given = {call(SERVICE, body).json()["cards"][0]["uuid"] for _ in range(3)}
    assert len({uuid.UUID(one) for one in given}) == 3
