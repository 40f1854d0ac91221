"""The first path, end to end: an EHR calls, a worker scores, the card shows exactly what was stored.

Real HTTP bodies and tokens, a real broker, a real worker process, a real (tiny) model.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from cds.audit import recording
from cds.jobs import Queue, leases
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk.models import RiskAssessment
from tests.cds.hooks.conftest import (
    SERVICE,
    Call,
    call,
    heart_rate,
    hook_body,
    hook_client,
    patient_resource,
    searchset,
    version,
)
from tests.cds.registry import ward
from tests.flows import workers

__all__ = ["call", "hook_client", "version"]  # fixtures


def body_with(value: float, minutes_ago: float) -> dict[str, Any]:
    """A call that brings a heart rate."""
    at = timezone.now() - timedelta(minutes=minutes_ago)
    vitals = searchset(heart_rate(value, at=at, resource_id=f"hr{value:.0f}"))
    return hook_body(prefetch={"patient": patient_resource(), "vitals": vitals})


@pytest.mark.django_db(transaction=True)
def test_a_hook_call_from_prefetch_to_card(call: Call, settings: Any, tmp_path: Path) -> None:
    ward.fill()
    active = ward.train_and_activate()
    with workers.running(tmp_path, Queue.INTERACTIVE) as staff:
        settings.HOOKS_WAIT_S = 20.0  # the first score loads the model; here only what is shown matters
        first = call(SERVICE, body_with(88, 60))
        assert first.status_code == 200
        (card,) = first.json()["cards"]
        patient = Patient.objects.get(source__slug="ehr", resource_id="p1")
        stored = RiskAssessment.objects.get(patient=patient, version=active).predictions.get()
        assert f"**{stored.risk * 100:.0f} %**" in card["detail"] or stored.risk < 0.01
        assert "Stale" not in card["summary"]
        assert "image" in card["detail"]  # nothing of the kind was sent, and that is said

        (card,) = call(SERVICE, body_with(131, 1)).json()["cards"]
        assert "Stale" not in card["summary"]
        patient.refresh_from_db()
        newest = RiskAssessment.objects.get(patient=patient, revision=patient.revision)
        assert newest.work_state == WorkState.DONE
        assert RiskAssessment.objects.filter(patient=patient).count() == 2

        os.kill(staff.pids["worker-interactive"], signal.SIGKILL)
        settings.HOOKS_WAIT_S = 0.1
        (card,) = call(SERVICE, body_with(140, 0)).json()["cards"]
        assert card["summary"].startswith("Stale: was")
        # started again, the worker takes what was left, once
        patient.refresh_from_db()
        asked = RiskAssessment.objects.get(patient=patient, revision=patient.revision)
        workers.wait_until(lambda: _swept(asked) == WorkState.DONE, seconds=150)
        assert asked.predictions.count() == 1
    assert [chain.problems for chain in recording.verify() if chain.problems] == []


@pytest.mark.django_db(transaction=True)
def test_with_the_broker_away_a_call_says_not_yet_known_and_loses_nothing(
    call: Call, version: ModelVersion, settings: Any
) -> None:
    settings.HOOKS_WAIT_S = 0.05
    workers.speak_to(f"redis://127.0.0.1:{workers.free_port()}/0", {"socket_connect_timeout": 0.5})
    try:
        began = time.monotonic()
        (card,) = call(SERVICE, body_with(88, 60)).json()["cards"]
        assert time.monotonic() - began < 5  # the client alone would try for six seconds
    finally:
        workers.speak_to("memory://", {})
    assert "not yet known" in card["summary"]
    assert RiskAssessment.objects.get(patient__resource_id="p1").work_state == WorkState.QUEUED


def _swept(assessment: RiskAssessment) -> str:
    """As beat would, every so often: a message that died with its worker is sent again after a minute."""
    leases.sweep(timezone.now())
    return _state(assessment)


def _state(assessment: RiskAssessment) -> str:
    assessment.refresh_from_db()
    return assessment.work_state
