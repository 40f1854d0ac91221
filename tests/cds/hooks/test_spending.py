"""Used tokens and counted calls, over processes: Redis where it is configured, the database otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.utils import timezone

from cds.demo import processes
from cds.errors import Unavailable
from cds.hooks import spending
from cds.hooks.models import HookClient, SpentToken
from tests.cds.hooks.conftest import BASE, Call, token
from tests.flows.workers import free_port

LIST = "/cds-services"


@pytest.fixture(autouse=True)
def _no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "_outage", spending._Outage())
    monkeypatch.setattr(spending, "_local", spending._Local())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of its own."""
    port, folder = free_port(), tmp_path_factory.mktemp("valkey")
    supervisor = processes.Supervisor(logs=folder / "logs", environment={})
    supervisor.start(processes.broker(port=port, folder=Path(folder) / "data"))
    supervisor.wait_until_ready()
    yield f"redis://127.0.0.1:{port}/0"
    supervisor.stop()


@pytest.fixture
def shared(url: str, settings: Any) -> redis.Redis:
    """Redis is configured, and empty."""
    settings.HOOKS_REDIS_URL = url
    client: redis.Redis = redis.Redis.from_url(url)
    client.flushall()
    return client


def test_a_used_token_is_refused_by_every_process(call: Call, shared: redis.Redis) -> None:
    bearer = token(BASE + LIST)
    assert call(LIST, bearer=bearer).status_code == 200
    spending._redis.cache_clear()  # another process has a connection of its own
    assert call(LIST, bearer=bearer).status_code == 401
    assert not SpentToken.objects.exists()
    (kept,) = shared.keys("tessera:jti:*")
    assert 0 < shared.pttl(kept) <= (300 + 60 + 1) * 1000  # until it has expired, skew included


@pytest.mark.parametrize("where", ["redis", "process"])
def test_more_calls_than_allowed_are_429(
    call: Call, settings: Any, shared: redis.Redis, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now().replace(second=40)
    monkeypatch.setattr("cds.hooks.endpoints.timezone.now", lambda: now)
    settings.HOOKS_REDIS_URL = settings.HOOKS_REDIS_URL if where == "redis" else ""
    settings.HOOKS_CALLS_PER_MINUTE = 2
    bearers = [token(BASE + LIST) for _ in range(3)]
    assert [call(LIST, bearer=one).status_code for one in bearers] == [200, 200, 429]
    refused = call(LIST, bearer=token(BASE + LIST))
    assert refused["Retry-After"] == "20"
    assert refused.json()["issue"][0]["code"] == "throttled"
    monkeypatch.setattr("cds.hooks.endpoints.timezone.now", lambda: now + timedelta(seconds=20))
    assert call(LIST).status_code == 200


def test_while_redis_is_away_tokens_signed_since_are_kept_in_the_database(
    hook_client: HookClient, settings: Any, shared: redis.Redis
) -> None:
    now = timezone.now()

    def spend(jti: str, signed_s: float) -> None:
        claims = {"jti": jti, "iat": (now + timedelta(seconds=signed_s)).timestamp()}
        spending.spend(hook_client, claims, keep_until=now + timedelta(minutes=5), now=now)

    there = settings.HOOKS_REDIS_URL
    spend("before", -1)
    settings.HOOKS_REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    with pytest.raises(Unavailable):
        spend("before", -1)  # it may have been spent in Redis: nobody can tell now
    spend("meanwhile", 1)
    with pytest.raises(spending.SpentBefore):
        spend("meanwhile", 1)
    settings.HOOKS_REDIS_URL = there
    spending._outage.ask_again = time.monotonic() - 1
    with pytest.raises(spending.SpentBefore):
        spend("meanwhile", 1)  # Redis has learnt what was spent while it was away
    with pytest.raises(spending.SpentBefore):
        spend("before", -1)
