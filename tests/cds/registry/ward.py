"""A small simulated ward whose outcome shows in image, labs and notes: enough to train a tiny model on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

import numpy as np
import pytest
from django.utils import timezone

import fusion
from cds.patients.models import Patient
from cds.registry import queries, runs, training
from cds.registry.models import ActiveModel, ModelVersion, Stage, TrainingRun
from tests.cds.registry.rows import make_series, make_stay
from tests.factories import NOW, TESTS, condition, make_patient, make_source, note, observation

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TINY = {
    "image_backbone": "small_cnn",
    "cine_backbone": "small_cnn",
    "text_backbone": "hashing",
    "image_size": 32,
    "cine_size": 16,
    "cine_frames": 4,
    "epochs": 3,
    "folds": 2,
    "width": 4,
}


def admit(
    number: int, *, sick: bool, stays_open: bool = False, unit: str = "", at: datetime = NOW
) -> Patient:
    """One patient with a radiograph, for every second also a cine; the sick go to intensive care on day 2."""
    random = np.random.default_rng(number)
    patient = make_patient(
        f"ward{number}",
        source=make_source("simulated-ward", simulated=True),
        unit=unit,
        now=at,
        observations=[
            observation("2524-7", 1.0 + 3.0 * sick + random.random(), "mmol/L", at=at - HOUR),
            observation("8867-4", 80.0 + 20 * sick + 10 * random.random(), "/min", at=at - 2 * HOUR),
        ],
        conditions=[condition("38341003", at=at - 300 * DAY)],
        notes=[note("Getting worse." if sick else "Comfortable.", at=at - HOUR)],
    )
    make_stay(patient, "inpatient", at - DAY, None if stays_open else at + 9 * DAY)
    if sick and not stays_open:
        make_stay(patient, "intensive-care", at + 2 * DAY, at + 4 * DAY)
    pixels = np.clip(random.random((1, 32, 32)) * 0.3 + 0.4 * sick, 0, 1).astype(np.float32)
    make_series(patient, at, pixels=pixels)
    if number % 2 == 0:
        beating = np.clip(random.random((6, 16, 16)) * 0.3 + 0.3 * sick, 0, 1).astype(np.float32)
        make_series(patient, at - HOUR, modality="US", body_part="HEART", frame_ms=40.0, pixels=beating)
    return patient


def fill(patients: int = 30) -> None:
    """Two in five are sick."""
    for number in range(patients):
        admit(number, sick=number % 5 < 2)


def retrain(**config: object) -> TrainingRun:
    """Start a tiny run and carry it out here."""
    run = runs.start(
        outcomes=["icu-admission"], config={**TINY, **config}, by=TESTS, user=None, now=timezone.now()
    )
    # The heartbeat has a connection of its own, which does not see what this test has not committed: on a
    # busy machine its first beat would take the run for lost.
    with mock.patch("cds.jobs.leases.extend", return_value=True):
        training.execute(run.pk)
    return queries.get_run(run.pk)


def train_and_activate(**config: object) -> ModelVersion:
    """A real model, made active without the ceremony (that is tested with `promoting`)."""
    version = retrain(**config).version
    ModelVersion.objects.filter(pk=version.pk).update(stage=Stage.ACTIVE)
    ActiveModel.objects.update_or_create(
        outcome="icu-admission", defaults={"version": version, "since": timezone.now()}
    )
    return queries.get_version(version.pk)


_LEARNED: dict[str, Any] = {}


def learn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for real once in a session; later runs on the same ward get that same model, at once."""
    train, evaluate = fusion.train, fusion.evaluate

    def train_once(*given: Any, **named: Any) -> fusion.Bundle:
        if "bundle" not in _LEARNED:
            _LEARNED["bundle"] = train(*given, **named)
        return _LEARNED["bundle"]

    def evaluate_once(*given: Any, **named: Any) -> fusion.Report:
        if "report" not in _LEARNED:
            _LEARNED["report"] = evaluate(*given, **named)
        return _LEARNED["report"]

    monkeypatch.setattr(fusion, "train", train_once)
    monkeypatch.setattr(fusion, "evaluate", evaluate_once)


@contextmanager
def still_heart(_: object) -> Iterator[threading.Event]:
    """In place of `leases.heartbeat` where a test holds one transaction: its thread would wait for it."""
    yield threading.Event()
