"""Who did or saw what: written in the transaction of the act itself, linked by hashes, never changed.

Each event's hash is SHA-256 over the hash before it and the event's canonical JSON, so a changed, removed or
inserted row breaks its chain. There are 16 chains: all events of one patient (or, without a patient, of one
object) go to the same one, so that writers about different patients rarely wait for each other. The head of a
chain is locked while an event is appended. The database itself refuses to change or delete events (triggers).

What hashes alone cannot show is a tail cut off together with a rewritten head, by someone who owns the
database; for that, keep the heads elsewhere: `manage.py verify_audit --anchor FILE`.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, Protocol

import structlog
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import connection, transaction
from django.db.models import Max, Model
from django.http import HttpRequest

from cds.audit import callers
from cds.audit.models import AuditChain, AuditEvent
from cds.statements import Insertion, run

CHAINS = 16
OUTCOMES = frozenset({"success", "refused", "failed"})
_TABLE = AuditChain._meta.db_table
HEAD = f"SELECT length, head FROM {_TABLE} WHERE number = %s"  # noqa: S608 (our own table's name)
SET_HEAD = f"UPDATE {_TABLE} SET length = %s, head = %s WHERE number = %s"  # noqa: S608 (the same)
APPEND = f"""
WITH head AS (SELECT number, length + 1 AS next, head FROM {_TABLE} WHERE number = %s FOR UPDATE),
event AS (
  INSERT INTO {AuditEvent._meta.db_table} (
    chain_id, sequence, previous_hash, hash, at, actor, role, action, object_type, object_id, patient_id,
    outcome, source_address, correlation_id, detail)
  SELECT number, next, head, encode(sha256(convert_to(head || %s || next || %s, 'UTF8')), 'hex'),
    %s::timestamptz, %s, %s, %s, %s, %s, %s::uuid, %s, %s, %s, %s::jsonb FROM head
  RETURNING id, chain_id, sequence, previous_hash, hash),
moved AS (UPDATE {_TABLE} SET length = sequence, head = hash FROM event WHERE number = chain_id)
SELECT id, sequence, previous_hash, hash FROM event
"""  # noqa: S608 (our own tables' names)
_IN_TIME = "clock_timestamp() < transaction_timestamp() + %s::float8 * interval '1 second'"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: `user:<id>`, `client:<id>` or `system:<process>`; never a person's name."""

    name: str
    role: str = ""
    address: str = ""


class _HasKey(Protocol):
    @property
    def pk(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """What `verify` found in one chain. `problems` is empty when every event is as it was written."""

    number: int
    length: int
    head: str
    problems: tuple[str, ...] = ()


def person(user: AbstractBaseUser | AnonymousUser, request: HttpRequest | None = None) -> Actor:
    """A signed-in person (or `user:anonymous`), with their roles and the address they came from."""
    address = callers.address_of(request) if request is not None else ""
    if not user.is_authenticated:
        return Actor("user:anonymous", address=address)
    groups = getattr(user, "groups", None)
    roles = "+".join(sorted(groups.values_list("name", flat=True))) if groups is not None else ""
    return Actor(f"user:{user.pk}", role=roles[:40], address=address)


def system(process: str) -> Actor:
    """A process of ours, such as `worker`, `ingest`, `demo`."""
    return Actor(f"system:{process}", role="system")


def client(hook_client: _HasKey | None, request: HttpRequest | None = None) -> Actor:
    """An EHR that calls; None is the open demo, where clients are not told apart."""
    name = f"client:{hook_client.pk}" if hook_client is not None else "client:open"
    return Actor(name, role="ehr", address=callers.address_of(request) if request is not None else "")


def record(
    *,
    by: Actor,
    action: str,
    object_type: str,
    object_id: object,
    now: datetime,
    patient_id: object = None,
    outcome: str = "success",
    **detail: Any,
) -> AuditEvent:
    """Append one event, inside the caller's transaction: the act and its record stand or fall together.

    detail  ids, counts and codes only; never names, notes or values of a patient
    raises  RuntimeError outside a transaction; ValueError for an unknown outcome
    """
    if not connection.in_atomic_block:
        raise RuntimeError("audit.recording.record needs the transaction of the act it records")
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome {outcome!r} is not one of {sorted(OUTCOMES)}")
    number = chain_of(patient_id, object_type, object_id)
    event = _event(number, by, action, object_type, object_id, patient_id, outcome, now, detail)
    if connection.vendor == "postgresql":
        _append_at_once(event)
        return event
    chain = _locked_chain(number)
    _follow(chain, event)
    event.save(force_insert=True)
    with connection.cursor() as cursor:
        cursor.execute(SET_HEAD, [chain.length, chain.head, chain.pk])
    return event


def record_with(
    insertion: Insertion,
    row: Model,
    *,
    by: Actor,
    action: str,
    object_type: str,
    object_id: object,
    now: datetime,
    within_s: float,
    patient_id: object = None,
    **detail: Any,
) -> bool:
    """Insert a row and append its event, both or neither; on PostgreSQL in one statement (see `record`).

    For what is done hundreds of times a second: there is one round trip and no transaction to open.

    within_s  where the chain was held by others for longer than this, nothing is written: False
    """
    began = time.monotonic()
    about = (by, action, object_type, object_id)
    if connection.vendor == "postgresql":
        number = chain_of(patient_id, object_type, object_id)
        event = _event(number, *about, patient_id, "success", now, detail)
        values = [*_values(event), within_s, *insertion.values(row)]
        if run(_append_with(insertion), values).fetchone() is not None:
            return True
        if time.monotonic() - began >= within_s:
            return False
    with transaction.atomic():  # another database, or a chain that has no head yet
        insertion.insert(row)
        record(
            by=by,
            action=action,
            object_type=object_type,
            object_id=object_id,
            now=now,
            patient_id=patient_id,
            **detail,
        )
        is_in_time = time.monotonic() - began < within_s
        if not is_in_time:
            transaction.set_rollback(True)
    return is_in_time


@lru_cache(maxsize=16)
def _append_with(insertion: Insertion) -> str:
    """APPEND, and the insertion of a row for the event it wrote; both only in time. PostgreSQL asks the clock
    when it has the lock, and counts from when the statement came (inside a transaction: from when that
    began, which errs to the slower way of `record_with`), so that its clock need not be ours."""
    append, select = APPEND.rsplit("\nSELECT ", 1)
    append = append.replace("FROM head\n", f"FROM head WHERE {_IN_TIME}\n")
    return f"{append},\nheld AS ({insertion.sql_from('event')})\nSELECT {select}"


def hold(*, patient_id: object, object_type: str = "", object_id: object = "") -> None:
    """Until the caller's transaction ends nobody else records anything of this patient (or, without one, of
    this object): what is read after this and depends on such an act stays true. Keep it short."""
    _locked_chain(chain_of(patient_id, object_type, object_id))


@dataclass(frozen=True, slots=True)
class Act:
    """One of many acts of a kind: what it was done to, and its detail (see `record`)."""

    object_id: object
    patient_id: object
    detail: Mapping[str, Any]


def record_many(*, by: Actor, action: str, object_type: str, now: datetime, acts: Sequence[Act]) -> None:
    """Append an event for each act, inside the caller's transaction, which should end soon after.

    raises  RuntimeError outside a transaction
    """
    if not connection.in_atomic_block:
        raise RuntimeError("audit.recording.record_many needs the transaction of the acts it records")
    numbers = [chain_of(act.patient_id, object_type, act.object_id) for act in acts]
    chains = {number: _locked_chain(number) for number in sorted(set(numbers))}  # one order: no deadlock
    events = []
    for number, act in zip(numbers, acts, strict=True):
        event = _event(
            number, by, action, object_type, act.object_id, act.patient_id, "success", now, act.detail
        )
        _follow(chains[number], event)
        events.append(event)
    AuditEvent.objects.bulk_create(events)
    AuditChain.objects.bulk_update(chains.values(), ["length", "head"])


def _event(
    number: int,
    by: Actor,
    action: str,
    object_type: str,
    object_id: object,
    patient_id: object,
    outcome: str,
    now: datetime,
    detail: Mapping[str, Any],
) -> AuditEvent:
    """An event that has no place in its chain yet."""
    context = structlog.contextvars.get_contextvars()
    return AuditEvent(
        chain_id=number,
        at=now.astimezone(UTC),
        actor=_text(by.name, 150),
        role=_text(by.role, 40),
        action=_text(action, 60),
        object_type=_text(object_type, 60),
        object_id=_text(object_id, 64),
        patient_id=uuid.UUID(str(patient_id)) if patient_id is not None else None,
        outcome=outcome,
        source_address=_text(by.address, 64),
        correlation_id=_text(context.get("correlation_id") or context.get("request_id") or "", 64),
        detail=_plain(detail),
    )


def _follow(chain: AuditChain, event: AuditEvent) -> None:
    """Give an event the place after the head of its locked chain, which moves on to it; nothing is saved."""
    event.sequence, event.previous_hash = chain.length + 1, chain.head
    event.hash = hash_of(event)
    chain.length, chain.head = event.sequence, event.hash


def _append_at_once(event: AuditEvent) -> None:
    """On PostgreSQL: lock the head, insert the event, move the head, in one statement.

    PostgreSQL makes the hash of the same text as `hash_of` does, for only there is the head known.
    """
    values = _values(event)
    found = run(APPEND, values).fetchone()
    if found is None:
        AuditChain.objects.get_or_create(pk=event.chain_id)
        found = run(APPEND, values).fetchone()
    event.pk, event.sequence, event.previous_hash, event.hash = found
    event._state.adding = False


def _values(event: AuditEvent) -> list[Any]:
    """What APPEND wants."""
    before, after = _around_sequence(event)
    return [
        event.chain_id, before, after, event.at, event.actor, event.role, event.action, event.object_type,
        event.object_id, event.patient_id, event.outcome, event.source_address, event.correlation_id,
        json.dumps(event.detail),
    ]  # fmt: skip


def chain_of(patient_id: object, object_type: str, object_id: object) -> int:
    """The chain an event belongs to: by patient, else by object; spread evenly by hash."""
    subject = str(patient_id) if patient_id is not None else f"{object_type}:{object_id}"
    return hashlib.sha256(subject.encode()).digest()[0] % CHAINS


def hash_of(event: AuditEvent) -> str:
    """SHA-256 hex over the previous hash and the event's canonical JSON (sorted keys, UTC times)."""
    before, after = _around_sequence(event)
    return hashlib.sha256(f"{event.previous_hash}{before}{event.sequence}{after}".encode()).hexdigest()


def _around_sequence(event: AuditEvent) -> tuple[str, str]:
    """The canonical JSON before and after the sequence number, which stands last but one by its name."""
    payload = {
        "chain": event.chain_id,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": event.actor,
        "role": event.role,
        "action": event.action,
        "object_type": event.object_type,
        "object_id": event.object_id,
        "patient_id": str(event.patient_id) if event.patient_id else None,
        "outcome": event.outcome,
        "correlation_id": event.correlation_id,
        "detail": event.detail,
    }
    before = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f'{before[:-1]},"sequence":', f',"source_address":{json.dumps(event.source_address)}}}'


def verify(anchors: Mapping[int, tuple[int, str]] | None = None) -> list[ChainCheck]:
    """Recompute every chain. Finds an altered, inserted or removed event, a cut tail and a forged head.

    anchors  chain number -> (length, head) kept elsewhere earlier: that event must still be there, unchanged
    Safe beside writers: each chain is checked up to the head that stood when its check began.
    """
    anchors = anchors or {}
    numbers = set(AuditChain.objects.values_list("number", flat=True))
    numbers |= set(AuditEvent.objects.values_list("chain_id", flat=True).distinct()) | set(anchors)
    return [_verify_chain(number, anchors.get(number)) for number in sorted(numbers)]


def _verify_chain(number: int, anchor: tuple[int, str] | None) -> ChainCheck:
    head = AuditChain.objects.filter(pk=number).first()
    if head is None:
        return ChainCheck(number, 0, "", ("the head of the chain is missing",))
    problems: list[str] = []
    previous, expected, at_anchor = "", 1, ""
    standing = AuditEvent.objects.filter(chain_id=number, sequence__lte=head.length)
    events: Iterable[AuditEvent] = standing.order_by("sequence").iterator(1000)
    for event in events:
        if event.sequence != expected:
            problems.append(f"events {expected} to {event.sequence - 1} are missing")
        if event.previous_hash != previous and event.sequence == expected:
            problems.append(f"event {event.sequence} does not follow the one before it")
        if hash_of(event) != event.hash:
            problems.append(f"event {event.sequence} was altered")
        if anchor is not None and event.sequence == anchor[0]:
            at_anchor = event.hash
        previous, expected = event.hash, event.sequence + 1
    if expected <= head.length:
        problems.append(f"the tail is cut off: events {expected} to {head.length} are missing")
    elif previous != head.head:
        problems.append(f"the head does not match event {head.length}")
    newest = AuditEvent.objects.filter(chain_id=number).aggregate(newest=Max("sequence"))["newest"] or 0
    if newest > AuditChain.objects.get(pk=number).length:
        problems.append(f"the head is behind: it says {head.length}, the newest event is {newest}")
    if anchor is not None and anchor[0] and at_anchor != anchor[1]:
        problems.append(f"event {anchor[0]} is not the one anchored earlier")
    return ChainCheck(number, head.length, head.head, tuple(problems))


def _locked_chain(number: int) -> AuditChain:
    """The head of a chain, locked until the transaction ends (on SQLite the transaction is the lock).

    In plain SQL, for every act of the house passes here.
    """
    statement = HEAD + (" FOR UPDATE" if connection.features.has_select_for_update else "")
    with connection.cursor() as cursor:
        cursor.execute(statement, [number])
        found = cursor.fetchone()
        if found is None:
            AuditChain.objects.get_or_create(pk=number)
            cursor.execute(statement, [number])
            found = cursor.fetchone()
    return AuditChain(number=number, length=found[0], head=found[1])


def _text(value: object, limit: int) -> str:
    return str(value).replace("\x00", "")[:limit]


def _plain(value: Any) -> Any:
    """Only what every database gives back as it was put in: text, whole numbers, lists, objects."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return format(value, ".6g")
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {_text(key, 80): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [_plain(item) for item in items]
    return _text(value, 500)
