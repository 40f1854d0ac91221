"""Recent inputs beside training: reports are made by a worker, kept as counts, and read without torch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from cds.jobs import leases
from cds.registry import loading
from cds.registry.models import ModelVersion
from cds.risk import assessing, monitoring, scoring, shifts
from cds.risk.models import ShiftReport
from cds.studies import receiving
from tests.cds.registry import ward
from tests.cds.registry.rows import make_version
from tests.factories import NOW, TESTS

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> ModelVersion:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"
    ward.learn_once(monkeypatch)
    ward.fill()
    return ward.train_and_activate()


def score(version: ModelVersion, count: int) -> None:
    at = timezone.now()
    for number in range(200, 200 + count):
        patient = ward.admit(number, sick=True, stays_open=True, at=at - timedelta(minutes=number))
        for study in patient.studies.all():
            scoring.encode(receiving.request_encoding(study, now=NOW).pk)
        patient.refresh_from_db()
        scoring.score(assessing.request(patient, version, by=TESTS, now=at).pk)


def test_a_shifted_input_is_reported_once_a_patient(version: ModelVersion) -> None:
    """The ward it learned from had two in five sick; all of these are, and nobody is at home."""
    score(version, 22)
    assert monitoring.watch_inputs(now=timezone.now()) == 1
    report = ShiftReport.objects.get()
    assert report.scores == 22
    assert {one["name"] for one in report.inputs} >= {"age", "lactate"}
    seen = shifts.newest_shift(version)
    assert seen is not None
    assert seen.scores == 22
    assert all(row.word in shifts.WORDS.values() for row in seen.rows)
    severities = [{"red": 0, "amber": 1, "steady": 2, "too few": 3}[row.band] for row in seen.rows]
    assert severities == sorted(severities), "what has shifted comes first"


def test_few_patients_are_too_few_and_none_make_no_report(version: ModelVersion) -> None:
    assert monitoring.compare(version, now=NOW) is None
    score(version, 2)
    report = monitoring.compare(version, now=NOW)
    assert report is not None
    assert {one["band"] for one in report.inputs} == {"too few"}


def test_only_the_latest_reports_are_kept(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "KEPT", 2)
    score(version, 1)
    for hours in range(4):
        monitoring.compare(version, now=NOW + timedelta(hours=hours))
    kept = ShiftReport.objects.order_by("at").values_list("at", flat=True)
    assert list(kept) == [NOW + timedelta(hours=2), NOW + timedelta(hours=3)]


def test_a_model_without_a_summary_is_not_compared(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.get_bundle(version), "summary", None)
    assert monitoring.compare(version, now=NOW) is None
    assert shifts.newest_shift(version) is None


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (None, ""),
        ({"pictures": 5, "p": None, "effect": None, "band": "too few"}, "5 are too few to compare"),
        ({"pictures": 80, "p": 0.4, "effect": 0.2, "band": "steady"}, "as chance would have it"),
        (
            {"pictures": 80, "p": 1e-9, "effect": 2.1, "band": "red"},
            "strongly shifted. Means of 80 pictures lie 2.1",
        ),
    ],
)
def test_pictures_in_words(pictures: Any, words: str) -> None:
    version = make_version()
    ShiftReport.objects.create(version=version, at=NOW, scores=80, inputs=[], pictures=pictures)
    seen = shifts.newest_shift(version)
    assert seen is not None
    assert words in seen.pictures
