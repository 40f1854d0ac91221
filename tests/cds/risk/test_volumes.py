"""A CT series on the real path: slices in, a volume in millimetres, tokens stored, an input of a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import generate_uid

from cds.features import building, encoding
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient, PatientIdentifier
from cds.registry import training
from cds.registry.models import ActiveModel
from cds.risk import scoring
from cds.studies import receiving
from cds.studies.models import Series
from fusion import Modality, volume_backbone_name
from tests.cds.registry import ward
from tests.cds.registry.rows import make_version
from tests.ehr.dicom.making import make_file
from tests.factories import NOW, TESTS, make_source

pytestmark = pytest.mark.django_db
VOLUME = {
    "volume_backbone": "small_cnn", "volume_size": 32, "volume_extent_mm": 64.0,
    "volume_step_mm": 5.0, "volume_slices": 12, "modalities": ["tabular", "volume"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"


def scan(folder: Path, depths: list[float]) -> Patient:
    """A patient with a CT study of 16 x 16 pixels of 4 mm, received as files in any order."""
    patient = Patient.objects.create(source=make_source(), resource_id="p1", changed_at=NOW)
    PatientIdentifier.objects.create(patient=patient, system="urn:mrn", value="MRN-p1")
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    rng = np.random.default_rng(0)
    study = None
    for number in rng.permutation(len(depths)):
        path = make_file(
            folder,
            np.full((16, 16), 10 * number, np.uint8),
            f"{number}.dcm",
            Modality="CT",
            BodyPartExamined="CHEST",
            PixelSpacing=[4.0, 4.0],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, depths[number]],
            **uids,
        )
        study = receiving.receive_file(path, source=make_source(), by=TESTS, now=NOW).study
    assert study is not None
    receiving.complete(study, by=TESTS, now=NOW)
    return patient


def test_slices_become_tokens_of_a_volume_that_a_score_reads(tmp_path: Path) -> None:
    patient = scan(tmp_path, [2.5 * number for number in range(20)])
    series = Series.objects.get()
    assert (series.frames, series.slice_mm, series.spacing_row_mm) == (20, 2.5, 4.0)
    config = training.build_config(["icu-admission"], VOLUME)
    keys = training.encoder_keys(config)
    assert keys["volume"].startswith("small_cnn/64mm/5mm/12:")
    version = make_version("icu-admission", encoders={"volume": keys["volume"]})
    ActiveModel.objects.get_or_create(outcome="icu-admission", defaults={"version": version, "since": NOW})
    as_of = series.study.started_at
    assert as_of is not None
    waiting = building.build_inputs(patient, as_of=as_of, encoders=version.encoders).inputs
    assert waiting.pending == {Modality.VOLUME}
    work = receiving.request_encoding(series.study, backbones=keys["volume"], now=NOW)
    scoring.encode(work.pk)
    work.refresh_from_db()
    assert (work.work_state, work.failure) == (WorkState.DONE, "")
    inputs = building.build_inputs(patient, as_of=as_of, encoders=version.encoders).inputs
    (volume,) = inputs.volumes
    (tokens,) = volume.embeddings.values()
    assert tokens.shape == (10, 32)  # 20 slices of 2.5 mm at steps of 5 mm
    assert (volume.slice_mm, len(volume.times_ms)) == (2.5, 20)
    backbone = encoding.get_volume_backbone(volume_backbone_name(config))
    np.testing.assert_allclose(tokens, backbone.embed(volume.read(), 32), atol=1e-5)
    assert not building.build_inputs(patient, as_of=as_of, encoders={}).inputs.volumes


def test_unevenly_spaced_slices_are_no_volume_and_it_is_said(tmp_path: Path) -> None:
    scan(tmp_path, [0, 2, 4, 6, 8, 10, 12, 14, 40.0])
    series = Series.objects.get()
    assert series.slice_mm is None
    assert "slices unevenly spaced: no volume" in series.remarks
    assert not encoding.is_usable(series, Modality.VOLUME)
