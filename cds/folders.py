"""Taking a folder of FHIR: sorted by patient, known pieces passed over, the rest read by as many processes as pay.

What a piece (a patient's lines, a Bundle) said is remembered under its digest with the patient's revision. The
same piece again, while nobody has changed the patient since, is not even parsed. Each patient's record is a
transaction of its own; a run that was killed leaves nothing half written and costs a repetition nothing.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
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
from cds.patients import importing
from cds.patients.models import Source
from cds.taking import Progress, Tally, silent, take_record

AT_ONCE = 200  # pieces whose digests are looked up together
MOST_PROCESSES = 4
WORTH_A_PROCESS = 32 * 2**20  # bytes: a process of its own takes seconds to start


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
    with _scratch() as scratch, importing.durable_at_the_end():
        laid_out = ehr.sort_folder(folder, scratch)
        tally.ignored.update(laid_out.ignored)
        tally.merge(_take_pieces(ehr.read_pieces(laid_out, None), source, by, now))
        size = sum(bucket.size for bucket in laid_out.buckets)
        done = 0
        for bucket, taken in _take_buckets(laid_out, source, by, now, processes or _how_many(size)):
            tally.merge(taken)
            done += bucket.size
            progress("Records (kB)", done // 1000, size // 1000)
    return tally


def _how_many(size: int) -> int:
    """SQLite takes one writer at a time; a worker of Celery's must not have children."""
    if connection.vendor != "postgresql" or multiprocessing.current_process().daemon:
        return 1
    return max(1, min(os.cpu_count() or 1, MOST_PROCESSES, size // WORTH_A_PROCESS))


def _take_buckets(
    laid_out: ehr.SortedFolder, source: Source, by: recording.Actor, now: datetime, processes: int
) -> Iterator[tuple[ehr.Bucket, Tally]]:
    for bucket in laid_out.buckets:
        if processes < 2 or bucket.documents:  # Bundles may be about one patient: the later one counts
            yield bucket, _take_pieces(ehr.read_pieces(laid_out, bucket), source, by, now)
    if processes < 2:
        return
    handed = replace(laid_out, buckets=(), set_aside=())
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_process
    )
    try:
        waiting = {
            pool.submit(_take_bucket, handed, bucket, source.pk, by, now): bucket
            for bucket in laid_out.buckets
            if not bucket.documents
        }
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """Django in a process of its own, which ends when the one that started it is gone."""
    import django

    django.setup()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _take_bucket(
    laid_out: ehr.SortedFolder, bucket: ehr.Bucket, source_id: int, by: recording.Actor, now: datetime
) -> Tally:
    with importing.durable_at_the_end():
        source = Source.objects.get(pk=source_id)
        return _take_pieces(ehr.read_pieces(laid_out, bucket), source, by, now)


def _take_pieces(
    pieces: Iterable[ehr.Piece], source: Source, by: recording.Actor, now: datetime
) -> Tally:
    tally, waiting = Tally(), iter(pieces)
    while group := list(islice(waiting, AT_ONCE)):
        known = importing.find_known(source, [piece.digest for piece in group if piece.digest])
        fresh: list[importing.Known] = []
        changed: set[UUID] = set()  # by this group: what was known of them no longer holds
        for piece in group:
            said = known.get(piece.digest)
            if said is not None and changed.isdisjoint(said.revisions):
                tally.add(said.by_type)
                tally.ignored.update(said.ignored)
                tally.patients += len(said.revisions)
                continue
            taken, said = _take_piece(piece, source, by, now)
            changed |= taken.changed
            tally.merge(taken)
            if said is not None:
                fresh.append(said)
        importing.remember_pieces(fresh)
    return tally


def _take_piece(
    piece: ehr.Piece, source: Source, by: recording.Actor, now: datetime
) -> tuple[Tally, importing.Known | None]:
    """Read a piece and take its records; and what it said, when the same again would say the same."""
    taken, reading = Tally(), ehr.ReadingTally()
    revisions = {}
    for record in piece.read(reading):
        done = take_record(record, source=source, by=by, now=now, tally=taken)
        if done is not None:
            revisions[done.patient.pk] = done.patient.revision
    taken.ignored.update(reading.ignored)
    if not piece.digest or not revisions or taken.refused:
        return taken, None
    by_type = {name: _unchanged(states) for name, states in taken.resources.items()}
    return taken, importing.Known(piece.digest, revisions, by_type, dict(reading.ignored))


def _unchanged(states: Counter[str]) -> dict[str, int]:
    return {importing.UNCHANGED: sum(states.values()) - states[importing.REMOVED]}


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
