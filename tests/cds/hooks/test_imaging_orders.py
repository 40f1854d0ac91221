"""Which orders are imaging, and which only look like it: texts and codings, both ways."""

from __future__ import annotations

from typing import Any

import pytest

from cds.hooks import imaging_orders
from cds.hooks.imaging_orders import KINDS, OTHER, Imaging

CHEST, ECHO, CHEST_CT = KINDS
SNOMED, LOINC, CPT = "http://snomed.info/sct", "http://loinc.org", "http://www.ama-assn.org/go/cpt"
V2, ACTIVITY = (
    "http://terminology.hl7.org/CodeSystem/v2-0074",
    "http://terminology.hl7.org/CodeSystem/observation-category",
)
LOCAL = "https://hospital.example.org/orders"


def concept(system: str | None, code: str, display: str = "") -> dict[str, Any]:
    coding = {"system": system, "code": code, "display": display}
    return {"coding": [{name: value for name, value in coding.items() if value}]}


def recognised(code: Any, *category: Any) -> Imaging | None:
    return imaging_orders.recognise(
        {"resourceType": "ServiceRequest", "code": code, "category": list(category)}
    )


@pytest.mark.parametrize(
    ("text", "study"),
    [
        ("XR Chest 2 Views", CHEST),
        ("Portable CXR", CHEST),
        ("CXR", CHEST),
        ("Chest x-ray PA and lateral", CHEST),
        ("Xr Chest Ap Portable", CHEST),
        ("CHEST RADIOGRAPH", CHEST),
        ("xr chest", CHEST),
        ("Chest XR", CHEST),
        ("Transthoracic echocardiogram", ECHO),
        ("TTE complete with contrast", ECHO),
        ("Cardiac ultrasound", ECHO),
        ("CT thorax with contrast", CHEST_CT),
        ("CT, chest, low dose", CHEST_CT),
        ("CTA chest", CHEST_CT),
        ("Chest CT w/o contrast", CHEST_CT),
        ("Computed tomography of the lung", CHEST_CT),
        ("HRCT of chest", CHEST_CT),
        ("ct chest", CHEST_CT),
        ("Ct Chest Without Contrast", CHEST_CT),
        ("MRI brain", OTHER),
        ("MR lumbar spine without contrast", OTHER),
        ("Brain MRI", OTHER),
        ("mri of left knee", OTHER),
        ("US abdomen complete", OTHER),
        ("US-guided biopsy of liver", OTHER),
        ("Ultrasound kidneys", OTHER),
        ("X-ray of left wrist", OTHER),
        ("PET whole body", OTHER),
        ("PET/CT skull base to mid-thigh", OTHER),
        ("CT head", OTHER),
        ("CT abdomen and pelvis", OTHER),
        ("Mammography screening", OTHER),
        ("DXA bone density", OTHER),
        ("MRA head and neck", OTHER),
        ("Fluoroscopy swallow study", OTHER),
        ("Coronary angiography", OTHER),
        ("MRI scan", OTHER),
        ("NM bone scan", OTHER),
        ("Venous duplex ultrasonography", OTHER),
        ("CT w/wo contrast", OTHER),
        ("MRI brain w/wo contrast", OTHER),
        ("Portable chest XR", CHEST),
        ("CT portable", OTHER),
        # short names that are nothing else in an order
        ("TTE", ECHO),
        ("TEE", ECHO),
        ("Echo", ECHO),
        ("2D echo complete", ECHO),
        ("ECHO LIMITED", ECHO),
        ("MRI", OTHER),
        ("Stat MRI, please", OTHER),
        ("CTPA", CHEST_CT),
        ("CT pulmonary angiogram", CHEST_CT),
        ("LDCT chest", CHEST_CT),
        ("DEXA", OTHER),
        ("DXA hip", OTHER),
        ("VQ scan", OTHER),
        ("V/Q scan", OTHER),
        ("Ventilation perfusion scan", OTHER),
        ("Bone scan", OTHER),
        ("MRCP", OTHER),
        ("KUB", OTHER),
        # what looks like imaging and is not
        ("tte", None),
        ("Echovirus PCR", None),
        ("Echo virus antibodies", None),
        ("Echo program referral", None),
        ("TEE shirt", None),
        ("MRI safety questionnaire", None),
        ("Dexa 4 mg IV", None),
        ("DEXA suppression test", None),
        ("DEXA 4 mg", None),
        ("Bladder scan", None),
        ("CT/GC NAAT, urine", None),
        ("CT values, SARS-CoV-2 PCR", None),
        ("Ct value", None),
        ("CT", None),
        ("CT cervical spine swab NAAT", None),
        ("Chlamydia trachomatis (CT) DNA probe, cervical", None),
        ("Pet therapy visit", None),
        ("PET THERAPY", None),
        ("pet whole body wash", None),
        ("Referral: Mr Smith", None),
        ("Referral: Mr Smith, hip pain", None),
        ("Mr Head, please see", None),
        ("MR # 123456", None),
        ("Please call us", None),
        ("Please call us about the hip", None),
        ("PLEASE CALL US, LEFT HIP", None),
        ("Contact us", None),
        ("US citizen", None),
        ("Metformin XR 500 mg", None),
        ("Venlafaxine XR daily", None),
        ("Chest physiotherapy", None),
        ("Chest pain pathway", None),
        ("Physiotherapy", None),
        ("Contact precautions", None),
        ("Lactate", None),
        ("RF, serum", None),
        ("NM, consult", None),
        ("Tee shirt, hospital", None),
        ("Rheumatoid factor (RF)", None),
        ("", None),
    ],
)
def test_by_its_words(text: str, study: Imaging | None) -> None:
    assert recognised({"text": text}) is study


@pytest.mark.parametrize(
    ("system", "code", "study"),
    [
        (SNOMED, "399208008", CHEST),
        (SNOMED, "40701008", ECHO),
        (SNOMED, "169069000", CHEST_CT),
        (SNOMED, "363679005", OTHER),
        (SNOMED, "77477000", OTHER),
        (SNOMED, "113091000", OTHER),
        (SNOMED, "71651007", OTHER),
        (SNOMED, "303653007", OTHER),
        ("urn:oid:2.16.840.1.113883.6.96", "16310003", OTHER),
        (LOINC, "36643-5", CHEST),
        (LOINC, "42148-7", ECHO),
        (LOINC, "24627-2", CHEST_CT),
        (LOINC, "24725-4", OTHER),
        (LOINC, "24590-2", OTHER),
        (CPT, "71046", CHEST),
        (CPT, "93306", ECHO),
        (CPT, "71250", CHEST_CT),
        (CPT, "70450", OTHER),
        (CPT, "76700", OTHER),
        (CPT, "78815", OTHER),
        (CPT, "93970", OTHER),
        ("urn:oid:2.16.840.1.113883.6.12", "70553", OTHER),
        ("http://www.radlex.org", "RPID16", OTHER),
        ("http://playbook.radlex.org/playbook/SearchRadlexAction", "RPID2", OTHER),
        ("http://www.radlex.org/", "RID10312", OTHER),
        # not imaging, or nobody's code
        (SNOMED, "108252007", None),
        (SNOMED, "71388002", None),
        (LOINC, "2524-7", None),
        (LOINC, "53925-4", None),
        (CPT, "80053", None),
        (CPT, "87491", None),
        (CPT, "99213", None),
        (CPT, "77301", None),
        (CPT, "79101", None),
        (LOCAL, "71046", None),
        (LOCAL, "399208008", None),
        (LOCAL, "RX", None),
        (None, "71046", None),
        (LOCAL, "CT", None),
        ("http://www.radlex.org", "chest", None),
    ],
)
def test_by_its_code_in_its_system(system: str | None, code: str, study: Imaging | None) -> None:
    assert recognised(concept(system, code)) is study


@pytest.mark.parametrize(
    ("category", "study"),
    [
        (concept(SNOMED, "363679005"), OTHER),
        (concept(V2, "RAD"), OTHER),
        (concept(V2, "RX"), OTHER),
        (concept("http://hl7.org/fhir/v2/0074", "CT"), OTHER),
        (concept(ACTIVITY, "imaging"), OTHER),
        (concept(LOINC, "LP29684-5"), OTHER),
        ({"text": "Imaging"}, OTHER),
        (concept(LOCAL, "7", "Radiology"), OTHER),
        (concept(LOCAL, "RX"), None),
        (concept(LOCAL, "RX", "Prescriptions"), None),
        (concept(None, "RAD"), None),
        (concept(LOCAL, "imaging"), None),
        (concept(LOCAL, "CT", "Core therapy"), None),
    ],
)
def test_by_its_category_by_system_and_code(category: Any, study: Imaging | None) -> None:
    assert recognised({"text": "As discussed"}, category) is study


@pytest.mark.parametrize(
    "category",
    [
        concept(SNOMED, "108252007"),
        concept(SNOMED, "409063005"),
        concept(V2, "LAB"),
        concept(V2, "MB"),
        concept(V2, "OTH"),
        concept(ACTIVITY, "laboratory"),
        {"text": "Laboratory"},
        concept(LOCAL, "4", "Lab"),
        {"text": "Physical therapy"},
    ],
)
def test_what_is_laboratory_or_other_by_its_category_is_none_whatever_the_words(category: Any) -> None:
    assert recognised({"text": "CT chest, x-ray film badge, ultrasound gel"}, category) is None
    assert recognised(concept(CPT, "71046"), category) is CHEST  # but the code is the narrower claim


@pytest.mark.parametrize(
    "said", [{"doNotPerform": True}, {"status": "revoked"}, {"status": "entered-in-error"}]
)
def test_an_order_that_something_must_not_be_done_asks_for_nothing(said: dict[str, Any]) -> None:
    order = {"resourceType": "ServiceRequest", "status": "draft", "code": {"text": "CT chest"}}
    assert imaging_orders.imaging_ordered([order]) == [CHEST_CT]
    assert imaging_orders.imaging_ordered([{**order, "doNotPerform": False}]) == [CHEST_CT]
    assert imaging_orders.imaging_ordered([order | said]) == []
    assert imaging_orders.imaging_named([order | said]) == [CHEST_CT]  # so it is not suggested either


def test_the_words_tell_the_kind_of_what_category_or_code_call_imaging() -> None:
    assert recognised({"text": "CT thorax"}, concept(V2, "CT")) is CHEST_CT
    assert (
        recognised({**concept(SNOMED, "168537006", "Plain radiography"), "text": "Radiograph of chest"})
        is CHEST
    )
    assert recognised(concept(LOINC, "99999-9", "XR Wrist - left 2 Views")) is OTHER


@pytest.mark.parametrize(
    "code", [None, [], 5, {"coding": [5, {"code": 7}]}, {"coding": {"code": "CT"}}, {"text": 7}]
)
def test_what_is_no_concept_is_no_imaging(code: Any) -> None:
    assert recognised(code, 5, None, {"coding": 5}) is None
