"""FHIR: sound resources bent in a few places, and JSON of any kind, through the door of a hospital."""

from __future__ import annotations

import copy
import json
import os
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
from tests.ehr.fhir.test_parser_laws import JSON, LEAVES, RESOURCES
from tests.factories import NOW, TESTS, make_source
from tests.fuzz.examples import forgotten, many
from tests.shared import SHARED

pytestmark = pytest.mark.django_db
ODD = st.one_of(
    LEAVES,
    JSON,
    st.sampled_from(
        ["x" * 5000, "\ud800", "\0", "9" * 400, [[]], [{}], {}, [None], -1, 1e308, 2**70, "é\u202e"]
    ),
)


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
            if seen[kind] <= 3 and len(json.dumps(resource)) < 20_000:
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


@st.composite
def bent(draw: st.DrawFn) -> dict[str, Any]:
    """A sound resource, of which one to four places are removed, replaced, doubled, nested or renamed."""
    resource: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(CORPUS)))
    for _ in range(draw(st.integers(1, 4))):
        known = places(resource)
        if not known:
            break
        *way, last = known[draw(st.integers(0, len(known) - 1))]
        parent: Any = resource
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(["remove", "replace", "replace", "double", "nest", "rename", "borrow"])):
            case "remove":
                del parent[last]
            case "replace":
                parent[last] = draw(ODD)
            case "double":
                parent[last] = [copy.deepcopy(parent[last])] * draw(st.sampled_from([2, 50]))
            case "nest":
                for _ in range(draw(st.sampled_from([3, 200]))):
                    parent[last] = draw(st.sampled_from([{"contained": [parent[last]]}, [parent[last]]]))
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(["id", "code", "value", "valueString", "text", "x"]))] = (
                    parent.pop(last)
                )
            case "borrow":
                other = draw(st.sampled_from(CORPUS))
                parent[last] = copy.deepcopy(other[draw(st.sampled_from(sorted(other)))])
            case _:
                pass
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
@given(items=st.lists(bent(), min_size=1, max_size=3))
def test_bent_resources_are_taken_whole_or_set_aside(tmp_path_factory: Any, items: list[Any]) -> None:
    folder: Path = tmp_path_factory.getbasetemp()
    check(items, folder)


@many
@given(items=st.lists(st.one_of(RESOURCES, JSON), max_size=4))
def test_any_json_is_taken_whole_or_set_aside(tmp_path_factory: Any, items: list[Any]) -> None:
    check(items, tmp_path_factory.getbasetemp())
