"""A version's card: all 31 source attributes, filled by retraining, edited by people, every text kept.

A retraining writes what a machine can say (`describing`) and carries over what people wrote about the version
before, marked so until somebody has confirmed it. An edit is a new entry; the older ones stay. A version from
before cards were kept shows what a machine can say of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from cds.audit import recording
from cds.errors import Conflict, Invalid, NotFound
from cds.patients import access
from cds.registry import describing, policies
from cds.registry.attributes import ATTRIBUTES, GROUPS, NOT_PROVIDED, Attribute
from cds.registry.models import CardEntry, EntryOrigin, ModelVersion

LONGEST = 4000  # characters of one text
SCHEMA = "tessera-model-card/1"
BASIS = "45 CFR 170.315(b)(11)(iv)(B)"


@dataclass(frozen=True, slots=True)
class CardLine:
    """One attribute as it stands. `number`: how often it was written; `text` "": not provided."""

    attribute: Attribute
    text: str = ""
    origin: str = ""  # machine | person | carried
    number: int = 0
    written_by: str = ""
    written_at: datetime | None = None

    @property
    def shown(self) -> str:
        return self.text or NOT_PROVIDED


@dataclass(frozen=True, slots=True)
class CardGroup:
    """Lines that belong together."""

    key: str
    title: str
    lines: tuple[CardLine, ...]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The whole card of a version."""

    version: ModelVersion
    groups: tuple[CardGroup, ...]

    @property
    def lines(self) -> tuple[CardLine, ...]:
        return tuple(line for group in self.groups for line in group.lines)

    @property
    def missing(self) -> int:
        """How many attributes read "not provided"."""
        return sum(not line.text for line in self.lines)

    @property
    def unconfirmed(self) -> int:
        """How many texts were carried over from the version before and not confirmed yet."""
        return sum(line.origin == EntryOrigin.CARRIED for line in self.lines)


def get_card(version: ModelVersion) -> ModelCard:
    """The newest text of every attribute."""
    newest = {entry.attribute: entry for entry in _entries(version)}  # in order of number: the last one stays
    drafted = {} if newest else describing.describe(version)
    return ModelCard(
        version,
        tuple(
            CardGroup(
                group.key,
                group.title,
                tuple(_line(one, newest.get(one.key), drafted.get(one.key, "")) for one in group.attributes),
            )
            for group in GROUPS
        ),
    )


def list_entries(version: ModelVersion, key: str) -> list[CardEntry]:
    """Everything that was ever written for an attribute, newest first. Raises NotFound."""
    get_attribute(key)
    return list(_entries(version).filter(attribute=key).order_by("-number"))


def get_attribute(key: str) -> Attribute:
    """An attribute by its key; NotFound."""
    if key not in ATTRIBUTES:
        raise NotFound("no such attribute of a model card")
    return ATTRIBUTES[key]


@transaction.atomic
def fill(version: ModelVersion, *, now: datetime) -> int:
    """The first texts of a new version; how many. Part of the transaction that registers it.

    People's texts about the newest earlier version of the same name are carried over.
    """
    if CardEntry.objects.filter(version=version).exists():
        return 0
    earlier = (
        ModelVersion.objects.filter(name=version.name, number__lt=version.number).order_by("-number").first()
    )
    carried = {entry.attribute: entry.text for entry in _entries(earlier)} if earlier else {}
    by_people = {
        entry.attribute
        for entry in (_entries(earlier) if earlier else ())
        if entry.origin != EntryOrigin.MACHINE
    }
    texts = {key: (text, EntryOrigin.MACHINE) for key, text in describing.describe(version).items()}
    texts |= {key: (carried[key], EntryOrigin.CARRIED) for key in by_people if carried[key]}
    CardEntry.objects.bulk_create(
        CardEntry(version=version, attribute=key, number=1, text=text, origin=origin, written_at=now)
        for key, (text, origin) in sorted(texts.items())
    )
    return len(texts)


def edit(
    version: ModelVersion, key: str, text: str, *, number: int, by: recording.Actor, user: User, now: datetime
) -> CardEntry:
    """Write an attribute anew; "" says that it is not provided.

    number   that of the entry the writer saw (0: none)
    raises   NotAllowed, NotFound, Invalid (too long), Conflict (somebody else wrote meanwhile)
    """
    access.check_edit_cards(user)
    attribute, text = get_attribute(key), text.strip()
    if len(text) > LONGEST:
        raise Invalid(f"{attribute.title}: at most {LONGEST} characters, not {len(text)}")
    try:
        with transaction.atomic():
            fill(version, now=now)  # a version from before cards were kept: what was shown is kept beneath
            held = _entries(version).filter(attribute=key).order_by("-number").first()
            if number != (held.number if held else 0):
                raise Conflict(f"{attribute.title} was changed by somebody else meanwhile: look at it again")
            entry = CardEntry.objects.create(
                version=version,
                attribute=key,
                number=number + 1,
                text=text,
                origin=EntryOrigin.PERSON,
                author=user,
                written_at=now,
            )
            recording.record(
                by=by,
                action="card.edit",
                object_type="ModelVersion",
                object_id=version.pk,
                now=now,
                attribute=key,
                number=entry.number,
            )
    except IntegrityError as fault:
        raise Conflict(
            f"{attribute.title} was changed by somebody else meanwhile: look at it again"
        ) from fault
    return entry


def to_json(card: ModelCard) -> Mapping[str, Any]:
    """The card for other systems: every attribute under its group, null where nothing is provided."""
    version = card.version
    return {
        "schema": SCHEMA,
        "basis": BASIS,
        "model": {
            "name": version.name,
            "version": version.number,
            "id": str(version.pk),
            "digest": version.digest,
            "stage": version.stage,
            "created": version.created_at.isoformat(),
            "simulated": version.simulated,
        },
        "privacy": (version.metadata or {}).get("privacy") or None,
        "site_policy": {
            name: policies.policy_of(name).model_dump(by_alias=True) for name in version.outcomes
        },
        "attributes": {
            group.key: {
                line.attribute.key.partition(".")[2]: {
                    "clause": line.attribute.clause,
                    "title": line.attribute.title,
                    "text": line.text or None,
                    "origin": line.origin or None,
                    "revision": line.number,
                    "written": line.written_at.isoformat() if line.written_at else None,
                }
                for line in group.lines
            }
            for group in card.groups
        },
    }


def _entries(version: ModelVersion) -> Any:
    return CardEntry.objects.filter(version=version).select_related("author").order_by("number")


def _line(attribute: Attribute, entry: CardEntry | None, drafted: str) -> CardLine:
    if entry is None:
        return CardLine(attribute, drafted, EntryOrigin.MACHINE if drafted else "", int(bool(drafted)))
    author = entry.author.get_username() if entry.author else ""
    return CardLine(attribute, entry.text, entry.origin, entry.number, author, entry.written_at)
