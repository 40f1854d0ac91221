"""What every test may build on: folders and a broker of its own, an audit trail that can be emptied."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from cds.audit import refusing
from cds.celery import app
from tests.sockets import only_loopback  # noqa: F401  (a fixture of every session)


@pytest.fixture(scope="session", autouse=True)
def _audit_trail_may_be_emptied_between_tests() -> Iterator[None]:
    """Tests that commit are flushed afterwards; lift the append-only triggers for that moment only."""
    statements = importlib.import_module("cds.audit.migrations.0002_append_only").STATEMENTS
    create, drop = statements[connection.vendor]
    original = connection.ops.sql_flush

    def sql_flush(*args: Any, **kwargs: Any) -> list[str]:
        flush = original(*args, **kwargs)
        return [*drop, *flush, *create] if flush else flush

    connection.ops.sql_flush = sql_flush  # type: ignore[method-assign]
    yield
    connection.ops.sql_flush = original  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _quick_passwords(settings: Any) -> None:
    """Hashing a password slowly is right for people and 0.3 s a user too many for tests."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _an_address_of_its_own(settings: Any) -> None:
    """Not that of a demo that was run from this checkout."""
    settings.PUBLIC_URL = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def _nobody_was_refused_yet() -> Iterator[None]:
    """Refusals of callers nobody vouches for are counted by the process from a number a minute on."""
    refusing.forget()
    yield
    refusing.forget()


@pytest.fixture(scope="session", autouse=True)
def _jobs_stay_in_this_process() -> None:
    """A job published by a test must never reach the worker of a demo that happens to run."""
    if not os.environ.get("REDIS_URL"):
        app.conf.update(broker_url="memory://", broker_transport_options={})


@pytest.fixture(autouse=True)
def _stores_of_its_own(settings: Any, tmp_path: Path) -> None:
    """Pixels and bundles of a test lie in its own folder."""
    settings.STUDY_STORE = tmp_path / "studies"
    settings.BUNDLE_STORE = tmp_path / "bundles"
    settings.SEGMENTER_STORE = tmp_path / "segmenters"
    settings.ENCODER_STORE = tmp_path / "encoders"
    settings.ENCODER_RUNTIME = "torch"  # exporting anew for every test would take seconds each
