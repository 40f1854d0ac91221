"""Two records of one person: what was shown and answered before the merger counts after it."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk import responding
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score, patient_resource

WHO = "Practitioner/1"


def body(identity: str, **link: str) -> dict[str, Any]:
    """A call about one of the two; `link`: type → id of the other."""
    said = [{"type": kind, "other": {"reference": f"Patient/{other}"}} for kind, other in link.items()]
    context = {"userId": WHO, "patientId": identity}
    return hook_body(
        identity, context=context, prefetch={"patient": {**patient_resource(identity), "link": said}}
    )


@pytest.fixture
def old(call: Call, version: ModelVersion) -> Patient:
    """A patient at high risk, about whom this person was alerted."""
    call(SERVICE, body("p1"))
    patient = Patient.objects.get()
    make_score(patient, version)
    (card,) = call(SERVICE, body("p1")).json()["cards"]
    assert card["indicator"] == "warning"
    return patient


def survivor(call: Call, version: ModelVersion) -> dict[str, Any]:
    """The call about who survives the merger, with as high a risk."""
    asked = body("p2", replaces="p1")
    call(SERVICE, asked)
    patient = Patient.objects.get(resource_id="p2")
    assert Patient.objects.get(resource_id="p1").merged_into == patient
    make_score(patient, version)
    return asked


def test_who_was_alerted_to_the_old_record_is_not_alerted_again(
    call: Call, version: ModelVersion, old: Patient
) -> None:
    asked = survivor(call, version)
    (card,) = call(SERVICE, asked).json()["cards"]
    assert card["indicator"] == "info"
    assert "You were alerted to this at" in card["detail"]
    (card,) = call(SERVICE, body("p1", **{"replaced-by": "p2"})).json()["cards"]
    assert card["indicator"] == "info"
    third = body("p3", replaces="p2")  # merged once more
    call(SERVICE, third)
    make_score(Patient.objects.get(resource_id="p3"), version)
    (card,) = call(SERVICE, third).json()["cards"]
    assert card["indicator"] == "info"


@pytest.mark.parametrize(
    ("answer", "expected"), [(responding.snooze, []), (responding.acknowledge, ["info"])]
)
def test_what_was_answered_about_the_old_record_counts(
    call: Call, version: ModelVersion, old: Patient, answer: Any, expected: list[str]
) -> None:
    prediction = old.assessments.get(status="final").predictions.get()
    answer(prediction, by=recording.system("tests"), user=None, now=timezone.now())
    asked = survivor(call, version)
    asked["context"]["userId"] = "Practitioner/2"  # who was not alerted
    for _ in range(2):  # a prefetch that is new, and the same again
        cards = call(SERVICE, asked).json()["cards"]
        assert [card["indicator"] for card in cards] == expected
