"""What we are about to send is judged by fhir.resources, and refused with the element, never with a value."""

from __future__ import annotations

from typing import Any

import pytest

import ehr
from ehr import BadResource, check_structure
from tests.ehr.fhir.test_accompanying import build, device, provenance, report

SECRET = "Maria Musterfrau"


@pytest.mark.parametrize("resource", [build(), device(), report(), provenance()])
def test_what_we_build_passes(resource: dict[str, Any]) -> None:
    check_structure(resource)


@pytest.mark.parametrize("shape", list(ehr.SubscriptionShape))
def test_subscriptions_pass(shape: ehr.SubscriptionShape) -> None:
    check_structure(
        ehr.build_subscription(
            shape=shape,
            criteria="Observation?",
            topic="https://ehr.example/topics/changed",
            endpoint="https://tessera.example/fhir/subscriptions/1",
            secret="s",
            reason="to keep up to date",
            payload="id-only" if shape is ehr.SubscriptionShape.BACKPORT else "",
            heartbeat_s=60,
        )
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"risk": SECRET}, r"RiskAssessment of ours is not FHIR R4 at risk \(extra_forbidden\)"),
        ({"prediction": [{"probabilityDecimal": SECRET}]}, r"at prediction\.0\.probabilityDecimal"),
        ({"subject": None, "status": SECRET, "occurrenceDateTime": SECRET}, "is not FHIR R4 at "),
        ({"resourceType": "Rezept"}, "'Rezept' is no type of FHIR R4"),
    ],
)
def test_faults_are_named_by_element(changes: dict[str, Any], words: str) -> None:
    broken = {name: value for name, value in (build() | changes).items() if value is not None}
    with pytest.raises(BadResource, match=words) as raised:
        check_structure(broken)
    assert SECRET not in str(raised.value)
