"""Fetching studies from a DICOM node by DIMSE: what it has, or what FHIR announced, unless we hold it whole.

By C-GET the files come over our own connection; by C-MOVE the node sends them to our receiver
(`manage.py receive_dicom`), which records and completes them.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from django.conf import settings

import ehr
from cds import ingest_runs
from cds.audit import recording
from cds.errors import Conflict, Invalid
from cds.patients import importing
from cds.patients.models import NOT_READ, RunKind, SetAside, Source
from cds.studies import receiving
from cds.studies.models import Instance, Study, StudyState
from cds.taking import Progress, Tally

MOST_REFUSED, MOST_SILENT = 5, 2  # studies one after the other
STILL_S = 3.0  # no further row for so long: what else was sent is not kept
ARRIVE_S = 30.0  # how long files that were sent to our receiver may take to get their rows


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which studies. Empty: any. `announced`: those that FHIR announced and of which nothing is here."""

    patient_id: str = ""
    accession: str = ""
    modality: str = ""
    since: date | None = None
    until: date | None = None
    announced: bool = False


def is_node(where: object) -> bool:
    """A DICOM node's address, `dimse://TITLE@host:port`."""
    return isinstance(where, str) and where.lower().startswith(("dimse://", "dimse+tls://"))


@ingest_runs.recorded(RunKind.DICOM)
def pull(
    where: str,
    *,
    wanted: Wanted,
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress,
    title: str = "TESSERA",
    move_to: str = "",
    tls: ehr.TlsFiles | None = None,
) -> Tally:
    """Take what a node has of `wanted`.

    A Study that it finds and does not give is set aside. After MOST_REFUSED in a row, or MOST_SILENT
    with no answer, the pull breaks off.

    title    our AE title, which the node must know
    move_to  AE title of our receiver: C-MOVE there instead of C-GET
    tls      whom we trust and who we are, where the address says dimse+tls
    raises   Invalid when the address is none, or a file of `tls` cannot be used
    """
    tally = Tally()
    try:
        client = ehr.DimseClient(ehr.parse_node(where), title=title, tls=tls)
    except ehr.EhrError as error:
        raise Invalid(str(error)) from error
    try:
        failed = 0
        for done, listed in enumerate(_listed(client, wanted, source), 1):
            study = _announce(client, listed, source=source, by=by, now=now, tally=tally)
            if study is None:
                continue
            try:
                if study.state != StudyState.ANNOUNCED and study.missing() == 0:
                    tally.instances["duplicate"] += Instance.objects.filter(series__study=study).count()
                elif move_to:
                    _move(client, study, move_to, source, tally)
                else:
                    _get(client, study, source=source, by=by, now=now, tally=tally)
                failed = 0
            except ehr.EhrError as error:  # of this Study; the others may well come
                failed += 1
                if failed >= (MOST_SILENT if isinstance(error, ehr.Retriable) else MOST_REFUSED):
                    raise
                _set_aside(
                    f"{client.node} study {study.study_uid}", error, source=source, now=now, tally=tally
                )
            progress("Studies fetched", done, None)
    except ehr.EhrError as error:
        tally.interrupted = f"the DICOM node did not do what was asked: {error}"
    return tally


def _listed(client: ehr.DimseClient, wanted: Wanted, source: Source) -> Iterator[dict[str, Any]]:
    if not wanted.announced:
        yield from client.studies(
            since=wanted.since,
            until=wanted.until,
            patient_id=wanted.patient_id,
            modality=wanted.modality,
            accession=wanted.accession,
        )
        return
    waiting = Study.objects.filter(source=source, state=StudyState.ANNOUNCED, series=None)
    for uid in list(waiting.order_by("received_at").values_list("study_uid", flat=True)):
        yield from client.studies(study_uid=uid)


def _announce(
    client: ehr.DimseClient,
    listed: dict[str, Any],
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    tally: Tally,
) -> Study | None:
    """The Study with what is expected of it, as its Series say; None when it is set aside."""
    try:
        found = ehr.read_study(listed)
        expected = ehr.read_expected(client.series(found.study_uid))
        if expected:
            found = dataclasses.replace(found, expected=expected)
        return receiving.announce(
            found,
            source=source,
            by=by,
            now=now,
            patient_id=ehr.value_of(listed, "00100020"),
            issuer=ehr.value_of(listed, "00100021"),
        )
    except (ehr.BadResource, Conflict) as error:
        refused = ehr.SetAside(str(client.node), "DICOM", ehr.value_of(listed, "0020000D"), str(error))
        importing.keep_set_aside(source, [refused], now=now)
        tally.refuse([refused])
        return None


def _set_aside(where: str, error: ehr.EhrError | str, *, source: Source, now: datetime, tally: Tally) -> None:
    refused = ehr.SetAside(where[:500], "DICOM", "", f"the node did not give this study: {error}"[:500])
    importing.keep_set_aside(source, [refused], now=now)
    tally.refuse([refused])
    if isinstance(error, ehr.Retriable):
        tally.interrupted = tally.interrupted or f"a study did not come: {error}"


def _get(
    client: ehr.DimseClient,
    study: Study,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    tally: Tally,
) -> None:
    where = f"{client.node} study {study.study_uid}"
    unwanted = 0

    def take(path: Path) -> ehr.Taken:
        nonlocal unwanted
        received = receiving.receive_file(path, source=source, by=by, now=now, where=where)
        tally.count(received)
        if received.outcome is receiving.Outcome.SET_ASIDE:
            unwanted += 1
            tally.refuse([ehr.SetAside(where, "DICOM", "", received.reason)])
            return ehr.Taken(received.reason)
        return ehr.Taken()

    incoming = settings.DATA_DIR / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    was, tempfile.tempdir = tempfile.tempdir, str(incoming)
    try:
        moved = client.get(study.study_uid, take)
    finally:
        tempfile.tempdir = was
        study.refresh_from_db()
        if study.state == StudyState.ANNOUNCED and study.series.exists():
            receiving.complete(study, by=by, now=now)
            tally.studies += 1
            if study.patient_id is not None:
                tally.changed.add(study.patient_id)
    words = ""
    if moved.completed == 0 and moved.failed == 0:
        words = "it sent nothing; try C-MOVE (--move-to)"
    elif moved.failed > unwanted:
        words = f"{moved.failed - unwanted} of its instances could not be sent: {moved.words}"
    if words:
        _set_aside(where, words, source=source, now=now, tally=tally)


def _here(study_uid: str, source: Source) -> tuple[int, int]:
    """How many instances of a Study have their rows, and how many are noted as not read for this Source."""
    unread = SetAside.objects.filter(source=source, kind=NOT_READ, where__endswith=f"study {study_uid}")
    return (
        Instance.objects.filter(series__study__study_uid=study_uid).count(),
        unread.values("identity").distinct().count(),
    )


def _settled(study_uid: str, source: Source, sent: int) -> tuple[int, int]:
    """What of a Study is here (see `_here`), once it is as much as was sent, or no more comes.

    Results of our own that come back leave nothing.
    """
    until = time.monotonic() + ARRIVE_S
    here, since = _here(study_uid, source), time.monotonic()
    while sum(here) < sent and time.monotonic() < (min(until, since + STILL_S) if any(here) else until):
        time.sleep(0.2)
        if (now := _here(study_uid, source)) != here:
            here, since = now, time.monotonic()
    return here


def _move(client: ehr.DimseClient, study: Study, to: str, source: Source, tally: Tally) -> None:
    """Ask for a Study and wait until our receiver has recorded what was sent."""
    before = _here(study.study_uid, source)
    moved = client.move(study.study_uid, to)
    pictures, unread = _settled(study.study_uid, source, moved.completed)
    tally.instances["new"] += pictures - before[0]
    tally.instances["not-read"] += unread - before[1]
    tally.studies += 1
    where = f"{client.node} study {study.study_uid}"
    if moved.completed and not pictures and not unread:
        raise ehr.Refused(
            f"{client.node} says that it sent {moved.completed} files to {to}, and none is here: is it our "
            f"receiver that listens there, on this database and with --source {source.slug}?"
        )
    if moved.failed:
        words = f"the node could not send {moved.failed} of its instances; our receiver's log may say why"
        tally.refuse([ehr.SetAside(where, "DICOM", "", words)])
