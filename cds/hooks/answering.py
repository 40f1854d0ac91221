"""Keeping what people did with cards: batches of feedback, in transactions that are short.

Whoever records something of a patient waits for a transaction that has done so before it, so a batch is kept
a few items at a time, those of one audit chain together: none holds two chains, so no two batches wait for
each other. An item is kept once, however often it is sent; what it accepts besides, where an EHR tells each
accepted suggestion by itself with the same second, is added to it. Where a batch ends early, sending it again
is harmless and goes on where it ended.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from uuid import UUID

from django.db import OperationalError, connection, transaction

from cds.audit import recording
from cds.errors import ClinicError
from cds.hooks import limiting
from cds.hooks.budget import Budget
from cds.hooks.client_auth import Caller
from cds.hooks.feedback import Batch, FeedbackItem
from cds.hooks.fields import BadRequest
from cds.hooks.models import CardShown, Feedback
from cds.hooks.replies import Issue
from cds.risk import responding

AT_ONCE = 10  # items of one transaction
_Key = tuple[UUID, str, datetime]
_Held = Mapping[_Key, Sequence[str]]  # what is kept, with the suggestions accepted


class NotAllKept(ClinicError):
    """Something of a batch was not kept: `issues` name every such item, and say how many were kept."""

    def __init__(self, status: int, issues: Sequence[Issue]) -> None:
        super().__init__(issues[0].diagnostics)
        self.status = status
        self.issues = tuple(issues)


@dataclass(frozen=True, slots=True)
class _Told:
    """An item about a card of ours, and the audit chain of its patient."""

    item: FeedbackItem
    card: CardShown
    patient_id: UUID | None
    chain: int

    @property
    def key(self) -> _Key:
        return _key(self.item)


def keep(batch: Batch, *, service_id: str, caller: Caller, time_left: Budget, now: datetime) -> None:
    """Keep every sound item about a card that this service showed to this client.

    raises  NotAllKept: 400 for items that are malformed or accept what their card did not suggest, 404 for
            those about other cards, 503 when the time was over before all of the others were kept
    """
    cards = _cards_of(batch, service_id, caller)
    batch = _without_strangers(batch, cards)
    known = {place: item for place, item in batch.items.items() if item.card in cards}
    held, asked = _held(cards), _once(known.values())
    kept = {key for key, item in asked.items() if not _adds(item, held)}
    told = [_told(item, cards[item.card]) for key, item in asked.items() if key not in kept]
    for some in _in_short(told):
        if time_left.to_keep() <= 0:
            break
        began = time.monotonic()
        try:
            with transaction.atomic():
                _keep_some(some, caller=caller, now=now)
        except OperationalError as error:
            if not limiting.is_overdue(error):
                raise
            break
        kept.update(one.key for one in some)
        if connection.vendor == "sqlite":  # which has one lock for all, and does not queue who waits for it
            time.sleep(min(time.monotonic() - began, time_left.left()))
    _say_what_was_not(batch, known, kept)


def _cards_of(batch: Batch, service_id: str, caller: Caller) -> dict[UUID, CardShown]:
    found = (
        CardShown.objects.select_related("prediction__assessment")
        .defer(
            "prediction__explanation",
            "prediction__assessment__frame_weights",
            "prediction__assessment__basis",
        )
        .filter(pk__in={item.card for item in batch.items.values()}, service=service_id, client=caller.client)
    )
    return {card.pk: card for card in found}


def _without_strangers(batch: Batch, cards: Mapping[UUID, CardShown]) -> Batch:
    """The batch with an item that accepts what its card did not suggest among the faults, the place named."""
    strange: dict[int, BadRequest] = {}
    for place, item in batch.items.items():
        offered = cards[item.card].suggestions if item.card in cards else None
        if offered is None:
            continue
        for index, one in enumerate(item.accepted_suggestions):
            if one not in offered:
                strange[place] = BadRequest(
                    f"no such suggestion of this card: {one}",
                    expression=f"feedback[{place}].acceptedSuggestions[{index}].id",
                )
                break
    sound = {place: item for place, item in batch.items.items() if place not in strange}
    return Batch(batch.size, sound, {**batch.faults, **strange})


def _held(cards: Collection[UUID]) -> _Held:
    rows = Feedback.objects.filter(card__in=cards)
    return {
        (card, outcome, at): accepted
        for card, outcome, at, accepted in rows.values_list(
            "card_id", "outcome", "outcome_at", "accepted_suggestions"
        )
    }


def _once(items: Iterable[FeedbackItem]) -> dict[_Key, FeedbackItem]:
    """Of one said twice the first, with whatever any of them accepts."""
    found: dict[_Key, FeedbackItem] = {}
    for item in items:
        first = found.setdefault(_key(item), item)
        both = tuple(dict.fromkeys((*first.accepted_suggestions, *item.accepted_suggestions)))
        found[_key(item)] = replace(first, accepted_suggestions=both)
    return found


def _adds(item: FeedbackItem, held: _Held) -> bool:
    """Whether an item says more than is kept of it."""
    return _key(item) not in held or not set(item.accepted_suggestions) <= set(held[_key(item)])


def _key(item: FeedbackItem) -> _Key:
    return item.card, item.outcome, item.outcome_at


def _told(item: FeedbackItem, card: CardShown) -> _Told:
    patient = card.prediction.assessment.patient_id if card.prediction is not None else card.patient_id
    return _Told(item, card, patient, recording.chain_of(patient, "CardShown", card.pk))


def _in_short(told: Sequence[_Told]) -> Iterator[Sequence[_Told]]:
    """A few at a time of one chain, each patient's in the order in which they happened."""
    ordered = sorted(told, key=lambda one: (one.chain, str(one.patient_id), one.item.outcome_at))
    for _, theirs in groupby(ordered, key=lambda one: one.chain):
        some = list(theirs)
        yield from (some[start : start + AT_ONCE] for start in range(0, len(some), AT_ONCE))


def _keep_some(told: Sequence[_Told], *, caller: Caller, now: datetime) -> None:
    """Inside the caller's transaction. Whoever keeps the same at the same time waits at the chain."""
    recording.hold(patient_id=told[0].patient_id, object_type="CardShown", object_id=told[0].card.pk)
    held = _held({one.card.pk for one in told})
    more = [one for one in told if _adds(one.item, held)]
    fresh = [one for one in more if one.key not in held]
    Feedback.objects.bulk_create([_row(one, now) for one in fresh])
    for one in more:
        if one.key in held:
            both = list(dict.fromkeys((*held[one.key], *one.item.accepted_suggestions)))
            rows = Feedback.objects.filter(
                card=one.card, outcome=one.item.outcome, outcome_at=one.item.outcome_at
            )
            rows.update(accepted_suggestions=both)
    recording.record_many(
        by=caller.actor,
        action="hook.feedback",
        object_type="CardShown",
        now=now,
        acts=[
            recording.Act(
                one.card.pk, one.patient_id, {"answer": one.item.outcome, "reason": one.item.reason_code}
            )
            for one in more
        ],
    )
    for one in fresh:
        _respond(one.card, one.item, caller=caller, now=now)


def _row(told: _Told, now: datetime) -> Feedback:
    item = told.item
    return Feedback(
        card=told.card,
        outcome=item.outcome,
        outcome_at=item.outcome_at,
        accepted_suggestions=list(dict.fromkeys(item.accepted_suggestions)),
        reason_code=item.reason_code,
        reason_system=item.reason_system,
        comment=item.comment,
        received_at=now,
    )


def _respond(card: CardShown, item: FeedbackItem, *, caller: Caller, now: datetime) -> None:
    """The answer on the panel, of when it was given. A reason that is none of ours stays with feedback."""
    if card.prediction is None:
        return
    if item.outcome == "accepted":
        responding.acknowledge(
            card.prediction, by=caller.actor, user=None, now=now, via="hook", at=item.outcome_at
        )
    elif responding.is_ours(item.reason_system, item.reason_code):
        responding.override(
            card.prediction,
            reason_code=item.reason_code,
            comment=item.comment,
            by=caller.actor,
            user=None,
            now=now,
            via="hook",
            at=item.outcome_at,
        )


def _say_what_was_not(batch: Batch, known: dict[int, FeedbackItem], kept: set[_Key]) -> None:
    """Raise NotAllKept, unless everything was kept."""
    wrong = {
        place: Issue(error.code, str(error), (error.expression,)) for place, error in batch.faults.items()
    } | {
        place: Issue("not-found", f"no such card of this service: {item.card}", (f"feedback[{place}].card",))
        for place, item in batch.items.items()
        if place not in known
    }
    left = [place for place, item in known.items() if _key(item) not in kept]
    said = [wrong[place] for place in sorted(wrong)]
    done = f"{len(known) - len(left)} of {batch.size} items are kept"
    if left:
        late = f"{done}, then the time was over: send the batch again, nothing is kept twice"
        where = tuple(f"feedback[{place}]" for place in left)
        raise NotAllKept(503, [Issue("transient", late, where), *said])
    if said:
        rest = Issue("informational", f"{done}; those named are not", severity="information")
        raise NotAllKept(400 if batch.faults else 404, [*said, rest])
