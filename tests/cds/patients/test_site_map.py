"""CODE_MAP on every way in, and what happens when it cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

import ehr
from cds.errors import Unavailable
from cds.patients import code_map, importing
from cds.patients.models import Observation
from tests.factories import NOW, TESTS, make_record, make_source, observation
from tests.hospital import Hospital, a_patient, a_pressure

pytestmark = pytest.mark.django_db
LINE = "system,code,target_system,target_code,unit\nurn:house,RR-S,LOINC,8480-6,mm[Hg]\n"


def house_pressure() -> dict[str, Any]:
    code = {"coding": [{"system": "urn:house", "code": "RR-S", "display": "RR systolisch"}]}
    return a_pressure("o1") | {"code": code, "valueQuantity": {"value": 120, "unit": "Torr."}}


@pytest.fixture
def table(settings: Any, tmp_path: Path) -> Path:
    path = tmp_path / "codes.csv"
    path.write_text(LINE)
    settings.CODE_MAP, settings.DATA_DIR = path, tmp_path
    return path


def kept() -> tuple[str, str, list[str]]:
    row = Observation.objects.get()
    return row.code, row.unit, row.also


@pytest.mark.parametrize("way", ["--fhir", "--bulk", "folder"])
def test_from_server_export_and_folder(table: Path, tmp_path: Path, way: str) -> None:
    with Hospital() as hospital:
        hospital.put(a_patient(), house_pressure())
        where, option = hospital.base, way
        if way == "folder":
            where, option = str(tmp_path / "in"), "--fhir"
            (tmp_path / "in").mkdir()
            (tmp_path / "in" / "o.ndjson").write_text(
                "\n".join(json.dumps(one) for one in (a_patient(), house_pressure()))
            )
        call_command("ingest", option, where, "--source", "ward")
    assert kept() == ("8480-6", "mm[Hg]", ["urn:house|RR-S"])


def test_from_a_hook(table: Path) -> None:
    sent = ehr.read_prefetch({"patient": a_patient(), "labs": house_pressure()}, patient_id="p1")
    importing.import_record(sent, source=make_source(), by=TESTS, now=NOW)
    assert kept()[0] == "8480-6"


def test_another_table_is_another_reading(table: Path) -> None:
    code = ehr.OtherCode("RR-S", "", "urn:house")
    record = make_record("p1", observations=[observation("8480-6", 120, "", code=code, resource_id="o1")])
    importing.import_record(record, source=make_source(), by=TESTS, now=NOW)
    table.write_text(LINE.replace("8480-6", "8462-4") + "\n")
    again = importing.import_record(record, source=make_source(), by=TESTS, now=NOW)
    assert again.changed
    assert kept()[0] == "8462-4"


def test_a_table_that_cannot_be_used_stops_the_way_in(table: Path) -> None:
    table.write_text("nonsense")
    with pytest.raises(Unavailable, match="line 1: no column system"):
        importing.import_record(make_record(), source=make_source(), by=TESTS, now=NOW)
    assert [one.id for one in code_map.check_site_map(None)] == ["tessera.E001"]


def test_the_command_names_lines_and_columns(table: Path, capsys: Any) -> None:
    call_command("code_map", "check")
    assert "1 codes: 1 to Loinc" in capsys.readouterr().out
    table.write_text(LINE.replace("8480-6", "8480-7"))
    with pytest.raises(CommandError, match="line 2, column target_code"):
        call_command("code_map", "check", str(table))
