"""Taking a folder of FHIR: sorted by patient, known pieces passed over, the rest read by several processes.

What a piece (a patient's lines, a Bundle) said is remembered under its digest with the patient's revision.
The same piece again, while nobody has changed the patient since, is not even parsed. New patients are
written some dozens in a transaction, everybody else each in their own; a run that was killed leaves nothing
half written, and its repetition passes over what is there.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from uuid import UUID

from django.conf import settings
from django.db import connection

import ehr
from cds.audit import recording
from cds.jobs import children
from cds.patients import importing, importing_facts, remembering
from cds.patients.models import Source
from cds.taking import Progress, Tally, silent, take_record, take_records

AT_ONCE = 200  # pieces whose digests are looked up together
RESOURCES_AT_ONCE = 5000  # read, and where nobody has met their patients written, together
MOST_PROCESSES = 4
WORTH_A_PROCESS = 16 * 2**20  # bytes: a process of its own takes seconds to start


def take_folder(
    folder: Path,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress = silent,
    processes: int | None = None,
) -> Tally:
    """Take every record in `folder` (or the one file).

    processes  how many read and write at once; by default one, and more for large folders on PostgreSQL
    raises     BadResource when there is no such folder
    """
    tally = Tally()
    processes = processes or _how_many(folder)
    may_be_known = processes > 1 and remembering.has_read(source)
    with (
        _scratch() as scratch,
        importing.durable_at_the_end(),
        _pool(processes, at_once=not may_be_known) as pool,
    ):
        laid_out = ehr.sort_folder(folder, scratch)
        tally.ignored.update(laid_out.ignored)
        tally.merge(_take_pieces(ehr.read_pieces(laid_out, None), source, by, now))
        size = sum(bucket.size for bucket in laid_out.buckets)
        done = 0
        for bucket, taken in _take_buckets(laid_out, source, by, now, pool, may_be_known):
            tally.merge(taken)
            done += bucket.size
            progress("Records (kB)", done // 1000, size // 1000)
    return tally


def _how_many(folder: Path) -> int:
    """SQLite takes one writer at a time, a worker of Celery's must not have children, and what an open
    transaction has written is seen by no other process."""
    if (
        connection.vendor != "postgresql"
        or connection.in_atomic_block
        or multiprocessing.current_process().daemon
    ):
        return 1
    return max(1, min(os.cpu_count() or 1, MOST_PROCESSES, ehr.estimate_size(folder) // WORTH_A_PROCESS))


@contextmanager
def _pool(processes: int, *, at_once: bool) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that begin at once, while the folder is sorted, or with the first bucket that is new.

    None where this one does it all.
    """
    if processes < 2:
        yield None
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=children.begin
    )
    try:
        if at_once:
            pool.submit(os.getpid)  # any call starts them all
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _take_buckets(
    laid_out: ehr.SortedFolder,
    source: Source,
    by: recording.Actor,
    now: datetime,
    pool: ProcessPoolExecutor | None,
    may_be_known: bool,
) -> Iterator[tuple[ehr.Bucket, Tally]]:
    for bucket in laid_out.buckets:
        if pool is None or bucket.documents:  # Bundles may be about one patient: the later one counts
            yield bucket, _take_pieces(ehr.read_pieces(laid_out, bucket), source, by, now)
    if pool is None:
        return
    handed = replace(laid_out, buckets=(), set_aside=())
    waiting = {}
    for bucket in laid_out.buckets:
        if bucket.documents:
            continue
        if may_be_known and (pieces := _all_known(laid_out, bucket, source)):
            yield bucket, _take_pieces(pieces, source, by, now)  # a look-up, not worth a process
        else:
            waiting[pool.submit(_take_bucket, handed, bucket, source.pk, by, now)] = bucket
    for done in as_completed(waiting):
        yield waiting[done], done.result()


def _all_known(laid_out: ehr.SortedFolder, bucket: ehr.Bucket, source: Source) -> list[ehr.Piece]:
    """The pieces of a bucket if every one was read before and holds; else none."""
    pieces = list(ehr.read_pieces(laid_out, bucket))
    for begin in range(0, len(pieces), AT_ONCE):
        digests = {piece.digest for piece in pieces[begin : begin + AT_ONCE]}
        if digests - remembering.find_known(source, filter(None, digests)).keys():
            return []
    return pieces


def _take_bucket(
    laid_out: ehr.SortedFolder, bucket: ehr.Bucket, source_id: int, by: recording.Actor, now: datetime
) -> Tally:
    with importing.durable_at_the_end():
        source = Source.objects.get(pk=source_id)
        return _take_pieces(ehr.read_pieces(laid_out, bucket), source, by, now)


def _take_pieces(pieces: Iterable[ehr.Piece], source: Source, by: recording.Actor, now: datetime) -> Tally:
    tally, waiting = Tally(), iter(pieces)
    while group := list(islice(waiting, AT_ONCE)):
        known = remembering.find_known(source, [piece.digest for piece in group if piece.digest])
        changed: set[UUID] = set()  # by this group: what was known of them no longer holds
        unread: list[ehr.Piece] = []
        for piece in group:
            if (said := known.get(piece.digest)) is None:
                unread.append(piece)
                continue
            changed |= _read_pieces(unread, source, by, now, tally)
            unread = []
            if changed.isdisjoint(said.revisions):
                tally.add(said.by_type)
                tally.ignored.update(said.ignored)
                tally.patients += len(said.revisions)
            else:
                unread.append(piece)
        _read_pieces(unread, source, by, now, tally)
    return tally


def _read_pieces(
    pieces: Iterable[ehr.Piece], source: Source, by: recording.Actor, now: datetime, tally: Tally
) -> set[UUID]:
    """Read pieces, take their records, remember what they said; returns whose record has changed."""
    taken, size = Tally(), 0
    held: list[_Read] = []
    for piece in pieces:
        if piece.lines > RESOURCES_AT_ONCE:  # a very long record: it comes in several
            reading = ehr.ReadingTally()
            for record in piece.read(reading):
                take_record(record, source=source, by=by, now=now, tally=taken)
            taken.ignored.update(reading.ignored)
            continue
        read = _Read(piece)
        held.append(read)
        size += read.tally.total
        if size >= RESOURCES_AT_ONCE:
            _take_read(held, source, by, now, taken)
            held, size = [], 0
    if held:
        _take_read(held, source, by, now, taken)
    tally.merge(taken)
    return taken.changed


class _Read:
    """A piece that was read, not yet taken."""

    def __init__(self, piece: ehr.Piece) -> None:
        self.digest, self.tally = piece.digest, ehr.ReadingTally()
        self.records = list(piece.read(self.tally))


def _take_read(
    held: Sequence[_Read], source: Source, by: recording.Actor, now: datetime, tally: Tally
) -> None:
    records = [record for read in held for record in read.records]
    taken = Tally()
    done = iter(take_records(records, source=source, by=by, now=now, tally=taken))
    refused = {(item.kind, item.identity) for item in taken.refused}
    tally.merge(taken)
    known = []
    for read in held:
        imported = list(islice(done, len(read.records)))
        tally.ignored.update(read.tally.ignored)
        said = _said(read, imported, refused)
        if said is not None and not taken.unlisted:
            known.append(said)
    remembering.remember_pieces(known)


def _said(
    read: _Read, imported: Sequence[importing.Imported | None], refused: set[tuple[str, str]]
) -> remembering.Known | None:
    """What a piece said, when the same again would say the same; None when something was set aside."""
    taken = [one for one in imported if one is not None]
    whole = len(taken) == len(imported) > 0 and not any(one.refused for one in taken)
    if not read.digest or not whole or read.tally.set_aside:
        return None
    by_type: dict[str, Counter[str]] = {}
    for one in taken:
        for name, states in one.by_type.items():
            by_type.setdefault(name, Counter()).update(_unchanged(states))
    studies = [found for record in read.records for found in record.imaging_studies]
    if any((found.resource_type, found.resource_id) in refused for found in studies):
        return None
    if studies:
        by_type["ImagingStudy"] = Counter({importing_facts.UNCHANGED: len(studies)})
    revisions = {one.patient.pk: one.patient.revision for one in taken}
    return remembering.Known(read.digest, revisions, by_type, dict(read.tally.ignored))


def _unchanged(states: Mapping[str, int]) -> dict[str, int]:
    return {importing_facts.UNCHANGED: sum(states.values()) - states.get(importing_facts.REMOVED, 0)}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for sorting, for us alone; what a killed run left is removed. Locks end with their process."""
    top = settings.DATA_DIR / "sorting"
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(top):
        for left in top.iterdir():
            with suppress(BlockingIOError), _locked(left, fcntl.LOCK_NB):
                shutil.rmtree(left, ignore_errors=True)
        own = Path(tempfile.mkdtemp(dir=top))
        handle = os.open(own, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(handle)


@contextmanager
def _locked(folder: Path, wait: int = 0) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | wait)
        yield
    finally:
        os.close(handle)
