"""The parts of a prefetch, so that of one that changed a little only what is new need be read.

A part is a resource, or one entry of a Bundle, known by a digest of its content. A part that was read before,
into a record that nobody has changed since, says nothing new: `Parts.unread` names those. Everything is read
where leaving out could tell another story: when something changed that other resources point to and take
content from (a Medication, a Location, a variant), or a Bundle within a Bundle; and of two versions of one
resource both are read, or neither. What a resource took from another that has since left the prefetch stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ehr.errors import BadResource
from ehr.fhir.elements import Json, get_concept
from ehr.fhir.genomics import is_genomic
from ehr.fhir.resources import READERS
from ehr.fhir.sorting import reader_fingerprint

DIGEST_BYTES = 12  # by chance alike among a million parts: once in 10^16


@dataclass(frozen=True, slots=True)
class Part:
    """One resource and its digest, in which is also where a Bundle says that it lies."""

    resource: Json
    digest: bytes

    @property
    def key(self) -> tuple[str, str]:
        """(type, id), of which there may be two versions."""
        return str(self.resource.get("resourceType")), str(self.resource.get("id"))


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of a prefetch; `is_plain` when each can be read, or not, without the others."""

    held: tuple[Part, ...]
    is_plain: bool

    @property
    def packed(self) -> bytes:
        """The digests one after the other, as `unread` takes them again later."""
        return b"".join(sorted({part.digest for part in self.held}))

    def unread(self, known: bytes) -> frozenset[int]:
        """`id()` of the resources that need not be read again; none where all must be.

        known  `packed` of what was read before, of one prefetch or of several
        """
        before = {known[at : at + DIGEST_BYTES] for at in range(0, len(known), DIGEST_BYTES)}
        changed = [part for part in self.held if part.digest not in before]
        if not before or not self.is_plain or not all(_stands_alone(part.resource) for part in changed):
            return frozenset()
        again = {part.key for part in changed}
        return frozenset(id(part.resource) for part in self.held if part.key not in again)


def prefetch_parts(prefetch: Mapping[str, Any], *, salt: str = "") -> Parts:
    """The parts of a prefetch of resources and Bundles (template key → value); what is neither is skipped.

    salt  what else decides how they are read: with another one, nothing is known any more
    """
    start = hashlib.blake2b(
        f"{reader_fingerprint()} {salt}".encode(), digest_size=DIGEST_BYTES, usedforsecurity=False
    )
    held, is_plain = [], True
    for resource, whole in _resources(prefetch.values()):
        digest = start.copy()
        try:
            digest.update(orjson.dumps(whole))
        except TypeError:  # nested deeper than JSON may be written
            is_plain = False
            continue
        held.append(Part(resource, digest.digest()))
        is_plain &= resource.get("resourceType") != "Bundle"
    return Parts(tuple(held), is_plain)


def _resources(values: Collection[Any]) -> Iterator[tuple[Json, Json]]:
    """(resource, all that is said of it) of each."""
    for value in values:
        if not isinstance(value, Mapping):
            continue
        if value.get("resourceType") != "Bundle":
            yield value, value
            continue
        entries = value.get("entry")
        for entry in entries if isinstance(entries, list) else ():
            resource = entry.get("resource") if isinstance(entry, Mapping) else None
            if isinstance(resource, Mapping):
                yield resource, entry


def _stands_alone(resource: Json) -> bool:
    """Whether no other resource takes anything from this one's content."""
    kind = str(resource.get("resourceType"))
    if kind != "Observation":
        return kind == "Patient" or kind in READERS
    try:
        return not is_genomic(resource, get_concept(resource, "code", "Observation"))
    except BadResource:
        return False
