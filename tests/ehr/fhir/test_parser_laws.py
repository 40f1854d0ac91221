# ruff: noqa: E501 - tables are read by row
"""Whatever arrives, only EhrError or a SetAside comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ehr import EhrError, PatientRecord, ReadingTally, read_fhir_folder, read_prefetch, read_resources
from ehr.fhir.resources import READERS

KINDS = sorted([*READERS, "Patient", "Bundle", "Claim"])
ELEMENTS = [
    "code", "subject", "patient", "status", "component", "valueQuantity", "valueCodeableConcept", "valueString",
    "effectiveDateTime", "effectivePeriod", "issued", "period", "class", "type", "location", "serviceType", "id",
    "meta", "entry", "resource", "fullUrl", "coding", "text", "system", "value", "unit", "reference", "content",
    "attachment", "data", "contentType", "url", "name", "identifier", "birthDate", "gender", "link", "contained",
    "referenceRange", "low", "high", "condition", "relationship", "onsetDateTime", "recordedDate", "derivedFrom",
    "medicationReference", "medicationCodeableConcept", "dosageInstruction", "presentedForm", "conclusion", "series",
    "modality", "started", "dataAbsentReason", "category", "resourceType", "deceasedDateTime", "verificationStatus",
]  # fmt: skip
WORDS = st.sampled_from(
    ["Patient/p1", "#x", "urn:uuid:1", "2020", "2020-05-03T10:00:00Z", "0000", "http://loinc.org", "2160-0", "69548-6",
     "mg/dL", "final", "text/plain", "text/html", "aGVsbG8=", "p1", "", "\0", "1e400", *KINDS]
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(ELEMENTS), st.text(max_size=5)), inner, max_size=6),
    ),
    max_leaves=25,
)
RESOURCES = st.builds(
    lambda kind, sound, elements: {**elements, **({"subject": {"reference": "Patient/p1"}} if sound else {}), "resourceType": kind},
    st.sampled_from(KINDS), st.booleans(), st.dictionaries(st.sampled_from(ELEMENTS), JSON, max_size=8),
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.lists(st.one_of(RESOURCES, JSON), max_size=4))
def test_any_json_is_read_or_set_aside(items: list[Any]) -> None:
    tally = ReadingTally()
    records = read_resources([(f"t{i}", item) for i, item in enumerate(items)], tally=tally)
    assert all(isinstance(record, PatientRecord) for record in records)
    for record in records:
        assert all(item.reason for item in record.set_aside)
        keys = [
            (fact.resource_type, fact.resource_id, fact.part)
            for fact in (*record.observations, *record.notes)
        ]
        assert len(keys) == len(set(keys)), "a part twice"


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.one_of(RESOURCES, JSON), max_size=3))
def test_any_prefetch_is_read_or_refused(prefetch: dict[str, Any]) -> None:
    try:
        record = read_prefetch(prefetch, patient_id="p1")
    except EhrError:
        return
    assert record.patient.resource_id == "p1"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), RESOURCES)
def test_any_file_is_read_or_set_aside(
    tmp_path_factory: Any, content: bytes, resource: dict[str, Any]
) -> None:
    folder: Path = tmp_path_factory.mktemp("fhir")
    (folder / "a.json").write_bytes(content)
    (folder / "b.ndjson").write_bytes(content)
    (folder / "c.ndjson.gz").write_bytes(content)
    (folder / "d.json").write_text(json.dumps(resource), encoding="utf-8")
    for record in read_fhir_folder(folder):
        assert isinstance(record, PatientRecord)


def test_deep_nesting_is_set_aside() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = {"contained": [deep]}
    (record,) = read_resources(
        [("t", {"resourceType": "Observation", "code": deep, "subject": {"reference": "Patient/1"}})]
    )
    assert record.set_aside
