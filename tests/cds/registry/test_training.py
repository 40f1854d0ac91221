"""A run from request to candidate, with a real tiny model; killed, cancelled or refused, it ends in words."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone

import fusion
from cds.features import building, encoding
from cds.jobs import leases
from cds.jobs.models import LiveEvent, WorkState
from cds.patients.models import Patient
from cds.registry import bundles, cohorts, describing, loading, model_card, queries, runs, training
from cds.registry.models import ModelVersion, TrainingRun
from tests.cds.registry import ward
from tests.cds.registry.rows import make_series
from tests.factories import NOW, TESTS

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.STUDY_STORE, settings.BUNDLE_STORE = tmp_path / "studies", tmp_path / "bundles"


def test_a_run_makes_one_candidate_with_its_report_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    ward.fill()
    asked = []
    original = building.build_inputs

    def spy(patient: Any, **given: Any) -> building.Built:
        asked.append((str(patient.pk), given["as_of"]))
        return original(patient, **given)

    monkeypatch.setattr(building, "build_inputs", spy)
    run = ward.retrain()
    members = {(str(member.patient_id), member.as_of) for member in run.cohort.members.all()}
    assert set(asked) == members  # inputs of training are built by the function that scoring uses
    training.execute(run.pk)  # once more: nothing
    assert ModelVersion.objects.count() == 1
    assert (run.work_state, run.failure, run.fraction) == (WorkState.DONE, "", 1.0)
    version = run.version
    assert (version.label, version.stage, version.simulated) == ("icu-admission v1", "candidate", True)
    said = version.report["outcomes"]["icu-admission"]
    assert said["n"] == run.cohort.members.filter(split="held_out").count()
    assert 0.0 <= said["auroc"]["value"] <= 1.0
    assert version.metadata["cohort_digest"] == run.cohort.digest
    bundles.check_unchanged(version)
    loaded = fusion.Bundle.load(queries.bundle_folder(version), digest=version.digest)
    assert {
        key: encoding.split_pixel_key(kept)[0] if "@" in kept else kept
        for key, kept in version.encoders.items()
    } == (loaded.encoders)
    json.dumps(version.metadata)
    assert any(point["train_loss"] is not None for point in run.history)
    assert LiveEvent.objects.filter(kind="run", subject=str(run.pk)).count() > 3


def test_a_candidate_is_asked_beside_the_version_in_use_about_whom_neither_learned_from() -> None:
    ward.fill(40)
    first = ward.train_and_activate()
    assert first.report["beside_active"] == [], "nothing was in use"
    for number in range(40, 60):
        ward.admit(number, sick=number % 5 < 2)
    second = ward.retrain().version
    (told,) = second.report["beside_active"]
    assert (told["version"], told["label"]) == (str(first.pk), "icu-admission v1")
    learned = first.run.cohort.members.exclude(split="held_out").values_list("patient_id", flat=True)
    asked = second.run.cohort.members.filter(split="held_out").exclude(patient_id__in=list(learned))
    assert 0 < asked.count() < second.run.cohort.members.filter(split="held_out").count()
    said = told["outcomes"]["icu-admission"]
    assert (said["n"], said["patients"]) == (asked.count(), asked.values("patient_id").distinct().count())
    assert -1 <= said["auroc"]["value"] <= 1


@pytest.mark.parametrize("other", [{"image_size": 24}, {"finetune": "gradual", "finetune_epochs": 1}])
def test_a_version_in_use_with_other_encoders_is_asked_with_its_own(
    other: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.fill()
    first = ward.train_and_activate(**other)
    asked = []

    def beside(one: Any, held_out: Any, other: Any, as_other_reads: Any) -> dict[str, Any]:
        asked.append((held_out, as_other_reads))
        return original(one, held_out, other, as_other_reads)

    original = fusion.evaluate_beside
    monkeypatch.setattr(fusion, "evaluate_beside", beside)
    second = ward.retrain().version
    assert second.encoders["image"] != first.encoders["image"]
    ((ours, theirs),) = asked
    assert [e.inputs.key for e in ours] == [e.inputs.key for e in theirs]
    shown = [(mine.inputs.images, its.inputs.images) for mine, its in zip(ours, theirs, strict=True)]
    assert any(mine for mine, _ in shown)
    for mine, its in shown:
        for one, same in zip(mine, its, strict=True):
            ((name, known),), ((other_name, read),) = one.embeddings.items(), same.embeddings.items()
            assert name != other_name or not np.array_equal(known, read), "each with the encoding it knows"
    assert second.report["beside_active"][0]["outcomes"]


def test_a_version_in_use_that_cannot_be_asked_does_not_stop_the_run() -> None:
    ward.fill()
    first = ward.train_and_activate()
    loading._load.cache_clear()
    (queries.bundle_folder(first) / "model.safetensors").unlink()
    second = ward.retrain()
    assert (second.work_state, second.failure) == (WorkState.DONE, "")
    (told,) = second.version.report["beside_active"]
    assert told["outcomes"] == {}
    assert told["note"].startswith("icu-admission v1 could not be asked: ")
    ModelVersion.objects.filter(pk=first.pk).update(run=None)
    (told,) = ward.retrain().version.report["beside_active"]
    assert told["note"] == "whom icu-admission v1 learned from is not known here"


def test_every_moment_learns_from_its_own_newest_radiograph() -> None:
    ward.fill(10)
    for number in range(10):
        patient = Patient.objects.get(resource_id=f"ward{number}")
        make_series(patient, NOW - ward.DAY / 2, pixels=np.full((1, 32, 32), 0.1, np.float32))
    cohort = cohorts.freeze(cohorts.draw(outcomes=["icu-admission"], now=timezone.now()), now=timezone.now())
    config = training.build_config(["icu-admission"], ward.TINY)
    still = training.Progress(TrainingRun(), threading.Event())
    still.step = lambda *_, **__: None  # type: ignore[method-assign]
    encoders = training.encode_missing(cohort, config, still, low=0, high=1)
    told = training.build_examples(cohort, config, encoders, still, low=0, high=1)
    shown = sorted([image.hours_before for image in e.inputs.images] for part in told.values() for e in part)
    assert shown == [[0.0]] * 20 + [[11.0]] * 5  # the five moments of a cine have the picture before it


def test_a_private_run_states_what_it_promises() -> None:
    pytest.importorskip("opacus")
    ward.fill(75)
    run = ward.retrain(dp_noise=3.0, dp_delta=1e-4, modalities=["tabular", "series"])
    assert (run.work_state, run.failure) == (WorkState.DONE, "")
    version = run.version
    promised = version.metadata["privacy"]
    assert promised["epsilon"] > 0
    assert promised["delta"] == 1e-4
    card = model_card.get_card(version)
    assert model_card.to_json(card)["privacy"] == promised
    assert "at δ = 0.0001, for each patient" in describing.privacy(version)
    assert version.metadata["cohort_counts"].keys() == {"patients", "moments"}
    assert (version.metadata["cohort_digest"], version.metadata["cohort"]["events"]) == ("", {})


def test_a_private_run_keeps_no_statistics_of_its_patients() -> None:
    usual, private = (training.build_config(["death"], config) for config in ({}, {"dp_noise": 2.0}))
    assert (usual.scope_pictures > 0, usual.scope_fields, usual.summarise) == (True, ("age",), True)
    assert (private.scope_pictures, private.scope_fields, private.summarise) == (0, (), False)
    assert private.dp_noise == 2.0


def test_a_run_says_how_its_training_pictures_are_changed() -> None:
    usual, changed = (training.build_config(["death"], config) for config in ({}, {"augment": "upright"}))
    assert (usual.augment, changed.augment) == (fusion.Augment.NONE, fusion.Augment.UPRIGHT)


def test_too_few_events_end_the_run_in_words() -> None:
    for number in range(6):
        ward.admit(number, sick=False)
    run = ward.retrain()
    assert run.work_state == WorkState.FAILED
    assert run.failure
    assert not ModelVersion.objects.exists()


def test_cancelling_stops_it_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ward.fill()
    monkeypatch.setattr(training, "WRITE_EVERY_S", 0.0)
    original = fusion.train

    def cancel_first(*given: Any, **named: Any) -> fusion.Bundle:
        TrainingRun.objects.update(cancel_requested=True)
        return original(*given, **named)

    monkeypatch.setattr(training.fusion, "train", cancel_first)
    run = ward.retrain()
    assert (run.work_state, ModelVersion.objects.count()) == (WorkState.CANCELLED, 0)


def test_after_a_kill_it_starts_again_and_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ward.learn_once(monkeypatch)
    ward.fill()
    run = runs.start(outcomes=["icu-admission"], config=ward.TINY, by=TESTS, user=None, now=timezone.now())

    class Killed(BaseException):
        """Stands for SIGKILL: nothing of the run's own code runs any more."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(training.fusion, "evaluate", die)
        with pytest.raises(Killed):
            training.execute(run.pk)
    TrainingRun.objects.filter(pk=run.pk).update(lease_until=timezone.now() - leases.LEASE)
    assert leases.sweep(timezone.now())["requeued"] == 1
    training.execute(run.pk)
    run = queries.get_run(run.pk)
    assert (run.work_state, run.starts, ModelVersion.objects.count()) == (WorkState.DONE, 2, 1)


def test_a_second_run_waits_for_the_first() -> None:
    ward.fill(10)
    first, second = (
        runs.start(outcomes=["icu-admission"], config=ward.TINY, by=TESTS, user=None, now=timezone.now())
        for _ in range(2)
    )
    leases.claim(TrainingRun, first.pk)
    training.execute(second.pk)
    second.refresh_from_db()
    assert (second.work_state, second.starts) == (WorkState.QUEUED, 0)


def test_a_disk_that_fails_for_a_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ward.learn_once(monkeypatch)
    ward.fill()

    def full(*_: Any) -> str:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(training, "_save", full)
        with pytest.raises(OSError, match="no space"):
            ward.retrain()
    run = TrainingRun.objects.get()
    assert (run.work_state, run.starts) == (WorkState.QUEUED, 1)
    training.execute(run.pk)
    assert queries.get_run(run.pk).work_state == WorkState.DONE
