"""A thousand identifiers are planted; whoever reads the copy, unpacked and decoded, finds none of them."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cds import ingesting
from cds.patients.models import Patient
from cds.studies.models import Instance
from tests.cds.research.planting import Planter, plant_bundle, plant_instance
from tests.factories import NOW, TESTS, make_source, make_user

pytestmark = pytest.mark.django_db
LEAST = 1000


@pytest.fixture
def planter(tmp_path: Path) -> Planter:
    """Three patients, in through the front door."""
    planter = Planter()
    fhir, dicom = tmp_path / "in" / "fhir", tmp_path / "in" / "dicom"
    fhir.mkdir(parents=True)
    dicom.mkdir()
    for number in range(3):
        mrn = plant_bundle(planter, number, fhir)
        plant_instance(planter, mrn, dicom, jpeg=bool(number % 2))
    source = make_source()
    ingesting.ingest_fhir(fhir, source=source, by=TESTS, now=NOW)
    ingesting.ingest_dicom(dicom, source=source, by=TESTS, now=NOW)
    assert Patient.objects.count() == 3
    assert Instance.objects.filter(series__study__patient__isnull=False).count() == 3
    assert len(planter.planted) >= LEAST
    return planter


def export(folder: Path, *options: str) -> dict[str, Any]:
    call_command("export_research", str(folder), "--source", "ward", "--as", "curator", *options)
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def everything_readable(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files; what is base64 or deflated in them, also unpacked."""
    for path in sorted(folder.rglob("*")):
        yield f"name of {path.name}", str(path.relative_to(folder)).encode()
        if not path.is_file():
            continue
        content = path.read_bytes()
        yield path.name, content
        yield f"{path.name} in UTF-16", content.decode("utf-16-le", "ignore").encode()
        for found in re.findall(rb"[A-Za-z0-9+/]{12,}={0,2}", content):
            if len(found) % 4 == 0:
                yield f"{path.name} base64", base64.b64decode(found)
        for start in (match.start() for match in re.finditer(rb"\x78[\x01\x9c\xda]|\x1f\x8b", content)):
            try:
                yield f"{path.name} inflated", zlib.decompressobj(47).decompress(content[start:], 1 << 20)
            except zlib.error:
                continue


def survivors(planter: Planter, folder: Path) -> list[str]:
    wanted = re.compile("|".join(map(re.escape, planter.planted)).encode(), re.IGNORECASE)
    spelled = {name.lower(): place for name, place in planter.planted.items()}
    return sorted(
        {
            f"{spelled.get(found.decode().lower(), '?')} in {where}"
            for where, content in everything_readable(folder)
            for found in wanted.findall(content)
        }
    )


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--keep", "characteristics", "--keep", "notes", "--keep", "genomics", "--keep", "unchecked-pixels"),
    ],
    ids=["nothing kept", "everything kept"],
)
def test_of_a_thousand_planted_identifiers_none_survives(
    planter: Planter, tmp_path: Path, options: tuple[str, ...]
) -> None:
    make_user("admin", name="curator")
    folder = tmp_path / "copy"
    manifest = export(folder, *options)
    assert manifest["counts"]["instances"] == 3
    assert manifest["counts"]["patients"] == 3
    assert survivors(planter, folder) == []
    held = json.loads((folder / "fhir" / "records-0001.ndjson").read_text().splitlines()[0])
    assert held["resourceType"] == "Patient"
    with (folder / "files.csv").open() as table:
        for row in csv.DictReader(table):
            content = (folder / row["path"]).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (row["sha256"], int(row["bytes"]))


def test_the_search_itself_finds_what_is_there(planter: Planter, tmp_path: Path) -> None:
    """The originals, searched the same way, show nearly all of them: an empty result means something."""
    found = {line.split(" in ")[0] for line in survivors(planter, tmp_path / "in")}
    assert len(found) > 0.9 * len(set(planter.planted.values()))
