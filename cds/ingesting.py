"""Taking in what a hospital has, FHIR and DICOM, from folders or servers, through the doors of the clinic.

`manage.py ingest`, `import_collection` and the demo all come through here. Every patient's record and every
file is a transaction of its own, so a run that was killed leaves nothing half written, and running it again
passes over what is already there. What cannot be taken is set aside with its reason; the rest goes on.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings

import ehr
from cds import fetching, folders, ingest_runs, pulls, reaching
from cds.audit import recording
from cds.errors import Invalid
from cds.patients import importing, sources
from cds.patients.models import Patient, RunKind, Source
from cds.risk import assessing
from cds.studies import receiving
from cds.studies.models import Series, Study, StudyState
from cds.taking import Progress, Tally, silent, take_record

AWAITED_S = 3.0  # for connecting, and for each read, while somebody waits
AWAITED_IN_ALL_S = 8.0  # and for all that is read
OVERLAP = timedelta(minutes=5)  # asked for again: clocks differ, and indexes lag


@ingest_runs.recorded(RunKind.SERVER, with_how=True)
def ingest_fhir(
    where: str | Path,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress = silent,
    token: str | ehr.SignIn = "",
    only_changed: bool = False,
    how: reaching.How | None = None,
) -> Tally:
    """Take every patient's record from a folder of Bundles or NDJSON, or from a FHIR R4 server.

    A pull from a server that was broken off or killed goes on where it was, for `pulls.KEPT`.

    only_changed  of a server: the patients of whom anything has changed since the last run that came to its
                  end (everybody, the first time)
    how           how the server is reached, to say what to change when it refuses us
    raises        Invalid when there is no such folder, or the address may not be called
    """
    tally, reading = Tally(), ehr.ReadingTally()
    if not is_address(where):
        return _ingest_folder(_folder(where), source=source, by=by, now=now, progress=progress)
    key = f"{str(where).rstrip('/')} changes"
    last = source.exports.get(key) if only_changed else None
    since = datetime.fromisoformat(last) - OVERLAP if last else None
    pull = pulls.Pull(source.slug, f"{key} {last or 'all'}", begun=now)
    tally.passed_over = len(pull.done)
    try:
        with connect(str(where), token=token) as client:
            for record in client.patients(since, done=pull.done, tally=reading):
                take_record(record, source=source, by=by, now=now, tally=tally)
                if not record.patient.is_stub:
                    pull.note(record.patient.resource_id)
                progress("Records", tally.patients + tally.passed_over, None)
        source.exports[key] = pull.begun.isoformat()
        source.save(update_fields=["exports"])
        pull.finish()
    except ehr.EhrError as error:
        _break_off(tally, error, how)
    tally.ignored.update(reading.ignored)
    return tally


def ingest_patients(
    where: str,
    ids: Iterable[str],
    *,
    since: datetime | None = None,
    is_awaited: bool = False,
    source: Source,
    by: recording.Actor,
    now: datetime,
    token: str | ehr.SignIn = "",
    how: reaching.How | None = None,
) -> Tally:
    """Take these patients' records from a FHIR server; with `since`, also all that have changed since.

    is_awaited  somebody waits for it: see `connect`
    raises      Conflict when the source is paused, Invalid when the address may not be called
    """
    sources.check_not_paused(source)
    tally, reading = Tally(), ehr.ReadingTally()
    try:
        with connect(where, token=token, is_awaited=is_awaited) as client:
            records = client.whole_patients(ids, tally=reading)
            changed = client.patients(since, tally=reading) if since is not None else ()
            for record in chain(records, changed):
                take_record(record, source=source, by=by, now=now, tally=tally)
            if client.is_out_of_time:
                tally.interrupted = (
                    f"the FHIR server did not give the whole record within {AWAITED_IN_ALL_S:.0f} seconds; "
                    "what came in time is here"
                )
    except ehr.EhrError as error:
        _break_off(tally, error, how)
    tally.ignored.update(reading.ignored)
    return tally


def _break_off(tally: Tally, error: ehr.EhrError, how: reaching.How | None) -> None:
    """The server's answer ended early; what can be done about it, and whether by us."""
    tally.may_go_on = isinstance(error, ehr.Retriable)
    tally.interrupted = f"the FHIR server {_ended(error)}: {reaching.why_not(error, how or {})}"


def _ended(error: ehr.EhrError) -> str:
    """What a server did: running the same command again helps in the first case only."""
    return "stopped answering" if isinstance(error, ehr.Retriable) else "does not give what was asked"


def find_patients(
    where: str,
    resources: Iterable[tuple[str, str]],
    *,
    source: Source,
    now: datetime,
    token: str | ehr.SignIn = "",
) -> tuple[set[str], set[tuple[str, str]]]:
    """(ids of the patients these resources of a server are about, those of the resources that are gone).

    One that cannot be read, or is nobody's, is set aside. raises  Invalid, Retriable
    """
    found: set[str] = set()
    gone: set[tuple[str, str]] = set()
    wanted = sorted(resources)
    if not wanted:
        return found, gone
    with connect(where, token=token) as client:
        for kind, identity in wanted:
            try:
                found.add(client.find_patient_of(kind, identity))
            except ehr.Permanent as error:
                status = error.status if isinstance(error, ehr.Refused) else None
                if status == 401:
                    raise
                if status == 410:
                    gone.add((kind, identity))
                    continue
                aside = ehr.SetAside(f"notification of {where}"[:500], kind, identity, str(error)[:500])
                importing.keep_set_aside(source, [aside], now=now)
    return found, gone


def connect(where: str, *, token: str | ehr.SignIn = "", is_awaited: bool = False) -> ehr.FhirClient:
    """A client of a FHIR server we may call. Raises Invalid; EhrError for plain http to another machine.

    is_awaited  at a browser, from a server whose address came with the request: one attempt of AWAITED_S,
                nothing asked for after AWAITED_IN_ALL_S, and the address is looked at again at the moment of
                connecting (OPERATIONS 8)
    """
    check_address(where)
    if is_awaited:
        connections = ehr.guarded_connections()
        return ehr.FhirClient(
            where,
            token=token,
            timeout_s=AWAITED_S,
            within_s=AWAITED_IN_ALL_S,
            attempts=1,
            transport=connections,
        )
    return ehr.FhirClient(where, token=token, allow_http=_is_registered(where))


@ingest_runs.recorded(RunKind.BULK, with_how=True)
def ingest_bulk(
    where: str,
    *,
    of: str = "Patient",
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress = silent,
    token: str | ehr.SignIn = "",
    file_hosts: Sequence[str] = (),
    everything: bool = False,
    how: reaching.How | None = None,
) -> Tally:
    """Take a Bulk Data export of a FHIR server: what has changed since the last one, or `everything`.

    of      "Patient", "Group/[id]", or "" for the whole system
    raises  Invalid when the address may not be called

    Run again after a failure, it goes on with the same export and fetches no finished file twice. Where less
    came than was promised, what came is taken, and the next export begins at the same moment again.
    """
    check_address(where)
    tally = Tally()
    key = f"{where.rstrip('/')} {of}"
    folder = settings.DATA_DIR / "exports" / hashlib.sha256(f"{source.slug} {key}".encode()).hexdigest()[:16]
    last = None if everything else source.exports.get(key)
    since = datetime.fromisoformat(last) if last else None
    try:
        with ehr.BulkClient(
            where, token=token, file_hosts=file_hosts, allow_http=_is_registered(where)
        ) as client:
            export = client.export(folder, of=of, since=since, tell=progress)
            aside = (*export.problems, *export.missing)
            tally.refuse(aside)
            importing.keep_set_aside(source, aside, now=now)
            done = folders.take_folder(export.folder, source=source, by=by, now=now, progress=progress)
            tally.merge(done)
            changed, by_type = importing.remove_resources(source, export.deleted, by=by, now=now)
            tally.changed |= changed
            tally.add(by_type)
            if export.missing:
                tally.interrupted, tally.may_go_on = _short(export.missing), False
            else:
                source.exports[key] = export.transaction_time.isoformat()
                source.save(update_fields=["exports"])
            client.finish(folder)
    except ehr.EhrError as error:
        tally.may_go_on = isinstance(error, ehr.Retriable)
        tally.interrupted = f"the export was not completed: {reaching.why_not(error, how or {})}"
    return tally


def _short(missing: Sequence[ehr.SetAside]) -> str:
    first = missing[0]
    more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
    return (
        f"the export came short: {first.where}: {first.reason}{more}; what came is in, and the next export "
        "asks from the same moment again"
    )


@ingest_runs.recorded(RunKind.DICOM)
def ingest_dicom(
    where: str | Path,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress = silent,
    token: str = "",
) -> Tally:
    """Take every DICOM instance from a folder (searched to its bottom), or from a DICOMweb server.

    token   a bearer token, or `user:password`
    raises  Invalid when there is no such folder, or the address may not be called
    """
    tally = Tally()
    touched: dict[UUID, Study] = {}
    try:
        for done, total, name, path in _read_dicom(where, token, tally, source=source, now=now):
            received = receiving.receive_file(path, source=source, by=by, now=now, where=name)
            tally.count(received)
            if received.outcome is receiving.Outcome.SET_ASIDE:
                tally.refuse([ehr.SetAside(name, "DICOM", "", received.reason)])
            elif received.study is not None:
                touched[received.study.pk] = received.study
            progress("DICOM files", done, total)
    except ehr.EhrError as error:
        if not is_address(where):
            raise Invalid(f"cannot read {where}: {error}") from error
        tally.may_go_on = isinstance(error, ehr.Retriable)
        tally.interrupted = f"the DICOMweb server {_ended(error)}: {error}"
    _complete(touched, by=by, now=now, tally=tally, progress=progress)
    return tally


def request_scores(tally: Tally, *, by: recording.Actor, now: datetime, progress: Progress = silent) -> int:
    """Ask for fresh scores of everybody whose record changed; returns for how many patients."""
    changed = Patient.objects.filter(pk__in=tally.changed).order_by("pk")
    for done, patient in enumerate(changed.iterator(), 1):
        assessing.request_all(patient, by=by, now=now)
        progress("Scores asked for", done, len(tally.changed))
    return len(tally.changed)


def is_address(where: str | Path) -> bool:
    """A server's base URL, as opposed to a folder."""
    return isinstance(where, str) and where.lower().startswith(("http://", "https://"))


def sign_in(where: str, how: reaching.How) -> str | ehr.SignIn:
    """How we sign in to the FHIR server at `where`: Backend Services, a token, or "" for neither.

    raises  Invalid when we have no key, or the address may not be called; EhrError
    """
    check_address(where)
    return reaching.token(where, how, allow_http=_is_registered(where))


def check_address(url: str) -> None:
    """Only https, or this machine, or an address somebody registered as a Source. Raises Invalid."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username or parts.password or not host:
        raise Invalid("an address must name a host and carry no user name or password")
    if parts.scheme == "https" or host == "localhost" or _is_loopback(host):
        return
    if not _is_registered(url):
        raise Invalid(f"{parts.scheme}://{host} is not https, not this machine, and not a registered source")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_registered(url: str) -> bool:
    return Source.objects.filter(base_url__in=[url.rstrip("/"), url.rstrip("/") + "/"]).exists()


def _folder(where: str | Path) -> Path:
    folder = Path(where)
    if not folder.exists():
        raise Invalid(f"there is no folder or file {folder}")
    return folder


def _ingest_folder(
    folder: Path, *, source: Source, by: recording.Actor, now: datetime, progress: Progress
) -> Tally:
    try:
        return folders.take_folder(folder, source=source, by=by, now=now, progress=progress)
    except ehr.EhrError as error:
        raise Invalid(f"cannot read {folder}: {error}") from error


def _read_dicom(
    where: str | Path, token: str, tally: Tally, *, source: Source, now: datetime
) -> Iterator[tuple[int, int | None, str, Path]]:
    """(how many so far, of how many, its name for people, the file), folder or server alike."""
    if is_address(where):
        check_address(str(where))
        login = reaching.web_login(token)
        with ehr.DicomWebClient(str(where), allow_http=_is_registered(str(where)), **login) as client:
            yield from fetching.Fetching(client, str(where), tally, source, now).files()
        return
    folder = _folder(where)
    paths = [folder] if folder.is_file() else sorted(_files(folder))
    for done, path in enumerate(paths, 1):
        name = path.name if folder.is_file() else str(path.relative_to(folder))
        yield done, len(paths), name, path


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and path.name != "DICOMDIR":
            yield path


def _complete(
    touched: Mapping[UUID, Study], *, by: recording.Actor, now: datetime, tally: Tally, progress: Progress
) -> None:
    """Decode the studies that have new files; one a killed run left behind is finished here too."""
    waiting = Study.objects.filter(pk__in=touched, state=StudyState.ANNOUNCED).order_by("pk")
    studies = list(waiting)
    for done, study in enumerate(studies, 1):
        receiving.complete(study, by=by, now=now)
        tally.studies += 1
        if study.patient_id is not None:
            tally.changed.add(study.patient_id)
        progress("Studies decoded", done, len(studies))
    undecodable = Series.objects.filter(study__in=touched, clip_path="").exclude(failure="")
    for series in undecodable.select_related("study").order_by("series_uid"):
        where = f"study {series.study.study_uid}"
        tally.refuse(
            [
                ehr.SetAside(
                    where, "DICOM", series.series_uid, f"its Series cannot be decoded: {series.failure}"
                )
            ]
        )
