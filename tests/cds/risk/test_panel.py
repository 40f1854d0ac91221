"""The panel: what is on the screen equals the stored prediction, with all that must stand beside it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.contrib.auth.models import User

from cds.audit import recording
from cds.errors import NotFound
from cds.registry.models import ModelVersion
from cds.risk import queries, responding
from cds.risk.models import HeatMap
from cds.risk.seen import OutcomePanel
from cds.risk.standing import DataState
from tests.cds.registry.rows import make_series, make_version
from tests.cds.risk.scores import say, score_by_hand
from tests.factories import NOW, make_patient, make_user, note, observation

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


@pytest.fixture
def nurse() -> User:
    return make_user("clinician", units=("Ward 3",))


@pytest.fixture
def version() -> ModelVersion:
    auroc = {"value": 0.8, "low": 0.7, "high": 0.9}
    return make_version(
        metadata={"cohort_counts": {"patients": 120}},
        report={"outcomes": {"icu-admission": {"auroc": auroc}}},
    )


def only(nurse: User, patient: Any, *, now: Any = NOW) -> OutcomePanel:
    patient.refresh_from_db()
    [outcome] = queries.panel(nurse, patient, now=now).outcomes
    return outcome


def test_the_numbers_are_those_stored(nurse: User, version: ModelVersion) -> None:
    patient = make_patient(unit="Ward 3")
    stored = score_by_hand(patient, version, say(risk=0.2345)).predictions.get()
    seen = only(nurse, patient)
    assert seen.answer is not None
    assert (seen.answer.risk, seen.answer.low, seen.answer.high) == (stored.risk, stored.low, stored.high)
    assert (
        seen.answer.sentence == "23 in 100 patients like this are admitted to intensive care within 14 days"
    )
    assert (seen.answer.category_word, seen.answer.base_rate, seen.answer.threshold) == (
        "Moderate",
        0.2,
        0.25,
    )
    total = seen.answer.base_rate + sum(one.points for one in seen.contributions)
    assert total == pytest.approx(seen.answer.risk)
    assert (seen.state, seen.model.auroc, seen.model.trained_patients) == (
        DataState.CURRENT,
        (0.8, 0.7, 0.9),
        120,
    )
    assert "Cine" in seen.missing_modalities
    assert seen.missing_fields == ("Lactate",)
    assert "Not available: cine" in seen.freshness


def test_a_driver_leads_to_its_raw_values(nurse: User, version: ModelVersion) -> None:
    values = [
        observation(
            "8867-4",
            90.0 + hours,
            "/min",
            at=NOW - hours * HOUR,
            resource_id=f"hr{hours}",
            low=60.0,
            high=100.0,
        )
        for hours in range(3)
    ]
    patient = make_patient(unit="Ward 3", observations=values)
    score_by_hand(
        patient,
        version,
        say(drivers=[
            {"modality": "tabular", "name": "age", "label": "Age", "points": 0.01, "value": 75.0, "unit": "a",
             "hours_before": None, "text": "", "key": ""},
            {"modality": "series", "name": "heart_rate", "label": "Heart rate", "points": -0.05,
             "value": 90.0, "unit": "/min", "hours_before": 0.0, "text": "", "key": ""},
        ]),
    )  # fmt: skip
    first, second = only(nurse, patient).drivers
    assert (first.name, second.name) == ("heart_rate", "age")
    assert [raw.value for raw in first.raw] == [90.0, 91.0, 92.0]
    assert first.raw[0].resource == "Observation/hr0"
    assert (first.reference_low, first.reference_high, first.at) == (60.0, 100.0, NOW)
    assert second.raw == ()


def test_sentences_of_notes_come_with_author_and_strength(nurse: User, version: ModelVersion) -> None:
    patient = make_patient(unit="Ward 3", notes=[note("Worse today.", author="Dr A")])
    key = patient.notes.get().text_digest
    hit = {
        "modality": "text",
        "name": "note",
        "label": "Note",
        "points": 0.05,
        "text": "Worse today.",
        "key": key,
    }
    score_by_hand(patient, version, say(drivers=[hit]))
    seen = only(nurse, patient)
    assert seen.drivers == ()
    assert [(one.text, one.author, one.strong) for one in seen.notes] == [("Worse today.", "Dr A", True)]


def test_images_with_heat_map_and_frame_weights(
    nurse: User, version: ModelVersion, settings: Any, tmp_path: Path
) -> None:
    settings.STUDY_STORE = tmp_path
    patient = make_patient(unit="Ward 3")
    still = make_series(patient, NOW - HOUR)
    cine = make_series(patient, NOW - 2 * HOUR, modality="US", frames=8, frame_ms=40.0)
    make_series(patient, NOW + HOUR)  # taken after the score
    scored = score_by_hand(
        patient,
        version,
        basis=[{"type": "ImagingStudy", "id": still.study.study_uid}],
        frame_weights={cine.pixels_digest: {"indices": [0, 4], "weights": [0.25, 0.75]}},
    )
    np.save(tmp_path / "map.npy", np.full((4, 4), 0.5, np.float16))
    held = HeatMap.objects.create(
        prediction=scored.predictions.get(),
        series=still,
        method="grad-cam",
        path="map.npy",
        sanity={"passed": True},
        created_at=NOW,
    )
    seen = only(nurse, patient)
    [image], [clip] = seen.images, seen.cines
    assert (image.series_id, image.used) == (str(still.pk), True)
    assert image.heat_map is not None
    assert image.heat_map.passed is True
    assert clip.weights == ((0, 0.25), (4, 0.75))
    assert queries.heat_map_values(queries.find_heat_map(nurse, held.pk)).shape == (4, 4)
    with pytest.raises(NotFound):
        queries.find_heat_map(make_user("clinician"), held.pk)


def test_trend_marks_a_new_model_and_answers(nurse: User, version: ModelVersion) -> None:
    patient = make_patient(unit="Ward 3")
    score_by_hand(patient, version, say(risk=0.1), now=NOW - 20 * HOUR)
    second = make_version(number=2)
    scored = score_by_hand(patient, second, say(risk=0.3))
    responding.acknowledge(scored.predictions.get(), by=recording.person(nurse), user=nurse, now=NOW)
    points = only(nurse, patient).trend
    assert [(point.risk, point.new_version, point.response) for point in points] == [
        (0.1, False, ""), (0.3, True, "acknowledged")
    ]  # fmt: skip


def test_what_people_answered(nurse: User, version: ModelVersion) -> None:
    patient = make_patient(unit="Ward 3")
    prediction = score_by_hand(patient, version).predictions.get()
    responding.override(
        prediction, reason_code="patient-refuses", by=recording.person(nurse), user=nurse, now=NOW
    )
    latest = only(nurse, patient).response
    assert latest is not None
    assert (latest.kind, latest.reason, latest.by) == ("overridden", "The patient declines", nurse.username)


def test_not_scored_is_said_never_drawn_as_low(nurse: User, version: ModelVersion) -> None:
    patient = make_patient(unit="Ward 3")
    seen = only(nurse, patient)
    assert (seen.answer, seen.state, seen.freshness) == (None, DataState.UPDATING, "Not scored yet.")
    score_by_hand(patient, version, abstained="no vitals for 24 h")
    seen = only(nurse, patient)
    assert (seen.answer, seen.state, seen.reason) == (None, DataState.ABSTAINED, "no vitals for 24 h")


def test_other_wards_see_nothing(version: ModelVersion) -> None:
    patient = make_patient(unit="Ward 3")
    scored = score_by_hand(patient, version)
    stranger = make_user("clinician", units=("Ward 4",))
    with pytest.raises(NotFound):
        queries.panel(stranger, patient, now=NOW)
    with pytest.raises(NotFound):
        queries.find_prediction(stranger, scored.predictions.get().pk)
    with pytest.raises(NotFound):
        queries.find_assessment(stranger, scored.pk)
