"""`/livez` always answers; `/readyz` turns 503 as soon as any part is lost, and says which."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.db import DatabaseError
from django.test import Client

from cds import health
from cds.jobs import Queue, beats
from cds.registry.models import ActiveModel, ModelVersion
from tests.factories import NOW


class _Redis:
    """Redis as far as the beats use it."""

    def __init__(self, **alive: bool) -> None:
        self.kept = {f"tessera:alive:{queue}": "1" for queue, is_alive in alive.items() if is_alive}

    def __enter__(self) -> _Redis:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def mget(self, keys: list[str]) -> list[str | None]:
        return [self.kept.get(key) for key in keys]

    def pipeline(self, transaction: bool) -> _Redis:
        return self

    def set(self, key: str, value: str, px: int) -> None:
        assert 1000 < px <= 5000
        self.kept[key] = value

    def execute(self) -> None:
        """Nothing to send."""


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch, settings: Any, db: None) -> Path:
    """Every part is well; returns the bundle's metadata file."""
    monkeypatch.setattr(
        beats, "connect", lambda: _Redis(interactive=True, batch=True, exchange=True, train=True)
    )
    version = ModelVersion.objects.create(
        name="icu-admission", number=1, outcomes=["icu-admission"], path="b1", digest="0", created_at=NOW
    )
    ActiveModel.objects.create(outcome="icu-admission", version=version, since=NOW)
    metadata: Path = settings.BUNDLE_STORE / "b1" / "metadata.json"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("{}")
    return metadata


def _ready(client: Client) -> tuple[int, dict[str, Any]]:
    answer = client.get("/readyz")
    return answer.status_code, answer.json()["checks"]


def test_ready_when_every_part_is_well(client: Client, whole: Path) -> None:
    status, checks = _ready(client)
    assert status == 200
    assert {name for name, check in checks.items() if check["ok"]} == {
        "database",
        "broker",
        "workers",
        "model",
    }
    assert client.get("/readyz").headers["Cache-Control"] == "no-store"


def test_not_ready_without_its_database(client: Client, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(health, "_ask_database", broken)
    status, checks = _ready(client)
    assert status == 503
    assert not checks["database"]["ok"]
    assert client.get("/livez").status_code == 200


def test_a_database_that_hangs_is_told_and_the_process_still_lives(
    client: Client, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(health, "_prober", ThreadPoolExecutor(1))
    monkeypatch.setattr(health, "PROBE_S", 0.2)
    monkeypatch.setattr(health, "_ask_database", lambda: ended.wait(60))
    try:
        for _ in range(2):  # the second finds the first still hanging
            status, checks = _ready(client)
            assert (status, checks["database"]["ok"]) == (503, False)
            assert "did not answer within" in checks["database"]["detail"]
        assert client.get("/livez").status_code == 200
    finally:
        ended.set()


@pytest.mark.parametrize(
    ("alive", "status", "said"),
    [
        ({"interactive": True, "batch": True, "train": False}, 200, "exchange, train"),
        ({"interactive": False, "batch": True, "exchange": True, "train": True}, 503, "interactive"),
        ({"interactive": True, "batch": False, "exchange": True, "train": True}, 503, "batch"),
        ({}, 503, "interactive, batch, exchange, train"),
    ],
)
def test_not_ready_without_workers(
    client: Client,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    alive: dict[str, bool],
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(beats, "connect", lambda: _Redis(**alive))
    got, checks = _ready(client)
    assert got == status
    assert checks["workers"]["detail"] == f"nobody works on: {said}"


def test_not_ready_without_its_broker(client: Client, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> _Redis:
        raise redis.ConnectionError("refused")

    monkeypatch.setattr(beats, "connect", away)
    status, checks = _ready(client)
    assert status == 503
    assert not checks["broker"]["ok"]
    assert checks["database"]["ok"]


def test_not_ready_without_an_active_model(client: Client, whole: Path) -> None:
    whole.unlink()
    status, checks = _ready(client)
    assert (status, checks["model"]["detail"]) == (
        503,
        "the bundle of the active model is gone: icu-admission",
    )
    ActiveModel.objects.all().delete()
    status, checks = _ready(client)
    assert (status, checks["model"]["detail"]) == (503, "no model is active: promote one")


@pytest.mark.django_db
def test_a_broker_that_is_away_is_noticed_at_once(client: Client, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert _ready(client)[0] == 503


def test_a_beat_is_seen_per_queue() -> None:
    kept: Any = _Redis()
    beats.beat(kept, ["batch"])
    assert beats.alive(kept) == {queue: queue is Queue.BATCH for queue in Queue}


@pytest.mark.parametrize(
    ("children", "is_alive"),
    [([True, False], True), ([False, False], False), ([], False), (None, True)],
    ids=["one lives", "all dead", "none", "a pool of threads"],
)
def test_a_pool_of_dead_children_is_not_alive(children: list[bool] | None, is_alive: bool) -> None:
    pool: Any = SimpleNamespace(_pool=None)
    if children is not None:
        processes = [SimpleNamespace(is_alive=lambda lives=lives: lives) for lives in children]
        pool = SimpleNamespace(_pool=SimpleNamespace(_pool=processes))
    assert beats.pool_is_alive(pool) is is_alive


def test_health_loads_no_torch() -> None:
    code = (
        "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'cds.settings'; "
        "import django; django.setup(); import cds.health; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
