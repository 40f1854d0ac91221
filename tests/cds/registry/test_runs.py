"""Starting, watching and cancelling runs; and settings that fusion really has."""

from __future__ import annotations

import dataclasses

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.errors import Conflict, Invalid, NotAllowed
from cds.jobs import Job, leases
from cds.jobs.models import LiveEvent, OutboxMessage, WorkState
from cds.registry import runs
from cds.registry.models import TrainingRun
from tests.factories import NOW, TESTS, make_user

pytestmark = pytest.mark.django_db


def _start(**config: object) -> TrainingRun:
    return runs.start(outcomes=["icu-admission"], config=config, by=TESTS, user=None, now=timezone.now())


def test_a_run_is_queued_with_its_cohort() -> None:
    run = _start(epochs="3", modalities="image,tabular")
    assert run.work_state == WorkState.QUEUED
    assert run.config == {"epochs": 3, "modalities": ["tabular", "image"]}
    assert OutboxMessage.objects.get(job=Job.TRAIN.value).kwargs["run_id"] == str(run.pk)


def test_only_admins_start_runs() -> None:
    admin, clinician = make_user("admin"), make_user("clinician")
    by = recording.person(admin)
    runs.start(outcomes=["death"], by=by, user=admin, now=NOW)
    with pytest.raises(NotAllowed):
        runs.start(outcomes=["death"], by=by, user=clinician, now=NOW)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epochs": 0}, "epochs must lie in 1 to 1000"),
        ({"epochs": "many"}, "epochs takes a int"),
        ({"fusion": "magic"}, "fusion takes one of"),
        ({"modalities": "smell"}, "modalities takes some of"),
        ({"fields": "x"}, "not a setting of a run"),
        ({"dp_noise": "-1"}, "dp_noise must lie in 0 to 1000"),
        ({"dp_noise": 2, "fusion": "gated"}, "fusion must be late, not gated"),
        ({"dp_noise": 2, "finetune": "head"}, "finetune must be none, not head"),
        ({"dp_delta": 1e-6, "dp_noise": 0}, "set dp_noise above 0 too"),
    ],
)
def test_a_wrong_setting_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        runs.check_overrides(config)


def test_a_private_training_can_be_asked_for() -> None:
    run = _start(dp_noise="2.7", dp_clip="0.5", dp_delta="1e-6", fusion="late")
    assert run.config == {"dp_noise": 2.7, "dp_clip": 0.5, "dp_delta": 1e-6, "fusion": "late"}


def test_every_setting_is_one_of_fusion() -> None:
    from fusion import Augment, FusionConfig, FusionKind, Modality

    fields = {field.name: field for field in dataclasses.fields(FusionConfig)}
    assert set(runs.OVERRIDES) <= set(fields)
    assert set(runs.OVERRIDES["modalities"].choices) == {modality.value for modality in Modality}
    assert set(runs.OVERRIDES["augment"].choices) == {kind.value for kind in Augment}
    assert set(runs.OVERRIDES["fusion"].choices) == {kind.value for kind in FusionKind}


def test_cancelling_while_waiting_and_while_at_work() -> None:
    waiting, working = _start(), _start()
    runs.cancel(waiting, by=TESTS, user=None, now=NOW)
    assert waiting.work_state == WorkState.CANCELLED
    claimed = leases.claim(TrainingRun, working.pk)
    assert claimed is not None
    assert runs.note_progress(claimed, step="training", fraction=0.5, now=NOW)
    runs.cancel(working, by=TESTS, user=None, now=NOW)
    assert not runs.note_progress(claimed, step="training", fraction=0.6, now=NOW)
    with pytest.raises(Conflict, match="already ended"):
        runs.cancel(waiting, by=TESTS, user=None, now=NOW)


def test_progress_is_stored_and_told() -> None:
    run = leases.claim(TrainingRun, _start().pk)
    assert run is not None
    runs.note_progress(run, step="training", fraction=0.5, now=NOW, point={"epoch": 1, "train_loss": 0.7})
    run.refresh_from_db()
    assert (run.step, run.fraction, run.history[0]["epoch"]) == ("training", 0.5, 1)
    assert LiveEvent.objects.filter(kind="run", subject=str(run.pk)).exists()


def test_one_run_at_a_time() -> None:
    first, second = _start(), _start()
    leases.claim(TrainingRun, first.pk)
    assert runs.is_other_running(second.pk, now=timezone.now())
    assert not runs.is_other_running(first.pk, now=timezone.now())


def test_a_candidate_is_registered_with_the_end_of_its_run() -> None:
    run = leases.claim(TrainingRun, _start().pk)
    assert run is not None
    kept = {"path": "p", "digest": "d", "encoders": {}, "metadata": {}, "report": {}, "by": TESTS, "now": NOW}
    version = runs.succeed(run, **kept)
    assert (version.label, version.stage, run.work_state) == ("icu-admission v1", "candidate", WorkState.DONE)
    with pytest.raises(leases.LeaseLost):
        runs.succeed(run, **kept)
    assert type(version).objects.count() == 1
