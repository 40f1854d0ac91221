"""A fine-tuned image encoder on the real path: trained in a run, found in its bundle, used for new images;
weights of the site's own; a killed run that goes on where it was."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone
from safetensors.torch import save_file

import fusion
from cds.features import building, encoding
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.registry import loading, runs, training
from cds.registry import queries as registry_queries
from cds.registry.models import ActiveModel, ModelVersion, Stage, TrainingRun
from cds.risk import scoring
from cds.studies import receiving
from cds.studies.models import Embedding
from tests.cds.registry import ward
from tests.factories import NOW, TESTS

pytestmark = pytest.mark.django_db
TUNED = {"finetune": "gradual", "finetune_epochs": 2, "modalities": ["tabular", "image"]}


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"


@pytest.fixture(autouse=True)
def _fresh_backbones() -> Any:
    encoding.get_backbone.cache_clear()
    yield
    encoding.get_backbone.cache_clear()


def test_new_images_are_encoded_with_the_encoder_of_the_bundle() -> None:
    ward.fill(24)
    run = ward.retrain(**TUNED)
    assert run.failure == ""
    version = run.version
    key = version.encoders["image"]
    assert key.startswith("small_cnn+tuned:")
    assert key.endswith("@32")
    assert (
        Embedding.objects.filter(encoder=key).count()
        == run.cohort.members.values("patient").distinct().count()
    )
    ModelVersion.objects.filter(pk=version.pk).update(stage=Stage.ACTIVE)
    ActiveModel.objects.create(outcome="icu-admission", version=version, since=timezone.now())
    assert (fusion.Modality.IMAGE, key) in scoring.encoders_in_use()
    patient = ward.admit(101, sick=True, stays_open=True, at=timezone.now() - timedelta(minutes=5))
    study = patient.studies.get()
    work = receiving.request_encoding(study, now=NOW)
    scoring.encode(work.pk)
    work.refresh_from_db()
    assert (work.work_state, work.failure) == (WorkState.DONE, "")
    series = study.series.get()
    assert Embedding.objects.filter(subject=series.pixels_digest, encoder=key).exists()
    bundle = loading.get_bundle(registry_queries.get_version(version.pk))
    built = building.build_inputs(patient, as_of=timezone.now(), encoders=version.encoders)
    held = built.inputs.images[0].embeddings[bundle.encoders["image"]]
    made = bundle.embedder.image_backbone.embed(receiving.load_clip(series).frames, 32)
    assert np.allclose(held, made, atol=1e-5)
    assert 0 < fusion.predict(bundle, [built.inputs])[0].outcomes[0].risk < 1


def test_a_tuned_encoder_that_no_bundle_holds_is_said_to_be_missing() -> None:
    with pytest.raises(
        fusion.UnknownEncoder, match="no model version holds the fine-tuned backbone small_cnn"
    ):
        scoring._backbone(fusion.Modality.IMAGE, "small_cnn+tuned:00000000@32")
    with pytest.raises(fusion.UnknownEncoder, match=r"asked for small_cnn:00000000.*set IMAGE_WEIGHTS"):
        scoring._backbone(fusion.Modality.IMAGE, "small_cnn:00000000@32")


def test_weights_of_the_site_reach_encoding_training_and_serving(settings: Any, tmp_path: Path) -> None:
    plain = encoding.get_backbone("small_cnn").version
    state = {k: v * 1.1 for k, v in fusion.load_backbone("small_cnn").network.state_dict().items()}
    settings.IMAGE_WEIGHTS = tmp_path / "ours.safetensors"
    encoding.get_backbone.cache_clear()
    with pytest.raises(fusion.BadInput, match=r"weights of small_cnn are not at .*ours.safetensors"):
        encoding.get_backbone("small_cnn")
    save_file(state, settings.IMAGE_WEIGHTS)
    ours = encoding.get_backbone("small_cnn").version
    assert ours != plain
    assert (fusion.Modality.IMAGE, f"{ours}@224") in scoring.encoders_in_use()
    ward.fill(24)
    run = ward.retrain(modalities=["tabular", "image"])
    assert run.failure == ""
    assert run.version.encoders["image"] == f"{ours}@32"
    bundle = loading.get_bundle(run.version)
    assert bundle.embedder.image_backbone.version == ours
    settings.IMAGE_WEIGHTS = None
    with pytest.raises(fusion.BundleMismatch, match=r"ours.safetensors.*IMAGE_WEIGHTS"):
        loading.get_bundle(run.version)


def test_a_killed_run_goes_on_where_it_was(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WRITE_EVERY_S", 0.0)
    ward.fill(24)
    run = runs.start(
        outcomes=["icu-admission"], config={**ward.TINY, **TUNED}, by=TESTS, user=None, now=timezone.now()
    )
    told: list[str] = []
    original = fusion.train

    class Killed(BaseException):
        """Stands for SIGKILL: nothing of the run's own code runs any more."""

    def watched(*given: Any, progress: Any, **named: Any) -> fusion.Bundle:
        def tell(at: fusion.Progress) -> bool:
            if at.epoch:
                told.append(at.step)
            if at.step == "image, fold 2 of 2: fine-tuning" and at.epoch and not done:
                raise Killed
            return bool(progress(at))

        return original(*given, progress=tell, **named)

    done: list[bool] = []
    monkeypatch.setattr(training.fusion, "train", watched)
    with pytest.raises(Killed):
        training.execute(run.pk)
    folder = settings.BUNDLE_STORE / ".training" / str(run.pk)
    assert "image-fold0-backbone.safetensors" in {p.name for p in folder.iterdir()}
    assert "image, fold 1 of 2: fine-tuning" in told
    told.clear()
    done.append(True)
    TrainingRun.objects.filter(pk=run.pk).update(lease_until=timezone.now() - leases.LEASE)
    assert leases.sweep(timezone.now())["requeued"] == 1
    training.execute(run.pk)
    run = registry_queries.get_run(run.pk)
    assert (run.work_state, run.failure) == (WorkState.DONE, "")
    tuned = [step for step in told if step.endswith("fine-tuning")]
    assert tuned[0] == "image, fold 2 of 2: fine-tuning", "what was done is not done again"
    assert not folder.exists()
