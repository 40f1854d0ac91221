# ruff: noqa: E501 - tables are read by row
"""References, Bundles, folders, tallies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ehr import BadResource, ReadingTally, read_fhir_folder
from ehr.fhir import reading, sorting
from tests.ehr.fhir.resources_for_tests import (
    all_set_aside,
    observation,
    patient,
    read_all,
    read_one,
    reasons,
)

UUID = "urn:uuid:0b7cf2c8-4f2f-4d36-9fd2-6a0a1d2a5a3e"


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1",
        "https://ehr.example/fhir/Patient/p1",
        "Patient/p1/_history/3",
        "http://x/y/Patient/p1/_history/2",
    ],
)
def test_ways_to_name_a_patient(reference: str) -> None:
    assert len(read_one(observation(subject={"reference": reference})).observations) == 1


def transaction(**subject: Any) -> dict[str, Any]:
    who = patient()
    who.pop("id")
    entries = [
        {"fullUrl": UUID, "resource": who},
        {"fullUrl": "urn:uuid:2", "resource": observation(subject=subject)},
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def test_a_transaction_bundle_names_its_patient_by_uuid() -> None:
    (record,) = read_all(transaction(reference=UUID))
    assert record.patient.resource_id == UUID.removeprefix("urn:uuid:")
    assert not record.patient.is_stub
    assert len(record.observations) == 1


def test_a_resource_without_id_gets_the_same_one_each_time() -> None:
    nameless = observation()
    nameless.pop("id")
    first, second = (read_one(nameless).observations[0].resource_id for _ in range(2))
    assert first == second
    assert first.startswith("sha256-")
    assert read_one(nameless | {"status": "amended"}).observations[0].resource_id != first


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ({"reference": "#p"}, "contained resource"),
        ({"reference": "urn:uuid:unknown"}, "is not in the Bundle"),
        ({"reference": "Patient?identifier=1"}, "is not in the Bundle"),
        ({"identifier": {"value": "1"}}, "no literal reference"),
        (None, "Observation names no patient"),
        (7, "Observation.subject must be an object"),
    ],
)
def test_whose_it_is_must_be_told(subject: Any, reason: str) -> None:
    (item,) = all_set_aside(observation(subject=subject))
    assert reason in item.reason
    assert item.identity == "o1"


def test_one_bad_resource_does_not_stop_the_rest() -> None:
    bundle = {"resourceType": "Bundle", "entry": [
        {"resource": patient()}, {"resource": {"resourceType": "Observation"}}, {"resource": 7}, {"resource": {}},
        {}, {"resource": {"resourceType": "Claim"}}, {"resource": observation()}]}  # fmt: skip
    tally = ReadingTally()
    records = {record.patient.resource_id: record for record in read_all(bundle, tally=tally)}
    assert len(records["p1"].observations) == 1
    assert [item.where for item in records[""].set_aside] == [
        "test#0#entry[2]",
        "test#0#entry[1]",
        "test#0#entry[3]",
    ]
    assert tally.ignored == {"Claim": 1, "Bundle.entry (no resource)": 1}
    assert tally.read == {"Patient": 1, "Observation": 1}
    assert tally.total == 7


def test_bundles_within_bundles_come_to_an_end() -> None:
    bundle: dict[str, Any] = observation()
    for _ in range(3):
        bundle = {"resourceType": "Bundle", "entry": [{"resource": bundle}]}
    assert len(read_one(bundle).observations) == 1
    for _ in range(50):
        bundle = {"resourceType": "Bundle", "entry": [{"resource": bundle}]}
    assert reasons(bundle) == ["Bundles nested deeper than 4"]


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    bundle = {"resourceType": "Bundle", "entry": [{"resource": patient(id="b")}]}
    lines = b"\xef\xbb\xbf" + b"\n".join(
        [
            json.dumps(observation()).encode(),
            b"",
            b"not json",
            b"[1]",
            json.dumps(observation(id="o2")).encode(),
        ]
    )
    write(tmp_path / "bundle.json", json.dumps(bundle).encode())
    write(tmp_path / "deep" / "Observation.000.ndjson.gz", lines)
    write(tmp_path / "Patient.000.ndjson", json.dumps(patient()).encode())
    write(tmp_path / "single.json.gz", json.dumps(observation(id="o3")).encode())
    write(tmp_path / "broken.json", b"{")
    write(tmp_path / "list.json", b"[]")
    write(tmp_path / "notes.txt", b"hello")
    (tmp_path / "truncated.json.gz").write_bytes(gzip.compress(b"{}" * 5000)[:-12])
    (tmp_path / "not-gzip.ndjson.gz").write_bytes(b"plain")
    write(tmp_path / "deep.json", b"[" * 100_000)
    tally = ReadingTally()
    records = {record.patient.resource_id: record for record in read_fhir_folder(tmp_path, tally=tally)}
    assert not records["p1"].patient.is_stub
    assert sorted(found.resource_id for found in records["p1"].observations) == ["o1", "o2", "o3"]
    assert set(records) == {"p1", "b", ""}
    said = {item.where: item.reason for item in records[""].set_aside}
    assert said.keys() == {"deep/Observation.000.ndjson.gz:3", "deep/Observation.000.ndjson.gz:4", "broken.json", "list.json",
                           "truncated.json.gz", "not-gzip.ndjson.gz", "deep.json"}  # fmt: skip
    assert said["broken.json"].startswith("not JSON")
    assert "cannot be read" in said["truncated.json.gz"]
    assert tally.ignored == {"file *.txt": 1}
    assert not any(str(tmp_path) in reason for reason in said.values()), (
        "a machine's paths do not belong here"
    )


def test_a_large_export_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH", 10)
    write(tmp_path / "Patient.ndjson", json.dumps(patient()).encode())
    lines = (json.dumps(observation(id=f"o{i}")) for i in range(35))
    write(tmp_path / "Observation.ndjson", "\n".join(lines).encode())
    records = list(read_fhir_folder(tmp_path))
    assert [record.patient.is_stub for record in records] == [False, True, True, True]
    assert sum(len(record.observations) for record in records) == 35


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "MAX_LINE_BYTES", 1000)
    write(tmp_path / "big.json.gz", b" " * 100_000 + b"{}")
    write(tmp_path / "lines.ndjson", b"x" * 5000 + b"\n" + json.dumps(observation()).encode())
    records = {r.patient.resource_id: r for r in read_fhir_folder(tmp_path, max_file_bytes=50_000)}
    assert sorted(item.reason for item in records[""].set_aside) == [
        "a line larger than 1000 bytes",
        "larger than 50000 bytes",
    ]
    assert len(records["p1"].observations) == 1, "the line after the long one is read"


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    write(outside, json.dumps(patient()).encode())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.json").symlink_to(outside)
    (record,) = read_fhir_folder(tmp_path / "in")
    assert record.set_aside[0].reason == "a link that leads out of the folder"


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(BadResource, match="no such"):
        list(read_fhir_folder(tmp_path / "absent"))
