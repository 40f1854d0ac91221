"""SIGKILL a worker in the middle of its work, several times: all ends once, or failed with a reason."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.jobs import Queue, leases
from cds.jobs.models import LeasedWork, WorkState
from cds.patients.models import Patient
from cds.risk import assessing
from cds.risk.models import AssessmentStatus, RiskAssessment
from cds.studies import receiving
from cds.studies.models import Embedding, Encoding
from tests.cds.registry import ward
from tests.cds.registry.rows import make_series
from tests.factories import TESTS
from tests.flows import workers

PATIENTS, KILLS = 6, 2
OPEN = (WorkState.QUEUED, WorkState.RUNNING)


def admit() -> list[Patient]:
    """In hospital, each with a radiograph and a cine long enough to be killed while it is encoded."""
    held = []
    for number in range(100, 100 + PATIENTS):
        at = timezone.now() - timedelta(minutes=5)
        patient = ward.admit(number, sick=number % 2 == 0, stays_open=True, at=at)
        frames = np.random.default_rng(number).random((96, 256, 256), np.float32)
        make_series(patient, at, modality="US", body_part="HEART", frame_ms=20.0, pixels=frames)
        held.append(patient)
    return held


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message reserved by a dead worker is sent again after two seconds instead of sixty."""
    monkeypatch.setattr(leases, "FORGOTTEN_AFTER", timedelta(seconds=2))


def let_the_dead_expire(model: type[LeasedWork], pid: int) -> int:
    """As if the lease had run out: what a process held that lives no more."""
    held = model._default_manager.filter(work_state=WorkState.RUNNING, lease_owner__contains=f":{pid}:")
    return held.update(lease_until=timezone.now() - timedelta(seconds=1))


def kill_while_at_work(staff: workers.Workers, name: str, model: type[LeasedWork]) -> bool:
    """Wait until this worker holds a piece of work, and kill it right then; False when there is none left."""
    deadline = time.monotonic() + 120  # a worker that starts again on a busy machine takes its time
    while time.monotonic() < deadline:
        pid = staff.pids[name]
        if model._default_manager.filter(
            work_state=WorkState.RUNNING, lease_owner__contains=f":{pid}:"
        ).exists():
            os.kill(pid, signal.SIGKILL)
            wait_for_the_end(pid)
            let_the_dead_expire(model, pid)
            leases.sweep(timezone.now())
            return True
        if not model._default_manager.filter(work_state__in=OPEN).exists():
            return False  # it was quicker than we were
        leases.sweep(timezone.now())
        time.sleep(0.002)
    pytest.fail(f"{name} never took any work")


def wait_for_the_end(pid: int) -> None:
    workers.wait_until(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def drain(model: type[LeasedWork], *, seconds: float = 60.0) -> None:
    """Sweep until nothing is open."""

    def is_empty() -> bool:
        leases.sweep(timezone.now())
        return not model._default_manager.filter(work_state__in=OPEN).exists()

    workers.wait_until(is_empty, seconds=seconds)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_impatient")
def test_killed_while_encoding_and_while_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ward.learn_once(monkeypatch)
    ward.fill()
    version = ward.train_and_activate()
    patients = admit()
    with workers.running(tmp_path, Queue.BATCH, Queue.INTERACTIVE) as staff:
        for patient in patients:
            for study in patient.studies.all():
                receiving.request_encoding(study, now=timezone.now())
        kills = sum(kill_while_at_work(staff, "worker-batch", Encoding) for _ in range(KILLS))
        kill_while_at_work(staff, "worker-interactive", RiskAssessment)
        drain(Encoding)
        drain(RiskAssessment)
        asked = [
            request
            for patient in patients
            for request in assessing.request_all(patient, by=TESTS, now=timezone.now())
        ]
        kill_while_at_work(staff, "worker-interactive", RiskAssessment)
        drain(RiskAssessment)

    for work in Encoding.objects.all():
        assert work.work_state in (WorkState.DONE, WorkState.FAILED)
        assert bool(work.failure) is (work.work_state == WorkState.FAILED)
        assert work.starts <= Encoding.MAX_STARTS
    subjects = Embedding.objects.values_list("subject", "encoder")
    assert len(subjects) == len(set(subjects))
    assert kills == KILLS
    assert len(asked) == PATIENTS
    for assessment in RiskAssessment.objects.filter(patient__in=patients):
        finalised = AuditEvent.objects.filter(
            action="assessment.finalise", object_id=str(assessment.pk)
        ).count()
        if assessment.work_state == WorkState.DONE:
            assert (assessment.predictions.count(), finalised) == (1, 1)
            assert assessment.status in (AssessmentStatus.FINAL, AssessmentStatus.PRELIMINARY)
        else:
            assert assessment.work_state in (WorkState.FAILED, WorkState.CANCELLED)
            assert assessment.failure
            assert (assessment.predictions.count(), finalised) == (0, 0)
    for patient in patients:
        newest = RiskAssessment.objects.filter(patient=patient, version=version).latest("revision")
        assert newest.work_state in (WorkState.DONE, WorkState.FAILED)
    assert all(not chain.problems for chain in recording.verify())
