"""What a caller has used up, over all processes: tokens that may not come again, and calls in this minute.

With REDIS_URL set both are kept in Redis, in one round trip. Without it (the embedded default), spent tokens
are rows of the database and calls are counted by each process alone, so that two web processes together let
twice the limit through.

When Redis is away, tokens are kept in the database instead. Only a token signed after we noticed is taken
then, for an older one may have been spent in Redis: the caller gets 503 and signs anew. When Redis is back,
it learns the tokens spent meanwhile before it is asked again. Calls are not counted while it is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import redis
from django.conf import settings
from django.db import IntegrityError, transaction
from redis.commands.core import Script

from cds.errors import ClinicError, Unavailable
from cds.hooks.models import HookClient, SpentToken

logger = logging.getLogger(__name__)
TIMEOUT_S = 0.1
AWAY_S = 2.0  # Redis is not asked again for this long after it failed
MINUTE_S = 60
PURGE_EVERY_S = 60.0
SPEND = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return -1 end
local calls = redis.call('INCR', KEYS[2])
if calls == 1 then redis.call('PEXPIRE', KEYS[2], 120000) end
return calls
"""


class TooMany(ClinicError):
    """More calls than the site allows (429); `retry_after_s` until the next minute begins."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SpentBefore(ClinicError):
    """This jti was used and has not expired."""


def spend(client: HookClient, claims: Mapping[str, Any], *, keep_until: datetime, now: datetime) -> None:
    """Use a token up, committed before anything else is done with it, and count the call.

    keep_until  when the token has expired for certain
    raises      SpentBefore, TooMany, Unavailable
    """
    minute = int(now.timestamp() // MINUTE_S)
    calls = _spend_in_redis(client, claims, keep_until, minute, now) if settings.HOOKS_REDIS_URL else None
    if calls is None:
        _spend_in_database(client, str(claims["jti"]), keep_until, now)
        calls = 0 if settings.HOOKS_REDIS_URL else _local.count(str(client.pk), minute)
    limit = settings.HOOKS_CALLS_PER_MINUTE
    if limit and calls > limit:
        wait = MINUTE_S - int(now.timestamp()) % MINUTE_S
        raise TooMany(f"more than {limit} calls in a minute: wait, then try again", retry_after_s=wait)


class _Local:
    """Calls of each client in this minute, in this process."""

    def __init__(self) -> None:
        self._lock, self._minute, self._counts = threading.Lock(), 0, dict[str, int]()

    def count(self, client: str, minute: int) -> int:
        with self._lock:
            if minute != self._minute:
                self._minute, self._counts = minute, {}
            self._counts[client] = self._counts.get(client, 0) + 1
            return self._counts[client]


class _Outage:
    """Whether Redis is away, since when, and until when it is not asked again."""

    def __init__(self) -> None:
        self.since: datetime | None = None
        self.ask_again = 0.0


_local = _Local()
_outage = _Outage()
_purged = 0.0


def _spend_in_redis(
    client: HookClient, claims: Mapping[str, Any], keep_until: datetime, minute: int, now: datetime
) -> int | None:
    """Calls in this minute; None when Redis is away and the database has to do."""
    if _outage.since is None or time.monotonic() >= _outage.ask_again:
        store = _redis(settings.HOOKS_REDIS_URL)
        try:
            if _outage.since is not None:
                _bring_back(store, now)
            keys = [_key(client.pk, claims["jti"]), f"tessera:calls:{client.pk}:{minute}"]
            left_ms = max(1, int((keep_until - now).total_seconds() * 1000))
            calls = int(_script(settings.HOOKS_REDIS_URL)(keys=keys, args=[left_ms]))
        except (redis.RedisError, OSError):
            _outage.since = _outage.since or now
            _outage.ask_again = time.monotonic() + AWAY_S
            logger.warning("Redis is out of reach: spent tokens are kept in the database for now")
        else:
            if calls < 0:
                raise SpentBefore("this jti was used before")
            return calls
    since = _outage.since
    if since is not None and claims["iat"] < since.timestamp():
        raise Unavailable("the store of spent tokens has just changed: sign a new token and try again")
    return None


def _bring_back(store: redis.Redis, now: datetime) -> None:
    """Tell Redis which tokens were spent while it was away."""
    with store.pipeline(transaction=False) as pipe:
        for client_id, jti, until in SpentToken.objects.filter(expires_at__gt=now).values_list(
            "client_id", "jti", "expires_at"
        ):
            pipe.set(_key(client_id, jti), "1", px=max(1, int((until - now).total_seconds() * 1000)))
        pipe.execute()
    _outage.since = None


def _spend_in_database(client: HookClient, jti: str, keep_until: datetime, now: datetime) -> None:
    global _purged
    if time.monotonic() - _purged > PURGE_EVERY_S:
        _purged = time.monotonic()
        SpentToken.objects.filter(expires_at__lt=now).delete()
    try:
        with transaction.atomic():
            SpentToken.objects.create(client=client, jti=jti, expires_at=keep_until)
    except IntegrityError:
        raise SpentBefore("this jti was used before") from None


def expires(claims: Mapping[str, Any], skew_s: int) -> datetime:
    """When a token can no longer be used anywhere."""
    return datetime.fromtimestamp(claims["exp"] + skew_s, tz=UTC) + timedelta(seconds=1)


def _key(client_id: object, jti: object) -> str:
    return f"tessera:jti:{client_id}:{jti}"


@lru_cache(maxsize=2)
def _script(url: str) -> Script:
    return _redis(url).register_script(SPEND)


@lru_cache(maxsize=2)
def _redis(url: str) -> redis.Redis:
    client: redis.Redis = redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 1),  # one: an idle connection may have been closed
    )
    return client
