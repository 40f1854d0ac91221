"""Studies that a scanner or an archive sends to us: stored as they come, complete when nothing more comes.

A Series has no end in DICOM. A Study is complete when no file of it has come for `quiet_s`; a file that comes
later opens it again. What a killed process left incomplete is found by the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from uuid import UUID

from django.db import DatabaseError, close_old_connections, connections
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.errors import ClinicError
from cds.patients.models import Source
from cds.risk import assessing
from cds.studies import receiving
from cds.studies.models import Study, StudyState

logger = logging.getLogger(__name__)
QUIET_S = 10.0


class Arrivals:
    """What has come and is not complete yet.

    `take` may be called from many threads, `complete_quiet` from one.
    """

    def __init__(self, source: Source, *, quiet_s: float = QUIET_S) -> None:
        self._source, self._quiet_s = source, quiet_s
        self._by = recording.system("receive_dicom")
        self._lock = threading.Lock()
        left = Study.objects.filter(
            source=source, state=StudyState.ANNOUNCED, series__instances__isnull=False
        ).distinct()
        self._last: dict[UUID, float] = dict.fromkeys(left.values_list("pk", flat=True), time.monotonic())

    def take(self, path: Path, calling: str) -> ehr.Taken:
        """One file from the node called `calling`: durable and in its row, or refused with the reason.

        Its database connection is given back each time: the thread ends when its association does.
        """
        try:
            received = receiving.receive_file(
                path, source=self._source, by=self._by, now=timezone.now(), where=f"C-STORE from {calling}"
            )
        finally:
            connections.close_all()
        if received.outcome is receiving.Outcome.SET_ASIDE:
            return ehr.Taken(received.reason)
        if received.study is not None and received.outcome is receiving.Outcome.NEW:
            with self._lock:
                self._last[received.study.pk] = time.monotonic()
        return ehr.Taken()

    def complete_quiet(self) -> int:
        """Complete the studies of which nothing came for a while, and ask for scores; returns how many."""
        with self._lock:
            quiet = [pk for pk, last in self._last.items() if time.monotonic() - last >= self._quiet_s]
            for pk in quiet:
                del self._last[pk]
        done = 0
        for pk in quiet:
            try:
                self._complete(pk)
                done += 1
            except (ClinicError, DatabaseError, ehr.EhrError, OSError):
                logger.exception("study %s could not be completed; tried again", pk)
                with self._lock:
                    self._last.setdefault(pk, time.monotonic())
        return done

    def _complete(self, pk: UUID) -> None:
        now = timezone.now()
        study = Study.objects.get(pk=pk)
        receiving.complete(study, by=self._by, now=now)
        study.refresh_from_db()
        if study.patient is not None:
            assessing.request_all(study.patient, by=self._by, now=now)


def watch(arrivals: Arrivals, stop: threading.Event, *, every_s: float = 1.0) -> None:
    """Complete quiet studies until `stop` is set."""
    while not stop.wait(every_s):
        close_old_connections()
        arrivals.complete_quiet()
