"""Orders: which are imaging, what a card says about one, and what is suggested to be ordered."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from fhir.resources.R4B.servicerequest import ServiceRequest

from cds.hooks import cards, ordering, studies_known
from cds.hooks.alerting import Alert
from cds.hooks.contexts import Context
from cds.hooks.order_cards import Known, order_card
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk.standing import DataState
from tests.cds.hooks.conftest import Call, hook_body, make_score
from tests.cds.hooks.test_cards import NOW, check_golden, patient, setting_for, standing_as

__all__ = ["patient"]
SNOMED, CPT, LOINC = "http://snomed.info/sct", "http://www.ama-assn.org/go/cpt", "http://loinc.org"


def order(
    code: str = "", system: str = SNOMED, *, text: str = "", kind: str = "ServiceRequest", **more: Any
) -> dict[str, Any]:
    concept = {"coding": [{"system": system, "code": code}]} if code else {}
    return {"resourceType": kind, "id": "o1", "code": {**concept, **({"text": text} if text else {})}, **more}


IMAGING = [{"coding": [{"system": SNOMED, "code": "363679005"}]}]


@pytest.mark.parametrize(
    ("said", "modality"),
    [
        (order("399208008"), "image"),
        (order("71046", CPT), "image"),
        (order(text="XR Chest 2 Views"), "image"),
        (order(text="Portable CXR"), "image"),
        (order(text="Röntgen: chest x-ray"), "image"),
        (order("40701008"), "cine"),
        (order(text="Transthoracic echocardiogram"), "cine"),
        (order("169069000"), "volume"),
        (order(text="CT thorax with contrast"), "volume"),
        (order(text="MRI brain"), ""),
        (order(text="X-ray of left wrist"), ""),
        (order("1", category=IMAGING), ""),
        (order("2524-7", LOINC, text="Lactate"), None),
        (order(text="Physiotherapy"), None),
        (order(text="Contact precautions"), None),
        (order("399208008", kind="MedicationRequest"), None),
        ({"resourceType": "ServiceRequest"}, None),
        ({"resourceType": "ServiceRequest", "code": [], "category": 5}, None),
        ({"resourceType": "ServiceRequest", "code": {"coding": [5, {"code": 7}]}}, None),
    ],
)
def test_which_orders_are_imaging(said: dict[str, Any], modality: str | None) -> None:
    found = ordering.imaging_ordered([said])
    assert [one.modality for one in found] == ([] if modality is None else [modality])


RADIOGRAPH = ordering.KINDS[0]
CASES: dict[str, Known] = {
    "order-used": Known(True, is_used=True, taken_at=NOW.replace(hour=9), with_all=0.81, without=0.74),
    "order-missing": Known(True, with_all=0.81, without=0.74),
    "order-pending": Known(True, is_pending=True),
    "order-not-read": Known(False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_card_about_an_order_is_the_golden_one(
    name: str, patient: Patient, version: ModelVersion
) -> None:
    standing = standing_as(DataState.CURRENT, patient, version, risk=0.04)
    shown = order_card(standing, setting_for(patient, alert=Alert()), RADIOGRAPH, CASES[name])
    assert shown.kind is cards.CardKind.ORDER
    check_golden(name, shown, patient, version)


@pytest.mark.parametrize(
    ("state", "known", "summary"),
    [
        (DataState.UPDATING, Known(True), "the model reads such studies; no risk yet"),
        (DataState.ABSTAINED, Known(True), "the model reads such studies; not scored"),
        (DataState.NOT_ELIGIBLE, Known(True), "the model reads such studies; not scored"),
        (DataState.FAILED, Known(True), "the model reads such studies; the score could not be computed"),
        (DataState.ABSTAINED, Known(True, is_used=True, taken_at=NOW), "one is here already; not scored"),
        (DataState.UPDATING, Known(True, is_pending=True), "one is here and still being read; no risk yet"),
        (DataState.ABSTAINED, Known(False), "would not change the risk; not scored"),
    ],
)
def test_without_a_number_an_order_card_says_why_and_that_it_is_not_low(
    state: DataState, known: Known, summary: str, patient: Patient, version: ModelVersion
) -> None:
    """Nothing in it may sound as if a risk had been computed."""
    standing = standing_as(state, patient, version, risk=None)
    card = order_card(standing, setting_for(patient), RADIOGRAPH, known).card
    assert card.summary == f"Chest radiograph: {summary}"
    assert "This is not a low risk" in card.detail
    assert not re.search(
        r"computed without|the score (does|uses)|the risk already", card.summary + card.detail
    )


def test_a_stale_risk_of_an_order_is_called_so(patient: Patient, version: ModelVersion) -> None:
    standing = standing_as(DataState.STALE, patient, version, reason="older than 2 h")
    card = order_card(standing, setting_for(patient), RADIOGRAPH, Known(True)).card
    assert card.summary.endswith("; risk was 31 % (stale), admission to intensive care within 14 days")


def test_what_is_known_of_a_study(patient: Patient, version: ModelVersion) -> None:
    version.report = {
        "ablation": {
            "icu-admission": [
                {"name": "all", "auroc": {"value": 0.81, "low": 0.7, "high": 0.9}},
                {"name": "text only", "auroc": {"value": 0.7}},
                {"name": "image only", "auroc": {"value": 0.6}},
            ]
        }
    }
    standing = standing_as(DataState.CURRENT, patient, version)  # uses an image
    known = studies_known.known_of(RADIOGRAPH, standing, outcome="icu-admission", patient=patient)
    assert (known.is_read, known.is_used, known.with_all, known.without) == (True, True, 0.81, 0.7)
    cine = studies_known.known_of(ordering.KINDS[1], standing, outcome="icu-admission", patient=patient)
    assert not cine.is_read  # this version reads notes and images


def suggested(category: str, patient: Patient, version: ModelVersion, **changes: Any) -> list[Any]:
    standing = standing_as(DataState.CURRENT, patient, version, risk={"low": 0.01, "high": 0.31}[category])
    shown = cards.card_for(standing, setting_for(patient, **changes))
    return list(shown.card.suggestions)


def test_what_is_missing_can_be_ordered_as_whole_resources(patient: Patient, version: ModelVersion) -> None:
    context = Context("Practitioner/7", "p1", "e1")
    found = suggested("high", patient, version, context=context)
    assert [one.label for one in found] == ["Order: Echocardiogram", "Order: Lactate"]
    for one in found:
        (action,) = one.actions
        resource = ServiceRequest.model_validate(copy.deepcopy(action.resource))
        assert (resource.status, resource.intent) == ("draft", "order")
        assert resource.subject.reference == "Patient/p1"
        assert resource.encounter.reference == "Encounter/e1"
        assert resource.requester.reference == "Practitioner/7"


def test_a_suggested_order_is_for_the_patient_as_the_call_names_them(
    patient: Patient, version: ModelVersion
) -> None:
    """The EHR calls for an id that was merged here into another: its order is for that id all the same."""
    found = suggested("high", patient, version, context=Context("Practitioner/7", "old-id", "e1"))
    assert found
    assert {one.actions[0].resource["subject"]["reference"] for one in found} == {"Patient/old-id"}


def test_nothing_is_suggested_at_a_low_risk_nor_where_it_makes_no_sense(
    patient: Patient, version: ModelVersion
) -> None:
    assert not suggested("low", patient, version)
    assert not suggested("high", patient, version, may_suggest=False)


def test_what_is_being_ordered_is_not_suggested(patient: Patient, version: ModelVersion) -> None:
    drafts = (order("40701008"), order("2524-7", LOINC))
    assert not suggested("high", patient, version, context=Context("Practitioner/7", "p1", drafts=drafts))


# -- over the wire -----------------------------------------------------------------------------------
def order_body(*orders: dict[str, Any], hook: str = "order-sign", **context: Any) -> dict[str, Any]:
    bundle = {"resourceType": "Bundle", "entry": [{"resource": one} for one in orders]}
    who = {"userId": "Practitioner/example", "patientId": "p1", "draftOrders": bundle, **context}
    return hook_body(hook=hook, context=who)


def test_an_imaging_order_gets_a_card_and_other_orders_none(call: Call, version: ModelVersion) -> None:
    path = "/cds-services/tessera-icu-admission-order-sign"
    drug = order("1", kind="MedicationRequest")
    assert call(path, order_body(drug, order("2524-7", LOINC))).json() == {"cards": []}
    make_score(Patient.objects.get(), version)
    (card,) = call(path, order_body(drug, order("399208008"), order("71046", CPT))).json()["cards"]
    assert card["summary"].startswith("Chest radiograph: the risk already uses one")
    select = "/cds-services/tessera-icu-admission-order-select"
    chosen = order_body(drug, order("399208008"), hook="order-select", selections=["MedicationRequest/o1"])
    assert call(select, chosen).json() == {"cards": []}  # the imaging was not what was selected
    chosen["context"]["selections"] = ["ServiceRequest/o1"]
    assert len(call(select, chosen).json()["cards"]) == 1


def test_several_studies_in_a_call_alert_once_and_suggest_once(call: Call, version: ModelVersion) -> None:
    path = "/cds-services/tessera-icu-admission-order-sign"
    body = order_body(order("399208008"), order("169069000"), order(text="MRI brain"))
    call(path, body)
    make_score(Patient.objects.get(), version)
    first, *others = call(path, body).json()["cards"]
    assert first["indicator"] == "warning"
    assert first["suggestions"]
    assert len(others) == 2
    for card in others:
        assert card["indicator"] == "info"
        assert "The first card about these orders alerts to this, so not again." in card["detail"]
        assert "suggestions" not in card
        assert "31 %" in card["summary"]
