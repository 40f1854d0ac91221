"""Where the real servers are. Without one, its tests are skipped, saying so; with TESSERA_REQUIRE_SERVICES=1
(as in .ci/run) they fail instead, so that a missing server is never mistaken for a pass."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from tests.services.again import Again

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


def find_services() -> Services | None:
    """PostgreSQL and Redis, named by TESSERA_TEST_DATABASE_URL and TESSERA_TEST_REDIS_URL."""
    urls = [os.environ.get(f"TESSERA_TEST_{name}_URL", "") for name in ("DATABASE", "REDIS")]
    return Services(*urls) if all(urls) else None


@pytest.fixture(scope="session")
def services() -> Services:
    """Both servers, or no test that needs them."""
    found = find_services()
    if found is None:
        missing("no PostgreSQL and Redis: set TESSERA_TEST_DATABASE_URL and TESSERA_TEST_REDIS_URL")
    return found


# -- the suite once more on both, begun with the session and asked for its end ------------------------------
_AGAIN = pytest.StashKey["Again"]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin at once what `test_postgres_redis` will ask for, if it was collected whole."""
    from tests.services.again import Again
    from tests.services.test_postgres_redis import RUNS

    wanted = {item.name for item in session.items if item.path.name == "test_postgres_redis.py"}
    found = find_services()
    if found is None or not wanted or session.config.option.collectonly:
        return
    again = session.config.stash[_AGAIN] = Again(found)
    for name, (arguments, _) in RUNS.items():
        if any(f"[{name}]" in item for item in wanted):
            again.begin(*arguments)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing runs on when the session has ended."""
    again = config.stash.get(_AGAIN, None)
    if again is not None:
        again.stop()


@pytest.fixture
def again(services: Services, request: pytest.FixtureRequest) -> Again:
    """The runs on PostgreSQL and Redis."""
    return request.config.stash[_AGAIN]
