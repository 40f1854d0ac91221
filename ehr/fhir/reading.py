"""Reading resources from memory and from folders of Bundles, single resources and NDJSON.

A folder is sorted by patient first (`ehr.fhir.sorting`) and then read piece by piece: a folder of any size
takes the memory of its largest Bundle, or of one bucket and one patient. A file that is not FHIR is set
aside with its reason; the rest goes on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr.errors import BadResource, TooLarge
from ehr.fhir.genomics import is_variant
from ehr.fhir.resources import Gathering, ReadingTally
from ehr.fhir.scope import Scope
from ehr.fhir.sorting import (
    MAX_FILE_BYTES,
    NOBODY,
    Bucket,
    Shelf,
    SortedFolder,
    parse_document,
    read_bucket,
    read_content,
    sort_folder,
)
from ehr.records import PatientRecord, SetAside

BATCH = 20_000  # resources of one patient that are read at once; more come in several records
HELD_BYTES = 64 * 2**20  # a bucket larger than this is read in parts, and a patient may come in several


def read_resources(
    resources: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    tally: ReadingTally | None = None,
    unread: Container[int] = (),
) -> list[PatientRecord]:
    """Read resources and Bundles, and group them by patient.

    resources  (where it came from, the resource as parsed JSON)
    tally      counts what became of each, where given
    unread     `id()` of those that are here only because others may point to them
    returns    one record per patient; what cannot be laid to a patient is set aside in a record whose
               patient has the id ""
    """
    items = list(resources)
    gathering, scope = Gathering(tally, unread=unread), Scope()
    for _, resource in items:
        if isinstance(resource, Mapping) and resource.get("resourceType") != "Bundle":
            scope.remember(resource)
    for where, resource in items:
        if isinstance(resource, Mapping):
            gathering.add(where, resource, scope)
        else:
            gathering.put_aside(where, "", "", "not a FHIR resource: not a JSON object")
    return gathering.take()


def read_fhir_folder(
    folder: Path, *, tally: ReadingTally | None = None, max_file_bytes: int = MAX_FILE_BYTES
) -> Iterator[PatientRecord]:
    """Read a folder of Bundles, resources and NDJSON (each also gzipped), or one such file.

    A Bundle yields its patients at once, everything else is gathered by patient over all files; a patient
    with more than `BATCH` resources comes in several records, the later ones with a stub identity.
    Raises BadResource when there is no such folder.
    """
    tally = tally if tally is not None else ReadingTally()
    with tempfile.TemporaryDirectory(prefix="tessera-fhir-") as scratch:
        laid_out = sort_folder(folder, Path(scratch), max_file_bytes=max_file_bytes)
        tally.ignored.update(laid_out.ignored)
        for bucket in (None, *laid_out.buckets):
            for piece in read_pieces(laid_out, bucket):
                yield from piece.read(tally)


@dataclass(frozen=True, slots=True)
class Piece:
    """What belongs together: the lines of one patient, or one Bundle.

    digest  SHA-256 hex of its content, of what it may point to and of the code that reads it: the same again
            says the same again. "" when it must be read in any case
    """

    digest: str
    _lines: tuple[tuple[str, bytes], ...] = ()
    _outer: Scope = field(default_factory=Scope)
    _aside: tuple[SetAside, ...] = ()

    @property
    def lines(self) -> int:
        """How many there are: resources, or one Bundle."""
        return len(self._lines)

    def read(self, tally: ReadingTally) -> Iterator[PatientRecord]:
        """The records in it: one, but for Bundles about several patients and for very long records."""
        gathering, scope = Gathering(tally), Scope(outer=self._outer)
        for item in self._aside:
            gathering.put_aside(item.where, item.kind, item.identity, item.reason)
        for place, content in self._lines:
            try:
                resource = parse_document(content)
            except BadResource as error:
                gathering.put_aside(place, "", "", str(error))
                continue
            if resource.get("resourceType") == "Observation" and is_variant(resource):
                scope.remember(resource)
            gathering.add(place, resource, scope)
            if gathering.size >= BATCH:
                yield from gathering.take()
        yield from gathering.take()


def read_pieces(laid_out: SortedFolder, bucket: Bucket | None) -> Iterator[Piece]:
    """The pieces of one bucket of a sorted folder; without a bucket, what lies in none: files set aside."""
    if bucket is None:
        if laid_out.set_aside:
            yield Piece("", _aside=laid_out.set_aside)
        return
    outer = Scope(by_id=Shelf(laid_out.shelf))
    for path, where in bucket.documents:
        try:
            content = read_content(path, laid_out.max_file_bytes)
        except (BadResource, TooLarge) as error:
            yield Piece("", _aside=(SetAside(where, "", "", str(error)),))
            continue
        yield Piece(_digest(laid_out, [content]), ((where, content),), outer)
    held: dict[str, list[tuple[str, bytes]]] = {}
    size = 0
    for patient, name, number, line in read_bucket(bucket):
        place = laid_out.names[name]
        held.setdefault(patient, []).append((f"{place}:{number}" if number else place, line))
        size += len(line)
        if size >= HELD_BYTES:
            yield from _gathered(laid_out, held, outer)
            held, size = {}, 0
    yield from _gathered(laid_out, held, outer)


def _gathered(
    laid_out: SortedFolder, held: dict[str, list[tuple[str, bytes]]], outer: Scope
) -> Iterator[Piece]:
    for patient, lines in held.items():
        digest = "" if patient == NOBODY else _digest(laid_out, (line for _, line in lines))
        yield Piece(digest, tuple(lines), outer)


def _digest(laid_out: SortedFolder, contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256(laid_out.fingerprint.encode())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
