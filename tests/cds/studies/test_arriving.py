"""Files in an inbox get their rows many at once; what one by one would be refused is refused all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pydicom.uid import generate_uid

from cds.audit.models import AuditEvent
from cds.patients.models import SetAside
from cds.studies import arriving, clips, receiving
from cds.studies.models import Instance, Series, Study
from tests.cds.dicom_files import write_radiograph
from tests.factories import NOW, TESTS, make_source

pytestmark = pytest.mark.django_db


def arrive(folder: Path, count: int, **changes: Any) -> list[arriving.Arrived]:
    """`count` instances of one Series, as they lie in an inbox below the store."""
    inbox = folder / "studies" / ".inbox"
    found = []
    for number in range(count):
        path = inbox / f"{generate_uid()}.dcm"
        elements: dict[str, Any] = {"SOPInstanceUID": generate_uid(), **changes}
        write_radiograph(path, seed=number, **elements)
        found.append(arriving.Arrived(path, receiving.inspect(path), "C-STORE from CT1"))
    return found


def record(arrivals: list[arriving.Arrived]) -> list[str]:
    done = arriving.record_arrivals(arrivals, source=make_source(), by=TESTS, now=NOW)
    return [one.outcome for one in done]


@pytest.fixture(autouse=True)
def _store(settings: object, tmp_path: Path) -> None:
    settings.STUDY_STORE = tmp_path / "studies"  # type: ignore[attr-defined]


def test_a_series_is_recorded_at_once_with_an_event_for_each(tmp_path: Path) -> None:
    arrivals = arrive(tmp_path, 20)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert record(arrivals) == ["new"] * 20
    assert len(queries) < 40, "not a handful for each file"
    assert (Study.objects.count(), Series.objects.count(), Instance.objects.count()) == (1, 1, 20)
    assert {one.detail["instance"] for one in AuditEvent.objects.filter(action="instance.receive")} == {
        one.found.header.sop_uid for one in arrivals
    }
    assert all(clips.path_of(one.path).is_file() for one in Instance.objects.all())
    assert not any(one.path.exists() for one in arrivals), "they went to their places"


def test_one_that_contradicts_is_set_aside_and_the_others_are_kept(tmp_path: Path) -> None:
    mine = arrive(tmp_path, 3)
    theirs = arrive(tmp_path, 2, PatientID="SOMEBODY-ELSE")
    elsewhere = arrive(tmp_path, 2, StudyInstanceUID="1.2.3.4")
    outcomes = record(mine + theirs + elsewhere)
    assert outcomes == ["new"] * 3 + ["set-aside"] * 4
    reasons = " ".join(SetAside.objects.values_list("reason", flat=True))
    assert "PatientID differs" in reasons
    assert "belongs to another Study" in reasons
    assert Instance.objects.count() == 3
    assert Study.objects.count() == 1, "a Study that only a refused file named is not kept"


def test_the_same_twice_in_one_batch_is_one_and_other_pixels_are_set_aside(tmp_path: Path) -> None:
    uid = generate_uid()
    (first, second) = arrive(tmp_path, 2, SOPInstanceUID=uid)  # other pixels
    (again,) = arrive(tmp_path, 1, SOPInstanceUID=uid)  # the pixels of the first
    assert record([*arrive(tmp_path, 3), first, second, again]) == ["new"] * 4 + ["set-aside", "duplicate"]
    assert record([again]) == ["duplicate"]
    assert Instance.objects.count() == 4
