"""A folder sorted by patient: pieces, their digests, what others point to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ehr import Piece, ReadingTally, read_pieces, sort_folder
from ehr.fhir import sorting
from tests.ehr.fhir.resources_for_tests import observation, patient

DRUG = {"resourceType": "Medication", "id": "d1", "code": {"text": "aspirin"}}
ORDER = {
    "resourceType": "MedicationRequest", "id": "m1", "status": "active", "authoredOn": "2026-01-01",
    "subject": {"reference": "Patient/p1"}, "medicationReference": {"reference": "Medication/d1"},
}  # fmt: skip


def write(path: Path, *resources: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in resources))


def pieces(folder: Path, scratch: Path) -> list[Piece]:
    scratch.mkdir()
    laid_out = sort_folder(folder, scratch)
    return [piece for bucket in laid_out.buckets for piece in read_pieces(laid_out, bucket)]


def digests(folder: Path, scratch: Path) -> list[str]:
    return sorted(piece.digest for piece in pieces(folder, scratch))


def test_each_patient_is_one_piece_whatever_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "BUCKET_BYTES", 100)
    monkeypatch.setattr(sorting, "HELD_BYTES", 1)
    numbers = [f"p{number}" for number in range(20)]
    write(tmp_path / "in" / "Patient.ndjson", *(patient(id=number) for number in numbers))
    for name in ("a", "b"):
        write(
            tmp_path / "in" / f"Observation-{name}.ndjson",
            *(observation(id=f"{name}-{one}", subject={"reference": f"Patient/{one}"}) for one in numbers),
        )
    found = pieces(tmp_path / "in", tmp_path / "scratch")
    records = [record for piece in found for record in piece.read(ReadingTally())]
    assert sorted(record.patient.resource_id for record in records) == sorted(numbers)
    assert all(len(record.observations) == 2 and not record.patient.is_stub for record in records)
    assert len({piece.digest for piece in found}) == 20


def test_a_digest_changes_with_what_is_said_and_with_what_is_pointed_to(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "Medication.ndjson", DRUG)
    write(folder / "MedicationRequest.ndjson", ORDER)
    first = digests(folder, tmp_path / "1")
    assert digests(folder, tmp_path / "2") == first
    (record,) = pieces(folder, tmp_path / "3")[0].read(ReadingTally())
    assert record.medications[0].code.code == "aspirin"
    write(folder / "Medication.ndjson", DRUG | {"code": {"text": "warfarin"}})
    assert digests(folder, tmp_path / "4") != first
    write(folder / "Medication.ndjson", DRUG)
    write(folder / "MedicationRequest.ndjson", ORDER | {"status": "stopped"})
    assert digests(folder, tmp_path / "5") != first


def test_another_reader_reads_everything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "Patient.ndjson", patient())
    first = digests(tmp_path / "in", tmp_path / "1")
    monkeypatch.setattr(sorting, "reader_fingerprint", lambda: "newer")
    assert digests(tmp_path / "in", tmp_path / "2") != first


def test_what_is_nobodys_has_no_digest(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.ndjson", {"resourceType": "Observation", "id": "o1"}, patient())
    found = pieces(tmp_path / "in", tmp_path / "1")
    assert sorted(bool(piece.digest) for piece in found) == [False, True]
