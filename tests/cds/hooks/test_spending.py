"""Used tokens and counted calls, over processes: Redis where it is configured, the database otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
    spending._view.cache_clear()
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
    spending._view.cache_clear()  # another process has a connection of its own
    assert call(LIST, bearer=bearer).status_code == 401
    assert not SpentToken.objects.exists()
    (kept,) = shared.keys("tessera:jti:*")
    assert 0 < shared.pttl(kept) <= (300 + 60 + 1) * 1000  # until it has expired, skew included


def test_a_script_that_redis_does_not_know_any_more(call: Call, shared: redis.Redis) -> None:
    assert call(LIST, bearer=token(BASE + LIST)).status_code == 200
    shared.script_flush()  # as after its restart
    bearer = token(BASE + LIST)
    assert call(LIST, bearer=bearer).status_code == 200
    assert call(LIST, bearer=bearer).status_code == 401
    assert not SpentToken.objects.exists(), "the database had nothing to do with it"


def test_a_thread_whose_connection_to_redis_was_closed(call: Call, shared: redis.Redis) -> None:
    assert call(LIST, bearer=token(BASE + LIST)).status_code == 200
    shared.client_kill_filter(_type="normal", skipme=True)
    bearer = token(BASE + LIST)
    assert call(LIST, bearer=bearer).status_code == 200
    assert call(LIST, bearer=bearer).status_code == 401
    assert not SpentToken.objects.exists()


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


# -- faults of Redis, seen by two processes -----------------------------------------------------------
class Process:
    """One process's view of Redis and of the client, which it reads anew only when it is told to."""

    def __init__(self, url: str, client: HookClient, clock: Clock, settings: Any) -> None:
        self._there, self._clock, self._settings = url, clock, settings
        self._away = f"redis://127.0.0.1:{free_port()}/0"
        self._views = {at: spending._View(at) for at in (self._there, self._away)}
        self._pk, self.is_cut_off = client.pk, False
        self.read_client()

    def read_client(self) -> None:
        self._client = HookClient.objects.get(pk=self._pk)

    def spend(self, jti: str, signed: datetime) -> str:
        """What becomes of a token: taken, or the name of the refusal."""
        self._settings.HOOKS_REDIS_URL = self._away if self.is_cut_off else self._there
        for view in self._views.values():
            view._ask_again = 0.0  # the second of rest is over
        with patch.object(spending, "_view", self._views.__getitem__):
            try:
                spending.spend(
                    self._client,
                    {"jti": jti, "iat": signed.timestamp()},
                    keep_until=signed + timedelta(minutes=5),
                    now=self._clock.now,
                )
            except (spending.SpentBefore, Unavailable) as error:
                return type(error).__name__
        return "taken"


@dataclass
class Clock:
    """What all processes take the time to be."""

    now: datetime

    def later(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(timezone.now())


@pytest.fixture
def pair(
    shared: redis.Redis, hook_client: HookClient, clock: Clock, settings: Any
) -> tuple[Process, Process]:
    """Two processes; the client has called before."""
    url = settings.HOOKS_REDIS_URL
    first, second = (Process(url, hook_client, clock, settings) for _ in range(2))
    long_ago = int((clock.now.timestamp() - 900) * 1000)
    HookClient.objects.update(first_epoch="the-one-before")
    shared.hset(spending.EPOCH_KEY, shared.info("server")["run_id"], f"{long_ago}-an-epoch")
    for one in (first, second):
        one.read_client()
    return first, second


def test_a_fault_that_one_process_sees_lets_no_token_pass_twice(
    pair: tuple[Process, Process], clock: Clock
) -> None:
    cut, well = pair
    assert well.spend("in-redis", clock.now) == "taken"
    cut.is_cut_off = True
    assert cut.spend("in-redis", clock.now) == "Unavailable"  # may have been used in Redis: nobody can tell
    signed = clock.later(1)  # after the fault was noticed; the other process does not know yet
    assert well.spend("unnoticed", signed) == "taken"
    assert not SpentToken.objects.exists()
    clock.later(spending.LEASE_S)
    assert cut.spend("unnoticed", signed) == "Unavailable"
    well.read_client()  # every KEPT_S
    signed = clock.later(2)
    assert cut.spend("by-database", signed) == "taken"
    assert well.spend("by-database", signed) == "SpentBefore"
    assert well.spend("by-both", signed) == "taken"
    assert cut.spend("by-both", signed) == "SpentBefore"


def test_a_client_whose_clock_is_ahead_gains_nothing_by_a_fault(
    pair: tuple[Process, Process], clock: Clock
) -> None:
    cut, well = pair
    signed = clock.now + timedelta(seconds=40)
    assert well.spend("early", signed) == "taken"
    cut.is_cut_off = True
    assert cut.spend("another", clock.now) == "Unavailable"
    clock.later(spending.LEASE_S + 1)
    assert cut.spend("early", signed) == "SpentBefore"
    clock.later(spending.AHEAD_S)
    assert cut.spend("now", clock.now) == "taken", "and nobody waits until that clock is reached"


def test_when_redis_is_back_it_need_not_be_told(pair: tuple[Process, Process], clock: Clock) -> None:
    flapping, well = pair
    flapping.is_cut_off = True
    assert flapping.spend("first", clock.now) == "Unavailable"
    signed = clock.later(spending.LEASE_S + 2)
    assert flapping.spend("meanwhile", signed) == "taken"
    flapping.is_cut_off = False
    for one in pair:
        one.read_client()
        assert one.spend("meanwhile", signed) == "SpentBefore"
    flapping.is_cut_off = True
    assert flapping.spend("again", signed) == "taken"
    flapping.is_cut_off = False
    assert [one.spend("again", signed) for one in pair] == ["SpentBefore"] * 2
    kept = SpentToken.objects.count()
    clock.later(2 * spending.HELD_S)  # all that was accepted by the database alone has expired
    assert well.spend("afterwards", clock.now) == "taken"
    assert SpentToken.objects.count() == kept  # by Redis alone again


def test_a_long_outage_goes_on_by_the_database(pair: tuple[Process, Process], clock: Clock) -> None:
    cut, well = pair
    cut.is_cut_off = True
    assert cut.spend("first", clock.now) == "Unavailable"
    clock.later(spending.LEASE_S + 2)
    well.read_client()
    for call in range(30):
        signed = clock.later(60)
        assert cut.spend(f"call {call}", signed) == "taken"
        assert well.spend(f"call {call}", signed) == "SpentBefore"  # by what it read up to a minute ago
        well.read_client()


@pytest.mark.parametrize("fault", ["emptied", "restarted or replaced"])
def test_what_redis_has_lost_is_not_taken_again(
    pair: tuple[Process, Process], clock: Clock, shared: redis.Redis, fault: str
) -> None:
    first, second = pair
    signed = clock.now
    assert first.spend("used", signed) == "taken"
    ahead = clock.now + timedelta(seconds=30)
    assert first.spend("early", ahead) == "taken"
    rounded_up = clock.now + timedelta(seconds=spending.AHEAD_S)
    assert first.spend("rounded up", rounded_up) == "taken"
    if fault == "emptied":
        shared.flushall()
    else:  # with what was on disk a while ago, and under another name
        shared.delete(*shared.keys("tessera:jti:*"))
        begun = shared.hvals(spending.EPOCH_KEY)[0]
        shared.delete(spending.EPOCH_KEY)
        shared.hset(spending.EPOCH_KEY, "another-run", begun)
    assert [one.spend("used", signed) for one in pair] == ["Unavailable"] * 2
    assert [one.spend("rounded up", rounded_up) for one in pair] == ["Unavailable"] * 2
    assert [one.spend("early", ahead) for one in pair] == ["SpentBefore"] * 2
    clock.later(spending.AHEAD_S + spending.CLOCKS_S + 0.1)
    assert second.spend("new", clock.now) == "taken"
    assert first.spend("new", clock.now) == "SpentBefore"
    clock.later(31)
    shared.delete(*shared.keys("tessera:jti:*"))
    assert second.spend("early", ahead) == "SpentBefore", "though its clock is not ahead any more"
    clock.later(spending.SKEW_S)
    noted = SpentToken.objects.count()
    assert second.spend("later", clock.now) == "taken"
    assert SpentToken.objects.count() == noted, "by Redis alone again"


def test_a_client_that_never_called_is_not_held_up_by_a_store_that_is_new(
    shared: redis.Redis, hook_client: HookClient, clock: Clock, settings: Any
) -> None:
    one = Process(settings.HOOKS_REDIS_URL, hook_client, clock, settings)
    assert [one.spend(jti, clock.now) for jti in ("first", "second", "first")] == [
        "taken",
        "taken",
        "SpentBefore",
    ]


def test_a_redis_that_may_evict_keys_is_not_used(
    pair: tuple[Process, Process], clock: Clock, shared: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    shared.config_set("maxmemory", "100mb")
    shared.config_set("maxmemory-policy", "allkeys-lru")
    try:
        fresh, _ = pair
        for view in fresh._views.values():
            view._is_fit = False  # as in a process that has just started
        assert fresh.spend("any", clock.now) == "Unavailable"
        assert "set its maxmemory-policy to noeviction" in caplog.text
        clock.later(spending.LEASE_S + 2)
        assert fresh.spend("by-database", clock.now) == "taken"
        assert SpentToken.objects.count() == 1
    finally:
        shared.config_set("maxmemory-policy", "noeviction")
        shared.config_set("maxmemory", "0")


def test_a_call_whose_answer_was_lost_is_no_replay_of_itself(
    pair: tuple[Process, Process], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = iter([True])
    read = redis.connection.Connection.read_response

    def once_lost(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = read(self, *args, **kwargs)
        if next(lost, False):
            raise redis.TimeoutError("lost on the way")
        return answer

    monkeypatch.setattr(redis.connection.Connection, "read_response", once_lost)
    assert pair[0].spend("any", clock.now) == "taken"
    assert next(lost, None) is None


def test_a_call_that_was_held_up_too_long_uses_no_token(
    pair: tuple[Process, Process], clock: Clock, hook_client: HookClient
) -> None:
    client = HookClient.objects.get()
    with pytest.raises(Unavailable, match="held up"):
        spending.spend(
            client,
            {"jti": "late", "iat": clock.now.timestamp()},
            keep_until=clock.now + timedelta(minutes=5),
            now=clock.now,
            known_at=time.monotonic() - spending.READ_S - 0.1,
        )


def test_the_usual_call_asks_redis_once_and_the_database_nothing(
    pair: tuple[Process, Process], clock: Clock, shared: redis.Redis, django_assert_num_queries: Any
) -> None:
    assert pair[1].spend("warm", clock.now) == "taken"
    calls = shared.info("commandstats")["cmdstat_evalsha"]["calls"]
    with django_assert_num_queries(0):
        assert pair[1].spend("usual", clock.now) == "taken"
    assert shared.info("commandstats")["cmdstat_evalsha"]["calls"] == calls + 1
