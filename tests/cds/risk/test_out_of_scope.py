"""A picture the model must not judge is left out, and everybody who reads the score is told so."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone

import fusion
from cds.hooks import cards
from cds.jobs import leases
from cds.patients.models import Patient
from cds.registry import loading, training
from cds.registry.models import ModelVersion
from cds.risk import assessing, queries, scoring
from cds.risk.models import AssessmentStatus, HeatMap, RiskAssessment
from cds.risk.standing import DataState, left_out_in_words, stand
from cds.studies import receiving
from fusion.scope import UNLIKE, WRONG, ImageScope, Range, RecordScope, Scope
from tests.cds.hooks.test_cards import setting_for
from tests.cds.registry import ward
from tests.cds.risk.scores import score_by_hand
from tests.factories import NOW, TESTS, identity, make_patient, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    """A trained model that lets no picture pass, and nobody outside 18 to 95 years."""
    ward.learn_once(monkeypatch)
    ward.fill()
    version = ward.train_and_activate()
    width = 32  # of small_cnn
    nothing_passes = ImageScope(
        np.full(width, width**-0.5, np.float32),
        np.zeros((width, 1 + len(WRONG)), np.float32),
        np.zeros(1 + len(WRONG), np.float32),
        tuple(WRONG),
        distance=-1.0,
        wrongness=100.0,
        false_alarms=1.0,
        pictures=0,
    )
    ages = RecordScope({"age": Range("Age", "a", 18.0, 95.0)})
    bundle = loading.get_bundle(version)
    monkeypatch.setattr(bundle, "scope", Scope(nothing_passes, ages))
    return version


def scored(patient: Patient, version: ModelVersion) -> RiskAssessment:
    patient.refresh_from_db()
    asked = assessing.request(patient, version, by=TESTS, now=timezone.now())
    scoring.score(asked.pk)
    asked.refresh_from_db()
    return asked


def arrive(number: int = 102, unit: str = "") -> Patient:
    at = timezone.now() - timedelta(minutes=5)
    patient = ward.admit(number, sick=True, stays_open=True, unit=unit, at=at)
    scoring.encode_notes(patient.pk)
    for study in patient.studies.all():
        scoring.encode(receiving.request_encoding(study, now=NOW).pk)
    return patient


def test_the_picture_is_left_out_and_the_score_says_so(version: ModelVersion) -> None:
    patient = arrive()
    held = scored(patient, version)
    assert held.status == AssessmentStatus.FINAL
    assert list(held.left_out.values()) == [UNLIKE]
    assert "image" in held.missing
    assert "image" not in held.present
    standing = stand(patient, version, now=timezone.now())
    assert standing.state == DataState.PARTIAL
    assert standing.reason == f"a picture was left out as out of scope: {UNLIKE}"
    assert "A picture was left out" in held.predictions.get().explanation["summary"]
    assert scoring.explain(held.pk) == 0
    assert not HeatMap.objects.exists(), "what was not looked at has no heat map"


def test_the_panel_and_the_hook_card_tell_the_reason(version: ModelVersion) -> None:
    patient = arrive(unit="Ward 3")
    scored(patient, version)
    nurse = make_user("clinician", units=("Ward 3",))
    [outcome] = queries.panel(nurse, patient, now=timezone.now()).outcomes
    [image] = outcome.images
    assert (image.used, image.left_out, image.heat_map) == (False, UNLIKE, None)
    assert outcome.state == DataState.PARTIAL
    assert "A picture was left out as out of scope" in outcome.freshness
    standing = stand(patient, version, now=timezone.now())
    shown = cards.card_for(standing, setting_for(patient))
    assert shown.kind is cards.CardKind.RISK
    assert "Partial: a picture was left out as out of scope" in shown.card.detail
    assert "Preliminary" not in shown.card.detail


def test_with_only_such_a_picture_the_model_abstains(version: ModelVersion, monkeypatch: Any) -> None:
    patient = arrive(101)
    built = scoring.building.build_inputs

    def only_the_picture(*given: Any, **named: Any) -> Any:
        whole = built(*given, **named)
        bare = fusion.PatientInputs(key=whole.inputs.key, images=whole.inputs.images)
        return scoring.building.Built(bare, whole.basis, whole.data_until)

    monkeypatch.setattr(scoring.building, "build_inputs", only_the_picture)
    held = scored(patient, version)
    assert held.status == AssessmentStatus.CANCELLED
    assert held.abstained.startswith("the picture cannot be judged")
    assert not held.predictions.exists()
    standing = stand(patient, version, now=timezone.now())
    assert standing.state == DataState.ABSTAINED
    shown = cards.card_for(standing, setting_for(patient))
    assert shown.kind is cards.CardKind.OUT_OF_SCOPE
    assert "This is not a low risk" in shown.card.detail
    assert "cannot be judged" in shown.card.detail


def test_a_child_is_not_scored_by_a_model_for_adults(version: ModelVersion) -> None:
    now = timezone.now()
    child = make_patient("child", patient=identity("child", birth_date=now.date() - timedelta(days=3650)))
    held = scored(child, version)
    assert held.status == AssessmentStatus.CANCELLED
    assert held.abstained == (
        "age is outside the range of the patients the model was trained on (18 to 95 years)"
    )


@pytest.mark.parametrize(("count", "words"), [(1, "a picture was"), (2, "2 pictures were")])
def test_words_for_what_was_left_out(version: ModelVersion, count: int, words: str) -> None:
    patient = make_patient("p")
    held = score_by_hand(
        patient, version, left_out={f"d{i}": "it seems to be upside-down" for i in range(count)}
    )
    assert left_out_in_words(held) == f"{words} left out as out of scope: it seems to be upside-down"


def test_training_asks_for_the_detector_and_the_summary() -> None:
    config = training.build_config(["icu-admission"], {})
    assert config.scope_pictures == training.SCOPE_PICTURES > 0
    assert config.scope_fields == ("age",)
    assert config.summarise
