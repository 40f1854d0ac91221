"""Studies that a scanner or an archive sends to us: durable when answered, recorded at once, then complete.

A file is answered with success once it lies synced in an inbox of the study store, was inspected, and does
not contradict what we hold (docs/adr/0013). Its row follows within moments, many in one transaction; what a
killed process left in the inbox is recorded by the next one. A file without a picture is not kept: it is
answered with success once a row says so. A Study is complete when every instance that
was announced for it is there, else when no file of it has come for `quiet_s`; a later one opens it again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection, connections
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.errors import ClinicError
from cds.patients import sources
from cds.patients.models import Source
from cds.risk import assessing
from cds.studies import arriving, receiving
from cds.studies.models import Study, StudyState

logger = logging.getLogger(__name__)
QUIET_S = 10.0
BATCH = 128  # rows in one transaction
GATHER_S = 0.25  # how long the first of them waits for more
MOST_WAITING = 512  # files without a row; more are told to come again
SETTLE_S = 30.0  # how long a file waits for the row of another with its UID


class Arrivals:
    """What comes in. Use it in a `with`; `take` may be called from many threads, `complete_due` from one."""

    def __init__(self, source: Source, *, quiet_s: float = QUIET_S) -> None:
        self._source, self._quiet_s = source, quiet_s
        self._by = recording.system("receive_dicom")
        self._root = Path(settings.STUDY_STORE) / ".inbox"
        self.inbox = self._root / f"{source.slug}.{uuid.uuid4().hex}"  # ours, as long as we live
        self.incoming = self.inbox / "incoming"  # half-received files: nobody was answered anything
        self.aside = self._root / "set-aside"
        self._paused = sources.is_paused(source)
        self._lock = threading.Lock()
        self._waiting: dict[Path, arriving.Arrived] = {}
        self._uids: dict[str, int] = {}  # SOP Instance UIDs of files without a row
        self._settled = threading.Condition(self._lock)
        self._taking = 0  # calls of `take` under way
        self._queue: queue.Queue[arriving.Arrived | None] = queue.Queue()
        self._whole = threading.Event()
        self._syncers = ThreadPoolExecutor(8, thread_name_prefix="sync")
        self._recorder = threading.Thread(target=self._record_all, name="recorder")
        left = Study.objects.filter(
            source=source, state=StudyState.ANNOUNCED, series__instances__isnull=False
        ).distinct()
        self._last: dict[UUID, float] = dict.fromkeys(left.values_list("pk", flat=True), time.monotonic())

    def __enter__(self) -> Self:
        self.incoming.mkdir(parents=True)
        self.aside.mkdir(exist_ok=True)
        _sync_one(self._root)  # the name of our inbox
        self._owned = _owned(self.inbox)
        for left in sorted(self._root.glob(f"{self._source.slug}.*")):
            if (owned := _owned(left)) is not None:  # whoever had it is gone
                self._recover(left)
                shutil.rmtree(left)
                os.close(owned)
        self._recorder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._recorder.join()
        self._syncers.shutdown()
        if not any(self.inbox.glob("*.dcm")):
            shutil.rmtree(self.inbox)
        if self._owned is not None:
            os.close(self._owned)

    def take(self, path: Path, calling: str) -> ehr.Taken:
        """One file from the node called `calling`: durable, noted as not read, or refused with the reason.

        raises  OSError when the store is full, or the database has been away for too long
        """
        if self._paused:
            return ehr.Taken(sources.paused_words(self._source))
        if len(self._waiting) >= MOST_WAITING:
            raise OSError("too many files wait for the database")
        kept = self.inbox / f"{uuid.uuid4().hex}.dcm"
        os.rename(path, kept)  # what is left under its first name is removed
        keep = False
        with self._lock:
            self._taking += 1
        try:
            synced = self._begin_sync(kept)
            try:
                found = receiving.inspect(kept)
            except ehr.Permanent as fault:
                synced.result()
                return self._refuse(f"C-STORE from {calling}", str(fault))
            if found.header.is_ours:
                return ehr.Taken()  # a result of ours that came back: it lies where it came from
            if not found.header.is_picture:
                self._pass_over(f"C-STORE from {calling}", found.header)
                return ehr.Taken()  # refused, it would end the C-MOVE that brings the pictures
            arrived = arriving.Arrived(kept, found, f"C-STORE from {calling}")
            self._wait_for(found.header.sop_uid)
            held = self._look(arrived)
            synced.result()
            if held is not None:
                return ehr.Taken(held.reason if held.outcome is receiving.Outcome.SET_ASIDE else "")
            keep = True
            self._add(arrived)
            return ehr.Taken()
        finally:
            with self._lock:
                self._taking -= 1
            if not keep:
                kept.unlink(missing_ok=True)

    @staticmethod
    def hang_up() -> None:
        """A thread that called `take` will not call again."""
        connections.close_all()

    def look_whether_paused(self) -> None:
        """See whether the source is paused now; while the database is away, it stays as it was."""
        with suppress(DatabaseError):
            self._paused = sources.is_paused(self._source)

    def complete_due(self) -> int:
        """Complete the studies that are whole, or of which nothing came for a while; ask for scores."""
        with self._lock:
            due = [pk for pk, last in self._last.items() if time.monotonic() - last >= self._quiet_s]
            for pk in due:
                del self._last[pk]
        done = 0
        for pk in due:
            try:
                self._complete(pk)
                done += 1
            except (ClinicError, DatabaseError, ehr.EhrError, OSError):
                logger.exception("study %s could not be completed; tried again", pk)
                with self._lock:
                    self._last.setdefault(pk, time.monotonic())
        return done

    def wait(self, timeout_s: float) -> None:
        """Until a Study is whole, `wake` is called, or the time is over."""
        if self._whole.wait(timeout_s):
            self._whole.clear()

    def wake(self) -> None:
        """Whoever waits goes on."""
        self._whole.set()

    def settle(self, timeout_s: float = SETTLE_S) -> bool:
        """Wait until every file taken so far has its row; whether they have."""
        with self._settled:
            return self._settled.wait_for(lambda: not self._waiting, timeout_s)

    def _begin_sync(self, kept: Path) -> Future[None]:
        """Have a file synced: beside its inspection, unless other associations give the disk enough to do."""
        if self._taking == 1:
            return self._syncers.submit(_sync, kept)
        done: Future[None] = Future()
        _sync(kept)
        done.set_result(None)
        return done

    def _look(self, arrived: arriving.Arrived) -> receiving.Received | None:
        with _connected():
            return arriving.known_as(arrived, source=self._source, now=timezone.now())

    def _refuse(self, where: str, reason: str) -> ehr.Taken:
        with _connected():
            receiving.set_aside(where, "", reason, source=self._source, now=timezone.now())
        return ehr.Taken(reason)

    def _pass_over(self, where: str, header: ehr.InstanceHeader) -> None:
        """Note in a row that a file is not kept. Its Study stands there for whoever waits for that."""
        where = f"{where}, study {header.study_uid}"
        with _connected():
            receiving.pass_over(
                where, header.sop_uid, header.modality, source=self._source, now=timezone.now()
            )

    def _wait_for(self, uid: str) -> None:
        """Until no file of this SOP Instance UID waits for its row: then we know what we hold."""
        with self._settled:
            if not self._settled.wait_for(lambda: uid not in self._uids, SETTLE_S):
                raise OSError("the database has been away for too long")

    def _add(self, arrived: arriving.Arrived) -> None:
        uid = arrived.found.header.sop_uid
        with self._lock:
            self._waiting[arrived.path] = arrived
            self._uids[uid] = self._uids.get(uid, 0) + 1
        self._queue.put(arrived)

    def _record_all(self) -> None:
        """The recorder: whatever waits, in one transaction; tried again until the database takes it."""
        ending = False
        while not ending:
            batch, ending = self._gather()
            if batch:
                with _connected():
                    self.look_whether_paused()
            if batch and not self._record(batch, timezone.now()):
                if ending:
                    break  # they lie in the inbox; the next process records them
                time.sleep(1)
                for one in batch:
                    if one.path in self._waiting:
                        self._queue.put(one)
        connections.close_all()

    def _gather(self) -> tuple[list[arriving.Arrived], bool]:
        """What comes within `GATHER_S` of the first, and whether this is the end."""
        batch: list[arriving.Arrived] = []
        until: float | None = None  # nothing waits: for as long as it takes
        while len(batch) < BATCH:
            try:
                left = None if until is None else max(0.0, until - time.monotonic())
                more = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if more is None:
                return batch, True
            batch.append(more)
            until = until or time.monotonic() + GATHER_S
        return batch, False

    def _record(self, batch: list[arriving.Arrived], now: datetime) -> bool:
        try:
            with _connected():
                _flush_at_commit()
                done = arriving.record_arrivals(batch, source=self._source, by=self._by, now=now)
                studies = {one.study.pk: one.study for one in done if one.study is not None}
                whole = [pk for pk, study in studies.items() if study.missing() == 0]
        except Exception as fault:  # whatever it is, the files lie in the inbox, and the recorder goes on
            logger.exception("%s files could not be recorded; tried again", len(batch))
            if isinstance(fault, DatabaseError | OSError) or len(batch) == 1:
                return False
            recorded = [self._record([one], now) for one in batch]  # one of them holds up no other
            return all(recorded)
        with self._settled:
            for arrived, received in zip(batch, done, strict=True):
                self._waiting.pop(arrived.path, None)
                uid = arrived.found.header.sop_uid
                self._uids[uid] = self._uids.get(uid, 1) - 1
                if not self._uids[uid]:
                    del self._uids[uid]
                if received.study is not None:
                    self._last[received.study.pk] = time.monotonic()
            for pk in whole:
                self._last[pk] = time.monotonic() - self._quiet_s  # due: nothing more is expected
            self._settled.notify_all()
        if whole:
            self._whole.set()
        for arrived, received in zip(batch, done, strict=True):
            self._tidy(arrived, received)
        return True

    def _tidy(self, arrived: arriving.Arrived, received: receiving.Received) -> None:
        """Out of the inbox with a file that has its row."""
        try:
            if received.outcome is receiving.Outcome.SET_ASIDE:  # after success was answered: keep the file
                os.replace(arrived.path, self.aside / f"{arrived.found.sha256}.dcm")
            else:
                arrived.path.unlink(missing_ok=True)  # a new one has gone to its place
        except OSError:
            logger.exception("a recorded file stays in the inbox; the next start finds it a duplicate")

    def _recover(self, inbox: Path) -> None:
        """Record what a killed process left in its inbox; what cannot be read is kept, with its reason."""
        left = []
        for path in sorted(inbox.glob("*.dcm")):
            try:
                found = receiving.inspect(path)
            except ehr.Permanent as fault:  # success may have been answered for it
                where = "C-STORE, found in the inbox"
                receiving.set_aside(where, "", str(fault), source=self._source, now=timezone.now())
                os.replace(path, self.aside / path.name)
                continue
            if found.header.is_ours:
                path.unlink()
            elif not found.header.is_picture:
                self._pass_over("C-STORE, found in the inbox", found.header)
                path.unlink()
            else:
                left.append(arriving.Arrived(path, found, "C-STORE, found in the inbox"))
        for place in range(0, len(left), BATCH):
            if not self._record(left[place : place + BATCH], timezone.now()):
                raise ClinicError("the database cannot be written: files of a killed receiver wait for it")

    def _complete(self, pk: UUID) -> None:
        now = timezone.now()
        study = Study.objects.get(pk=pk)
        receiving.complete(study, by=self._by, now=now)
        study.refresh_from_db()
        if study.patient is not None:
            assessing.request_all(study.patient, by=self._by, now=now)


def watch(arrivals: Arrivals, stop: threading.Event, *, every_s: float = 1.0) -> None:
    """Complete what is due until `stop` is set: every so often, and at once when a Study is whole."""
    while not stop.is_set():
        arrivals.wait(every_s)
        close_old_connections()
        arrivals.look_whether_paused()
        arrivals.complete_due()


def _owned(folder: Path) -> int | None:
    """A lock on an inbox, held until its descriptor is closed or we die; None when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _connected() -> Iterator[None]:
    """The connection of this thread is kept until `hang_up`, unless others wait in a pool for it; after a
    fault the next one is new."""
    try:
        yield
    except DatabaseError:
        connections.close_all()
        raise
    if "pool" in connection.settings_dict["OPTIONS"]:
        connection.close()


def _sync(path: Path) -> None:
    """The file and its name are on the disk."""
    _sync_one(path)
    _sync_one(path.parent)


def _sync_one(what: Path) -> None:
    descriptor = os.open(what, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_at_commit() -> None:
    """SQLite: a committed row survives a power cut too, since its file leaves the inbox after it."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA synchronous=FULL")
