# ruff: noqa: E501 - tables are read by row
"""Real and specification data: every file is read, and what is not taken is said."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from ehr import EhrError, PatientRecord, ReadingTally, read_fhir_folder, read_prefetch
from ehr.fhir.resources import READERS
from tests.shared import shared

pytestmark = pytest.mark.real_data


def read(path: str) -> tuple[list[PatientRecord], ReadingTally]:
    tally = ReadingTally()
    records = list(read_fhir_folder(shared(f"data/fhir/{path}"), tally=tally))
    check(records)
    return records, tally


def check(records: list[PatientRecord]) -> None:
    """What holds of every record."""
    for record in records:
        facts = [fact for name in ("encounters", "observations", "conditions", "medications", "procedures", "allergies",
                 "notes", "family_history", "genomics", "imaging_studies") for fact in getattr(record, name)]  # fmt: skip
        keys = [(type(fact), fact.resource_type, fact.resource_id, fact.part) for fact in facts]
        assert len(keys) == len(set(keys))
        assert all(fact.available_at is None or fact.available_at.tzinfo is UTC for fact in facts)
        assert all(item.reason and item.where for item in record.set_aside)
        for found in record.observations:
            assert found.value is None or math.isfinite(found.value)
            if found.effective_at and found.available_at:
                assert found.effective_at <= found.available_at


def expected_counts() -> Counter[str]:
    """Counted without our parser."""
    found: Counter[str] = Counter()
    for path in shared("data/fhir/synthea_r4_bundles").glob("*.gz"):
        found.update(
            entry["resource"]["resourceType"]
            for entry in json.loads(gzip.decompress(path.read_bytes()))["entry"]
        )
    return found


def test_seventy_synthea_bundles() -> None:
    records, tally = read("synthea_r4_bundles")
    counted = expected_counts()
    assert len(records) == 70 == len({record.patient.resource_id for record in records})
    assert not any(record.patient.is_stub for record in records)
    assert sum(record.patient.deceased for record in records) == 12
    assert tally.ignored["file *.csv"] == 1  # the index beside them
    assert tally.total == sum(counted.values()) + 1
    assert sum(tally.set_aside.values()) == 0
    for kind in set(counted) & {*READERS, "Patient"} - {"DiagnosticReport"}:
        assert tally.read[kind] == counted[kind], kind
    assert tally.ignored["DiagnosticReport (no text)"] == counted["DiagnosticReport"]
    pressures = [found for record in records for found in record.observations if found.part == "8480-6"]
    assert len(pressures) == 598
    assert {found.unit for found in pressures} == {"mm[Hg]"}
    assert all(
        found.available_at and found.available_at < datetime(2030, 1, 1, tzinfo=UTC) for found in pressures
    )


def test_reading_twice_gives_the_same() -> None:
    assert read("synthea_bulk_10_patients")[0] == read("synthea_bulk_10_patients")[0]


def test_a_bulk_export() -> None:
    records, tally = read("synthea_bulk_10_patients")
    patients = [record for record in records if record.patient.resource_id]
    assert len(patients) == 13
    assert not any(record.patient.is_stub for record in patients)
    assert tally.read["DocumentReference"] == 1215 == sum(len(record.notes) for record in records)
    assert tally.set_aside == {"(not FHIR)": 4}  # the export's own log


def test_examples_of_the_specification() -> None:
    records, tally = read("hl7_r4_spec_examples.ndjson.gz")
    assert tally.read["Observation"] >= 100
    assert tally.read["Patient"] >= 30
    assert sum(tally.set_aside.values()) < 50
    assert tally.retracted
    assert all("must be" not in item.reason for record in records for item in record.set_aside), (
        "examples are well formed"
    )


def test_us_core_examples() -> None:
    records, tally = read("us_core_examples.ndjson.gz")
    assert tally.read["Observation"] >= 85
    height = next(f for r in records for f in r.observations if f.code.code == "8302-2" and f.value)
    assert height.unit == "cm"


def test_genomics_reports() -> None:
    records, _ = read("genomics_reporting")
    found = [item for record in records for item in record.genomics]
    assert {"PIK3CA", "NRAS"} <= {item.gene for item in found}
    assert any("athogenic" in item.significance for item in found)
    assert all(item.kind == "variant" for item in found)


def hook_requests() -> Iterator[dict[str, Any]]:
    for line in shared("data/fhir/cds_hooks_examples.ndjson").read_bytes().splitlines():
        body = orjson.loads(line)["body"]
        if isinstance(body, dict) and isinstance(body.get("prefetch"), dict):
            yield body


def test_prefetch_of_the_cds_hooks_pages() -> None:
    outcomes: Counter[str] = Counter()
    for body in hook_requests():
        context = body.get("context")
        patient_id = str(context.get("patientId") if isinstance(context, dict) else "") or "unknown"
        try:
            read_prefetch(body["prefetch"], patient_id=patient_id)
            outcomes["read"] += 1
        except EhrError:
            outcomes["refused"] += 1
    assert outcomes.total() > 0
