"""Public keys of the EHRs that call: what may be registered, and sets that are kept at an address (JWKS URL).

Only the registered address is ever read, never one that a token names. A set is read when it is registered
and, beside the calls, whenever the last reading is older than FRESH_S. A call with a `kid` that is not in it
has it read anew at once, but for one client at most every REFETCH_S over all processes, so that made-up kids
cannot make us hammer anybody; the call waits WAIT_S for that at most, and the reading goes on without it.
While an address does not answer, the set read last is believed for BELIEVED_S.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import Q
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

import ehr
from cds.audit import recording
from cds.errors import Invalid
from cds.hooks.models import HookClient

logger = logging.getLogger(__name__)
FRESH_S = 900
BELIEVED_S = 24 * 3600
REFETCH_S = 30
READ_S = 3.0  # for one reading: looking up, connecting, all of the body
WAIT_S = 0.2
MOST_KEYS = 50
LEAST_RSA_BITS = 2048
PRIVATE_PARTS = {"d", "p", "q", "dp", "dq", "qi", "k"}
BY = recording.system("hook_keys")


class Reading(Enum):
    """What came of asking for a set to be read anew."""

    DONE = "read"
    FAILED = "failed"
    UNDER_WAY = "under way"
    NOT_YET = "not yet"  # it was tried less than REFETCH_S ago


def check_keys(jwks: Any) -> dict[str, Any]:
    """A key set that may be registered: public EC P-384 or RSA keys, each with a `kid`. Raises Invalid."""
    kept = []
    for key in _list_of(jwks):
        problem = _problem_of(key)
        if problem:
            raise Invalid(problem)
        kept.append(key)
    return {"keys": kept}


def usable_keys(jwks: Any) -> dict[str, Any]:
    """Those of a set at an address that calls may be signed with; others are for other uses.

    Raises Invalid when there is none, or when the address gives private keys away.
    """
    listed = _list_of(jwks)
    if any(isinstance(key, dict) and PRIVATE_PARTS & key.keys() for key in listed):
        raise Invalid("the set holds private parts of keys: they are known to everybody now, make new ones")
    kept = [key for key in listed if not _problem_of(key)]
    if not kept:
        raise Invalid(f"no key of the set can sign calls: {_problem_of(listed[0])}")
    return {"keys": kept}


def check_url(url: str) -> str:
    """An address that key sets may be read from: https, or plain http to this machine outside production.

    Raises Invalid.
    """
    try:
        scheme, _, _ = ehr.check_base_url(url)
    except ehr.Refused as error:
        raise Invalid(f"{error}: give the address of the key set, such as https://ehr.example/jwks") from None
    if settings.PRODUCTION and scheme != "https":
        raise Invalid("a key set is read by https only")
    if urlsplit(url).fragment or len(url) > 500 or not url.isascii() or not url.isprintable() or " " in url:
        raise Invalid("a JWKS URL is at most 500 plain characters, without a fragment (#)")
    return url


def read(url: str) -> dict[str, Any]:
    """The usable keys at an address. Raises Invalid, with what to do."""
    try:
        return usable_keys(ehr.read_key_set(url, timeout_s=READ_S))
    except ehr.EhrError as error:
        raise Invalid(f"the key set could not be read: {error}") from error


def since(jwks: Mapping[str, Any], held: HookClient | None, now: datetime) -> dict[str, str]:
    """Since when each key has been here, by `kid`: as before for those that are the same."""
    before = {key["kid"]: key for key in held.jwks.get("keys", [])} if held else {}
    times = held.keys_since if held else {}
    return {
        key["kid"]: times.get(key["kid"], now.isoformat())
        if before.get(key["kid"]) == key
        else now.isoformat()
        for key in jwks["keys"]
    }


def is_old(client: HookClient, now: datetime, limit_s: float) -> bool:
    """Whether the set at a client's address was read longer ago than that."""
    return client.keys_read_at is None or now - client.keys_read_at > timedelta(seconds=limit_s)


def ask(client: HookClient, *, now: datetime, wait_s: float = 0) -> Reading:
    """Have a client's set read anew, by one process only, and wait for it so long."""
    tried = client.keys_tried_at
    if tried is not None and now - tried < timedelta(seconds=REFETCH_S):
        return _state_of(client, now)
    if not _claim(client, now):
        client.refresh_from_db(fields=["keys_tried_at", "keys_read_at", "keys_problem"])
        return _state_of(client, now)
    client.keys_tried_at, client.keys_problem = now, ""
    work = _threads.submit(lambda: read_anew(client, now=now))
    try:
        return work.result(timeout=wait_s) if wait_s > 0 else Reading.UNDER_WAY
    except TimeoutError:
        return Reading.UNDER_WAY


def read_anew(client: HookClient, *, now: datetime, by: recording.Actor = BY) -> Reading:
    """Read the set of a client and keep it with its time; where it cannot be read, keep why."""
    rows = HookClient.objects.filter(pk=client.pk, jwks_url=client.jwks_url)  # unless it was moved meanwhile
    try:
        jwks = read(client.jwks_url)
    except Invalid as error:
        logger.warning("keys of a hook client: %s", error)
        rows.update(keys_problem=str(error)[:300])
        return Reading.FAILED
    with transaction.atomic():
        known = {
            "jwks": jwks,
            "keys_since": since(jwks, client, now),
            "keys_read_at": now,
            "keys_problem": "",
        }
        if rows.update(**known) and jwks != client.jwks:
            recording.record(
                by=by,
                action="hook_client.keys",
                object_type="HookClient",
                object_id=client.pk,
                now=now,
                keys=[key["kid"] for key in jwks["keys"]],
                before=[key["kid"] for key in client.jwks.get("keys", [])],
            )
    return Reading.DONE


def _claim(client: HookClient, now: datetime) -> bool:
    """Whether it is our turn to read: one row changes for one of all processes."""
    before = Q(keys_tried_at=None) | Q(keys_tried_at__lte=now - timedelta(seconds=REFETCH_S))
    rows = HookClient.objects.filter(before, pk=client.pk, jwks_url=client.jwks_url)
    return rows.update(keys_tried_at=now, keys_problem="") == 1


def _state_of(client: HookClient, now: datetime) -> Reading:
    """What came of a reading that was begun by somebody less than REFETCH_S ago."""
    tried, done = client.keys_tried_at, client.keys_read_at
    if client.keys_problem:
        return Reading.FAILED
    is_open = tried is not None and (done is None or done < tried)
    if is_open and tried is not None and now - tried < timedelta(seconds=READ_S + 1):
        return Reading.UNDER_WAY
    return Reading.NOT_YET


class _Threads:
    """Readings go on beside the calls that asked for them; each gives its database connection back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], Reading]) -> Future[Reading]:
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(4, thread_name_prefix="hook-keys")
        return self._pool.submit(self._work, work)

    @staticmethod
    def _work(work: Callable[[], Reading]) -> Reading:
        try:
            return work()
        except DatabaseError:
            logger.exception("a key set that was read could not be kept")
            return Reading.FAILED
        finally:
            connection.close()


_threads = _Threads()


def _list_of(jwks: Any) -> list[Any]:
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(keys, list) or not keys:
        raise Invalid('a key set is {"keys": [...]} with at least one key')
    if len(keys) > MOST_KEYS:
        raise Invalid(f"a key set has at most {MOST_KEYS} keys")
    return keys


def _problem_of(key: Any) -> str:
    """Why calls cannot be signed with a key; "" when they can."""
    if not isinstance(key, dict) or key.get("kty") not in ("EC", "RSA"):
        return "each key needs kty EC or RSA"
    kid = key.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 200 or not kid.isprintable():
        return "each key needs a kid, text of at most 200 characters"
    if PRIVATE_PARTS & key.keys():
        return f"key {kid} holds private parts: register the public key set only"
    if key.get("use", "sig") != "sig" or "verify" not in key.get("key_ops", ["verify"]):
        return f"key {kid} is not for signatures (use, key_ops)"
    if key["kty"] == "EC" and key.get("crv") != "P-384":
        return f"key {kid} is not on curve P-384, which ES384 needs"
    if key.get("alg", "") not in ("", "ES384" if key["kty"] == "EC" else "RS384"):
        return f"key {kid} is for another alg: calls are signed with ES384 or RS384"
    try:
        if key["kty"] == "EC":
            ECKey.import_key(key)
        elif RSAKey.import_key(key).raw_value.key_size < LEAST_RSA_BITS:
            return f"key {kid} is shorter than {LEAST_RSA_BITS} bits"
    except (JoseError, ValueError, KeyError, TypeError) as error:
        return f"key {kid} is not a usable key: {type(error).__name__}"
    return ""
