"""The one scoring path, with a real tiny model: stored embeddings in, one answer out, pixels untouched."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

import ehr
from cds.audit.models import AuditEvent
from cds.features import building, encoding
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients import importing
from cds.patients.models import Patient
from cds.registry import loading
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.risk import assessing, queries, scoring
from cds.risk.models import AssessmentStatus, HeatMap, RiskAssessment
from cds.risk.standing import DataState, stand
from cds.studies import receiving
from cds.studies.models import Embedding, Encoding, StudyState
from tests.cds.registry import ward
from tests.factories import NOW, TESTS, identity, make_patient, make_record, make_source, observation

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    ward.learn_once(monkeypatch)
    ward.fill()
    return ward.train_and_activate()


def newcomer(number: int = 102) -> Patient:
    """Somebody in hospital whose study has just been stored."""
    return ward.admit(number, sick=True, stays_open=True, at=timezone.now() - timedelta(minutes=5))


def encode(patient: Patient) -> Encoding:
    work = None
    for study in patient.studies.all():
        work = receiving.request_encoding(study, now=NOW)
        scoring.encode(work.pk)
        work.refresh_from_db()
    assert work is not None
    return work


def scored(patient: Patient, version: ModelVersion, now: Any = None) -> RiskAssessment:
    patient.refresh_from_db()
    asked = assessing.request(patient, version, by=TESTS, now=now or timezone.now())
    scoring.score(asked.pk)
    asked.refresh_from_db()
    return asked


def test_a_study_is_encoded_scored_and_explained(version: ModelVersion) -> None:
    patient = newcomer()
    scoring.encode_notes(patient.pk)
    work = encode(patient)
    assert work.work_state == WorkState.DONE
    assert {study.state for study in patient.studies.all()} == {StudyState.ENCODED}
    held = scored(patient, version)
    assert (held.work_state, held.status, held.failure) == (WorkState.DONE, AssessmentStatus.FINAL, "")
    prediction = held.predictions.get()
    assert 0.0 <= prediction.low <= prediction.risk <= prediction.high <= 1.0
    assert set(held.present) == {"tabular", "series", "text", "image", "cine"}
    total = prediction.base_rate + sum(one["points"] for one in prediction.explanation["contributions"])
    assert total == pytest.approx(prediction.risk, abs=1e-4)
    assert {one["type"] for one in held.basis} >= {
        "Patient",
        "Observation",
        "ImagingStudy",
        "DocumentReference",
    }
    assert AuditEvent.objects.filter(action="assessment.finalise", patient_id=patient.pk).exists()
    assert next(iter(held.frame_weights.values()))["weights"]
    assert scoring.explain(held.pk) == 1
    assert scoring.explain(held.pk) == 0
    drawn = HeatMap.objects.get()
    values = queries.heat_map_values(drawn)
    assert values.ndim == 2
    assert 0.0 <= float(values.min()) <= float(values.max()) <= 1.0
    beside = {"deletion", "insertion", "random_deletion", "random_insertion", "correlation", "passed", "why"}
    assert beside <= set(drawn.sanity)


def test_a_rescore_after_a_new_lab_value_never_reads_pixels(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = newcomer()
    scoring.encode_notes(patient.pk)
    encode(patient)
    first = scored(patient, version)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels or an encoder were touched")

    for name in ("load_clip",):
        monkeypatch.setattr(receiving, name, forbidden)
    monkeypatch.setattr(encoding, "get_backbone", forbidden)
    monkeypatch.setattr(encoding, "get_text_backbone", forbidden)
    lab = make_record(
        patient.resource_id, observations=[observation("2524-7", 9.0, "mmol/L", at=timezone.now())]
    )
    importing.import_record(lab, source=make_source("simulated-ward"), by=TESTS, now=timezone.now())
    second = scored(patient, version)
    assert second != first
    assert second.status == AssessmentStatus.FINAL
    assert second.inputs_digest != first.inputs_digest


def test_what_newer_data_have_overtaken_is_not_computed(
    version: ModelVersion,
) -> None:
    """A queue that grows is shortened: of each patient only the newest state of the record is scored."""
    patient = newcomer()
    first = scored(patient, version)
    asked = []
    for value in (3.0, 9.0):
        lab = make_record(
            patient.resource_id, observations=[observation("2524-7", value, "mmol/L", at=timezone.now())]
        )
        importing.import_record(lab, source=make_source("simulated-ward"), by=TESTS, now=timezone.now())
        patient.refresh_from_db()
        asked.append(assessing.request(patient, version, by=TESTS, now=timezone.now()))
    older, newer = asked
    waiting = stand(patient, version, now=timezone.now())
    assert (waiting.state, waiting.assessment) == (DataState.STALE, first)  # the last number, called stale
    scoring.score(older.pk)
    older.refresh_from_db()
    assert (older.work_state, older.status) == (WorkState.CANCELLED, AssessmentStatus.CANCELLED)
    assert "newer data" in older.failure
    assert AuditEvent.objects.filter(action="assessment.overtaken", patient_id=patient.pk).exists()
    standing = stand(patient, version, now=timezone.now())
    assert standing.assessment == newer  # at once: it need not wait for its own turn
    scoring.score(newer.pk)
    assert (older.predictions.count(), newer.predictions.count()) == (0, 1)


def test_before_its_image_is_encoded_a_score_is_preliminary_and_asks_for_it(version: ModelVersion) -> None:
    patient = newcomer()
    patient.notes.update(text="Quite new words.", text_digest="f" * 64)
    first = scored(patient, version)
    assert first.status == AssessmentStatus.PRELIMINARY
    assert set(first.pending) == {"image", "cine", "text"}
    assert stand(patient, version, now=timezone.now()).state == DataState.PARTIAL
    asked = list(Encoding.objects.filter(study__patient=patient))
    assert len(asked) == 2
    for work in asked:
        scoring.encode(work.pk)
    scoring.encode_notes(patient.pk)
    newest = RiskAssessment.objects.filter(patient=patient, work_state=WorkState.QUEUED).latest("revision")
    scoring.score(newest.pk)
    assert stand(patient, version, now=timezone.now()).state == DataState.CURRENT


def test_running_twice_or_late_stores_once(version: ModelVersion) -> None:
    patient = newcomer()
    encode(patient)
    held = scored(patient, version)
    before = held.finished_at
    scoring.score(held.pk)
    scoring.encode(Encoding.objects.filter(study__patient=patient).first().pk)  # type: ignore[union-attr]
    held.refresh_from_db()
    assert (held.predictions.count(), held.finished_at) == (1, before)
    scoring.score("00000000-0000-0000-0000-000000000000")


def test_a_model_whose_files_changed_fails_with_a_reason(version: ModelVersion) -> None:
    patient = newcomer()
    folder = registry_queries.bundle_folder(version)
    with (folder / "model.safetensors").open("ab") as weights:
        weights.write(b"x")
    loading._load.cache_clear()
    held = scored(patient, version)
    assert (held.work_state, held.status) == (WorkState.FAILED, AssessmentStatus.CANCELLED)
    assert held.failure
    assert not held.predictions.exists()
    standing = stand(patient, version, now=timezone.now())
    assert (standing.state, standing.reason) == (DataState.FAILED, held.failure)
    RiskAssessment.objects.filter(pk=held.pk).update(work_state=WorkState.DONE)
    assert scoring.explain(held.pk) == 0


def test_a_fault_that_may_pass_is_tried_three_times(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = newcomer()
    asked = assessing.request(patient, version, by=TESTS, now=timezone.now())

    def away(*_: Any, **__: Any) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(building, "build_inputs", away)
    for _ in range(3):
        with pytest.raises(OSError, match="away"):
            scoring.score(asked.pk)
    asked.refresh_from_db()
    assert (asked.work_state, asked.starts, asked.status) == (WorkState.FAILED, 3, AssessmentStatus.CANCELLED)
    assert "OSError" in asked.failure


def test_a_series_that_cannot_be_encoded_fails_its_study_and_not_the_score(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = newcomer(101)
    scoring.encode_notes(patient.pk)

    def broken(*_: Any) -> None:
        raise ehr.BadInstance("the file is truncated")

    monkeypatch.setattr(receiving, "load_clip", broken)
    work = encode(patient)
    study = patient.studies.get()
    assert (work.work_state, study.state) == (WorkState.FAILED, StudyState.FAILED)
    assert "truncated" in study.failure
    held = scored(patient, version)
    assert held.status == AssessmentStatus.FINAL
    assert "image" in held.missing


def test_nobody_gets_a_number_from_nothing(version: ModelVersion) -> None:
    stranger = make_patient(patient=identity("x", birth_date=None, sex=ehr.Sex.UNKNOWN))
    held = scored(stranger, version)
    assert (held.status, held.work_state) == (AssessmentStatus.CANCELLED, WorkState.DONE)
    assert held.abstained
    assert not held.predictions.exists()


def test_a_heat_map_is_never_of_other_inputs(version: ModelVersion) -> None:
    patient = newcomer(101)
    encode(patient)
    held = scored(patient, version)
    RiskAssessment.objects.filter(pk=held.pk).update(inputs_digest="0" * 64)
    assert scoring.explain(held.pk) == 0
    assert not HeatMap.objects.exists()


def test_encoding_makes_what_the_active_model_reads(version: ModelVersion) -> None:
    patient = newcomer()
    encode(patient)
    keys = set(
        Embedding.objects.filter(
            subject__in=[s.pixels_digest for study in patient.studies.all() for s in study.series.all()]
        ).values_list("encoder", flat=True)
    )
    assert keys == {version.encoders["image"], version.encoders["cine"]}
