"""A text encoder of the site's own on the real path: named by folder and digest, wherever the folder lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

import fusion
from cds.features import encoding
from cds.jobs.models import WorkState
from cds.patients.models import Note
from cds.registry import loading
from cds.registry.models import ActiveModel, ModelVersion, Stage
from cds.risk import scoring
from cds.studies.models import Embedding
from tests.cds.registry import ward
from tests.fusion.test_text_backbones import save_encoder

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path) -> Any:
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"
    settings.TEXT_STORE = tmp_path / "text"
    encoding.get_text_backbone.cache_clear()
    yield
    encoding.get_text_backbone.cache_clear()


def activate(version: ModelVersion) -> None:
    ModelVersion.objects.filter(pk=version.pk).update(stage=Stage.ACTIVE)
    ActiveModel.objects.create(outcome="icu-admission", version=version, since=timezone.now())


def test_a_model_is_used_where_its_text_encoder_has_moved(settings: Any, tmp_path: Path) -> None:
    first = save_encoder(tmp_path / "first" / "clinical")
    settings.TEXT_BACKBONE = str(first)
    ward.fill(24)
    run = ward.retrain(modalities=["tabular", "text"], text_backbone="clinical")
    assert (run.work_state, run.failure) == (WorkState.DONE, "")
    version = run.version
    key = version.metadata["encoders"]["text"]
    assert key == fusion.load_text_backbone(str(first)).version
    assert key.startswith("clinical:")
    settings.TEXT_STORE.mkdir()
    shutil.move(first, settings.TEXT_STORE / "clinical")
    settings.TEXT_BACKBONE = "hashing"
    encoding.get_text_backbone.cache_clear()
    assert loading.get_bundle(version).embedder.text_backbone.version == key

    # as versions from before named it: the whole path of a machine that is gone
    whole = f"/gone/{key}"
    ModelVersion.objects.filter(pk=version.pk).update(encoders={"text": whole})
    activate(version)
    patient = ward.admit(101, sick=True)
    scoring.encode_notes(patient.pk)
    subjects = Note.objects.filter(patient=patient).values("text_digest")
    assert Embedding.objects.filter(subject__in=subjects, encoder=whole).exists()


def test_what_is_not_there_or_is_another_says_what_to_do(settings: Any) -> None:
    with pytest.raises(fusion.UnknownEncoder, match=r"no text encoder 'clinical'.*TEXT_BACKBONE.*TEXT_STORE"):
        encoding.text_folder("/models/clinical")
    folder = save_encoder(settings.TEXT_STORE / "clinical")
    assert encoding.text_folder("/models/clinical") == str(folder)
    assert encoding.find_text_folder("hashing") is None
    with pytest.raises(fusion.UnknownEncoder, match=r"asked for clinical:00000000, and here is clinical:"):
        encoding.text_backbone_of("clinical:00000000")
