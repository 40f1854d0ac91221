"""What a caller has used up, over all processes: tokens that may not come again, and calls in this minute.

Without REDIS_URL (the embedded default) used tokens are rows of the database and calls are counted by each
process alone, so that two web processes together let twice the limit through.

With REDIS_URL both are kept in Redis, in one round trip and without a statement of the database. Redis may
lose what it holds, and may be out of reach of one process and not of another. Nobody can use a token twice
all the same, as long as the clocks of our machines and of Redis agree to CLOCKS_S:

1. A token whose `iat` is more than AHEAD_S ahead of our clock is noted in the database as well, for good. So
   what Redis alone knows was signed at most AHEAD_S after it was accepted.
2. Redis was emptied, restarted, or another one took its place: the epoch, which names the server's run, is
   missing then, and is begun anew by whoever comes first. What was signed before, or AHEAD_S and CLOCKS_S
   after, may have been used, and is refused. What was signed up to SKEW_S later can have been used only if it
   came early, and then stands in the database (rule 1), so it is noted there too. A client whose first token
   was used in this epoch has lost nothing and is not held up.
   A Redis that may evict keys is not used at all.
3. A process that Redis does not answer writes `database_from` (LEASE_S ahead) and `database_until` into the
   client's row. All processes read that row anew every KEPT_S (`client_auth`) and use no token later than
   READ_S after that, so from `database_from` on all of them note tokens in the database too, whether they
   reach Redis or not. Only then does the process accept tokens by the database alone, and only those that
   were signed more than AHEAD_S after `database_from`, which Redis alone cannot have accepted (rule 1).
4. `database_until` is at least when the last token accepted by the database alone has expired; so when all
   go by Redis alone again, there is nothing that it would have to be told.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import redis
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Value
from django.db.models.functions import Coalesce, Greatest

from cds.errors import ClinicError, Unavailable
from cds.hooks.models import HookClient, SpentToken

logger = logging.getLogger(__name__)
TIMEOUT_S = 0.1
AWAY_S = 1.0  # Redis is not asked again for this long after it failed
MINUTE_S = 60
PURGE_EVERY_S = 60.0

SKEW_S = 60  # how far a caller's clock may be from ours; the official sandbox rounds `iat` up (INTEROP 19)
AHEAD_S = 1.0  # as far as that is no trouble: tokens further ahead cost a row of the database
KEPT_S = 2.0  # how long a process believes what it read of a client
READ_S = 1.0  # from then on, how long a call may take until its token is used up
CLOCKS_S = 1.0  # how far the clocks of our machines may be apart
LEASE_S = KEPT_S + READ_S + CLOCKS_S
HELD_S = 600.0  # after Redis failed a process, all note tokens in the database for at least this long
RENEW_S = 60.0  # `database_until` that is nearer than this may be unknown to somebody before it is over

_EPOCH = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local epoch = redis.call('HGET', KEYS[1], run)
if not epoch then
  local clock = redis.call('TIME')
  local begun = math.max(clock[1] * 1000 + clock[2] / 1000 + 1, tonumber(ARGV[1]))
  epoch = string.format('%.0f-', begun) .. ARGV[2]
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], run, epoch)
end
"""
EPOCH = f"{_EPOCH} return epoch"
SPEND = f"""{_EPOCH}
local nonce, lasting, signed, first = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local after, known = signed - tonumber(string.match(epoch, '%d+')), 1
if first ~= epoch then
  if after <= tonumber(ARGV[6]) then return {{-2, 0}} end
  if after <= tonumber(ARGV[7]) then known = 0 end
end
if not redis.call('SET', KEYS[2], nonce, 'NX', 'PX', lasting) and redis.call('GET', KEYS[2]) ~= nonce then
  return {{-1, 0}}
end
local calls = redis.call('INCR', KEYS[3])
if calls == 1 then redis.call('PEXPIRE', KEYS[3], 120000) end
return {{calls, known}}
"""
_SPENT, _UNSURE = -1, -2
EPOCH_KEY = "tessera:spending:epoch"


class TooMany(ClinicError):
    """More calls than the site allows (429); `retry_after_s` until the next minute begins."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SpentBefore(ClinicError):
    """This jti was used and has not expired."""


def spend(
    client: HookClient,
    claims: Mapping[str, Any],
    *,
    keep_until: datetime,
    now: datetime,
    known_at: float | None = None,
) -> None:
    """Use a token up, committed before anything else is done with it, and count the call.

    client      its row, as read at most KEPT_S before `known_at`
    keep_until  when the token has expired for certain
    known_at    `time.monotonic()`; None: now
    raises      SpentBefore, TooMany, Unavailable
    """
    known_at = time.monotonic() if known_at is None else known_at
    minute = int(now.timestamp() // MINUTE_S)
    calls = None
    if settings.HOOKS_REDIS_URL:
        answer = _view(settings.HOOKS_REDIS_URL).spend(client, claims, keep_until, minute, now)
        if answer is None:
            _instead_of_redis(client, claims, keep_until, now)
        else:
            calls, is_known = answer
            is_ahead = claims["iat"] > now.timestamp() + AHEAD_S
            if is_ahead or not is_known or _is_noted_too(client, now):
                _note(client, claims["jti"], keep_until, now)
        if time.monotonic() - known_at > READ_S:  # what was read of the client may be too old by now
            raise Unavailable(
                "the call was held up before its token was used: sign a new token and try again"
            )
    else:
        _note(client, claims["jti"], keep_until, now)
    if calls is None:
        calls = _local.count(str(client.pk), minute)
    limit = settings.HOOKS_CALLS_PER_MINUTE
    if limit and calls > limit:
        wait = MINUTE_S - int(now.timestamp()) % MINUTE_S
        raise TooMany(f"more than {limit} calls in a minute: wait, then try again", retry_after_s=wait)


def expires(claims: Mapping[str, Any]) -> datetime:
    """When a token can no longer be used anywhere."""
    return datetime.fromtimestamp(claims["exp"] + SKEW_S, tz=UTC) + timedelta(seconds=1)


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


_local = _Local()
_purged = 0.0


# -- Redis -------------------------------------------------------------------------------------------
class _View:
    """Redis, as one process sees it."""

    def __init__(self, url: str) -> None:
        self._store: redis.Redis = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 1),  # an idle connection may have been closed
        )
        self._own = threading.local()  # a thread's own connection, which no pool hands out and takes back
        self._sha = hashlib.sha1(SPEND.encode(), usedforsecurity=False).hexdigest()  # as Redis names a script
        self._epoch = self._store.register_script(EPOCH)
        self._is_away, self._is_fit, self._ask_again, self._told = False, False, 0.0, -math.inf

    def spend(
        self, client: HookClient, claims: Mapping[str, Any], keep_until: datetime, minute: int, now: datetime
    ) -> tuple[int, bool] | None:
        """Calls in this minute, and whether Redis alone knows that the token is unused; None: it is away."""
        if self._is_away:
            if time.monotonic() < self._ask_again:
                return None
            self._ask_again = time.monotonic() + AWAY_S  # one call finds out, the others go on without
        try:
            if not self._is_fit:
                self._check_fit()
            first = client.first_epoch or self._first(client, now)
            calls, is_known = self._run(
                EPOCH_KEY,
                f"tessera:jti:{client.pk}:{claims['jti']}",
                f"tessera:calls:{client.pk}:{minute}",
                _ms(now.timestamp()),
                uuid.uuid4().hex,  # a call asked twice, over a broken connection, is no replay
                max(1, _ms((keep_until - now).total_seconds())),
                _ms(claims["iat"]),
                first,
                _ms(AHEAD_S + CLOCKS_S),
                _ms(SKEW_S + CLOCKS_S),
            )
        except (redis.RedisError, OSError) as error:
            self._is_away, self._is_fit, self._ask_again = True, False, time.monotonic() + AWAY_S
            logger.warning("Redis is not used: used tokens are kept in the database for now (%s)", error)
            return None
        self._is_away = False
        if calls == _SPENT:
            raise SpentBefore("this jti was used before")
        if calls == _UNSURE:
            self._tell()
            raise Unavailable("the store of used tokens has just begun anew: sign a new token and try again")
        return calls, bool(is_known)

    def _run(self, *values: str | int) -> list[int]:
        """SPEND with its three keys and its values. Raises RedisError."""
        own: redis.Redis | None = getattr(self._own, "store", None)
        if own is None:
            own = self._own.store = self._store.client()
        try:
            answer: list[int] = own.execute_command("EVALSHA", self._sha, 3, *values)
        except redis.exceptions.NoScriptError:
            answer = own.execute_command("EVAL", SPEND, 3, *values)
        return answer

    def _check_fit(self) -> None:
        """A store that drops keys when it is full forgets used tokens. Raises RedisError for one."""
        told = self._store.info("memory")
        if int(told.get("maxmemory", 0)) and told.get("maxmemory_policy", "noeviction") != "noeviction":
            raise redis.RedisError("it may evict keys: set its maxmemory-policy to noeviction")
        self._is_fit = True

    def _first(self, client: HookClient, now: datetime) -> str:
        """Rule 2: the epoch in which Redis came to know a token of this client, for the first time ever."""
        found = self._epoch(keys=[EPOCH_KEY], args=[_ms(now.timestamp()), uuid.uuid4().hex])
        row = HookClient.objects.filter(pk=client.pk)
        row.filter(first_epoch="").update(first_epoch=found.decode())
        client.first_epoch = row.values_list("first_epoch", flat=True).get()
        return client.first_epoch

    def _tell(self) -> None:
        """Once in a while, for every call of some seconds is refused."""
        if time.monotonic() - self._told > MINUTE_S:
            self._told = time.monotonic()
            logger.warning(
                "Redis was emptied, restarted or replaced: tokens signed before that, and for %d s after, "
                "are refused, for nobody knows which were used",
                int(AHEAD_S + CLOCKS_S),
            )


@lru_cache(maxsize=2)
def _view(url: str) -> _View:
    return _View(url)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


# -- the database ------------------------------------------------------------------------------------
def _is_noted_too(client: HookClient, now: datetime) -> bool:
    """Rule 3: whether somebody may be accepting tokens by the database alone, or has until lately."""
    return client.database_until is not None and client.database_until > now - timedelta(seconds=CLOCKS_S)


def _instead_of_redis(
    client: HookClient, claims: Mapping[str, Any], keep_until: datetime, now: datetime
) -> None:
    """Rules 3 and 4. Raises SpentBefore, and Unavailable for what may have been used in Redis."""
    row = HookClient.objects.filter(pk=client.pk)
    since, until = row.values_list("database_from", "database_until").get()
    if until is None or since is None or until < now + timedelta(seconds=RENEW_S):
        since = now + timedelta(seconds=LEASE_S)
        row.update(database_from=since, database_until=_at_least(now + timedelta(seconds=HELD_S)))
        until = None
    if until is None or claims["iat"] <= since.timestamp() + AHEAD_S:
        raise Unavailable("the store of used tokens has just changed: sign a new token and try again")
    with transaction.atomic():
        if keep_until > until:
            row.update(database_until=_at_least(keep_until + timedelta(seconds=HELD_S)))
        _note(client, claims["jti"], keep_until, now)


def _at_least(moment: datetime) -> Any:
    return Greatest(Coalesce(F("database_until"), Value(moment)), Value(moment))


def _note(client: HookClient, jti: str, keep_until: datetime, now: datetime) -> None:
    global _purged
    if time.monotonic() - _purged > PURGE_EVERY_S:
        _purged = time.monotonic()
        SpentToken.objects.filter(expires_at__lt=now).delete()
    try:
        with transaction.atomic():
            SpentToken.objects.create(client=client, jti=jti, expires_at=keep_until)
    except IntegrityError:
        raise SpentBefore("this jti was used before") from None
