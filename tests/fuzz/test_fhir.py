# ruff: noqa: E501 - odd values are read by row
"""FHIR: sound resources bent in a few places, and JSON of any kind, through the door of a hospital."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ehr
from cds import ingesting
from cds.errors import ClinicError
from cds.patients import rows
from cds.patients.models import Patient, SetAside
from tests.cds.research.planting import Planter, plant_bundle
from tests.ehr.fhir.test_parser_laws import JSON, RESOURCES
from tests.factories import NOW, TESTS, make_source
from tests.fuzz.examples import SEEDS, few, forgotten, many
from tests.shared import SHARED

pytestmark = pytest.mark.django_db
NAMES = ehr.Pseudonyms(b"f" * 32)
EVERYTHING = ehr.Keeping(characteristics=True, notes=True, genomics=True)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**70, float("nan"), "", " ", "x", "x" * 5000, "\ud800", "\0", "9" * 400, "é\u202e",
    [], {}, [[]], [{}], [None], {"a": 1}, {"coding": {}}, {"coding": [{"code": 1}]}, {"reference": "#c"}, {"reference": []},
    "2024", "2024-13-45", "0000-00-00", "2024-02-30T25:61:00Z", "9999-12-31", "Patient/", "Patient/x/y", "urn:uuid:", "http://",
    "final", "entered-in-error", "text/html", "AAAA", "A", "%%%", "Patient", "Bundle", "Observation", "http://loinc.org", "8480-6",
)  # fmt: skip


def _corpus() -> list[dict[str, Any]]:
    """One sound resource of each kind we read, and some real ones where the shared data are."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    plant_bundle(Planter(), 0, folder)
    (made,) = folder.iterdir()
    found = [entry["resource"] for entry in json.loads(made.read_text())["entry"]]
    made.unlink()
    folder.rmdir()
    seen: Counter[str] = Counter()
    for path in sorted((SHARED / "data" / "fhir").rglob("*.json"))[:20]:
        try:
            entries = json.loads(path.read_bytes()).get("entry", [])
        except (ValueError, AttributeError):
            continue
        for entry in entries:
            resource = entry.get("resource", {})
            seen[kind := str(resource.get("resourceType"))] += 1
            if resource and seen[kind] <= 3 and len(json.dumps(resource)) < 20_000:
                found.append(resource)
    return found


CORPUS = _corpus()


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [at] if at else []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        found += places(inner, (*at, key))
    return found


def bent(seed: int) -> list[dict[str, Any]]:
    """One to three sound resources, of each of which one to four places are broken."""
    chance = random.Random(seed)
    return [_bent(chance) for _ in range(chance.randint(1, 3))]


def _bent(chance: random.Random) -> dict[str, Any]:
    resource: dict[str, Any] = copy.deepcopy(chance.choice(CORPUS))
    for _ in range(chance.randint(1, 4)):
        known = places(resource)
        if not known:
            break
        *way, last = chance.choice(known)
        parent: Any = resource
        for key in way:
            parent = parent[key]
        match chance.choice(
            ("remove", "replace", "replace", "replace", "double", "nest", "rename", "borrow")
        ):
            case "remove":
                del parent[last]
            case "replace":
                parent[last] = copy.deepcopy(chance.choice(ODD))
            case "double":
                parent[last] = [copy.deepcopy(parent[last]) for _ in range(chance.choice((2, 50)))]
            case "nest":
                for _ in range(chance.choice((1, 3, 200))):
                    parent[last] = [parent[last]] if chance.random() < 0.5 else {"contained": [parent[last]]}
            case "rename" if isinstance(parent, dict):
                parent[chance.choice(("id", "code", "value", "valueString", "text", "x"))] = parent.pop(last)
            case _:
                other = chance.choice(CORPUS)
                parent[last] = copy.deepcopy(other[chance.choice(sorted(other))])
    return resource


def check(items: list[Any], folder: Path) -> None:
    """Taken or set aside, whole or not at all, and the second time nothing new."""
    path = folder / "all.ndjson"
    with path.open("wb") as file:
        for item in items:
            file.write(
                json.dumps(item).encode() + b"\n"
            )  # lone surrogates as escapes, NaN as servers write it
    with forgotten():
        source = make_source()
        try:
            tally = ingesting.ingest_fhir(path, source=source, by=TESTS, now=NOW)
        except (ClinicError, ehr.EhrError):
            assert not Patient.objects.exists(), "refused, and yet something was written"
            return
        assert Patient.objects.count() == tally.patients or tally.patients > Patient.objects.count() > 0
        held = Counter({kind.model.__name__: kind.model._default_manager.count() for kind in rows.KINDS})
        if not tally.patients:
            assert not held.total(), "no record was taken, and yet something was written"
        aside = SetAside.objects.count()
        assert all(item.reason for item in tally.refused)
        again = ingesting.ingest_fhir(path, source=source, by=TESTS, now=NOW)
        assert SetAside.objects.count() == aside
        after = Counter({kind.model.__name__: kind.model._default_manager.count() for kind in rows.KINDS})
        assert after == held, "the same once more changed what is held"
        assert not again.changed, "the same once more counts as a change"


@many
@given(seed=SEEDS)
def test_bent_resources_are_read_or_set_aside(seed: int) -> None:
    items = bent(seed)
    tally = ehr.ReadingTally()
    records = ehr.read_resources([(f"t{place}", one) for place, one in enumerate(items)], tally=tally)
    assert all(one.reason for record in records for one in record.set_aside)
    assert tally.total <= 60 * len(items)
    for record in records:
        copied = ehr.deidentify_record(record, who="w", names=NAMES, keeping=EVERYTHING)
        assert ehr.read_resources([("copy", one) for one in copied.resources])


@many
@given(seed=SEEDS)
def test_a_bent_prefetch_is_read_or_refused(seed: int) -> None:
    with contextlib.suppress(ehr.EhrError):
        ehr.read_prefetch({f"k{place}": one for place, one in enumerate(bent(seed))}, patient_id="p1")


@few
@given(items=st.lists(st.one_of(RESOURCES, JSON), max_size=4))
def test_any_json_is_read_or_set_aside(items: list[Any]) -> None:
    for record in ehr.read_resources([(f"t{place}", one) for place, one in enumerate(items)]):
        assert all(one.reason for one in record.set_aside)


@few
@given(seed=SEEDS)
def test_bent_resources_are_taken_whole_or_set_aside(tmp_path_factory: Any, seed: int) -> None:
    check(bent(seed), tmp_path_factory.getbasetemp())


@few
@given(items=st.lists(st.one_of(RESOURCES, JSON), max_size=4))
def test_any_json_is_taken_whole_or_set_aside(tmp_path_factory: Any, items: list[Any]) -> None:
    check(items, tmp_path_factory.getbasetemp())
