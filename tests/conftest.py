"""What every test may build on: quick passwords, and an audit trail that may be emptied between tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection


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
