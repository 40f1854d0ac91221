"""Where the real servers are. Without one, its tests are skipped, saying so; with TESSERA_REQUIRE_SERVICES=1
(as in .ci/run) they fail instead, so that a missing server is never mistaken for a pass."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NoReturn

import pytest

REQUIRED = os.environ.get("TESSERA_REQUIRE_SERVICES") == "1"


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses of a PostgreSQL (a role that may create databases) and of a Redis."""

    database_url: str
    redis_url: str


def missing(what: str) -> NoReturn:
    """A server that is not there: skip, or fail where all must be there."""
    if REQUIRED:
        pytest.fail(f"{what} (TESSERA_REQUIRE_SERVICES=1)")
    pytest.skip(what)


@pytest.fixture(scope="session")
def services() -> Services:
    """PostgreSQL and Redis, named by TESSERA_TEST_DATABASE_URL and TESSERA_TEST_REDIS_URL."""
    urls = [os.environ.get(f"TESSERA_TEST_{name}_URL", "") for name in ("DATABASE", "REDIS")]
    if not all(urls):
        missing("no PostgreSQL and Redis: set TESSERA_TEST_DATABASE_URL and TESSERA_TEST_REDIS_URL")
    return Services(*urls)
