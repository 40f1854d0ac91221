"""Taking in what a hospital has, FHIR and DICOM, from folders or servers, through the doors of the clinic.

`manage.py ingest`, `import_collection` and the demo all come through here. Every patient's record and every
file is a transaction of its own, so a run that was killed leaves nothing half written, and running it again
passes over what is already there. What cannot be taken is set aside with its reason; the rest goes on.
"""

from __future__ import annotations

import ipaddress
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import DataError, IntegrityError

import ehr
from cds.audit import recording
from cds.errors import ClinicError, Invalid
from cds.patients import importing
from cds.patients.models import Patient, Source
from cds.risk import assessing
from cds.studies import receiving
from cds.studies.models import Instance, Study, StudyState

Progress = Callable[[str, int, int | None], None]  # what, how many are done, of how many (None: not known)
NOT_USED = "not used"


def _silent(what: str, done: int, total: int | None) -> None:
    """No progress shown."""


@dataclass(slots=True)
class Tally:
    """What a run took, passed over and refused.

    resources   resource type -> state (new, changed, unchanged, removed, set_aside) -> how many
    instances   "new" | "duplicate" | "set-aside" -> how many DICOM files
    refused     every resource and file set aside, with its reason
    changed     patients whose record is not what it was before
    interrupted why a server's answer ended early; "" when everything was read
    """

    resources: dict[str, Counter[str]] = field(default_factory=dict)
    instances: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    patients: int = 0
    refused: list[ehr.SetAside] = field(default_factory=list)
    changed: set[UUID] = field(default_factory=set)
    interrupted: str = ""

    def add(self, by_type: Mapping[str, Mapping[str, int]]) -> None:
        for name, states in by_type.items():
            self.resources.setdefault(name, Counter()).update(states)

    def refuse(self, items: Iterable[ehr.SetAside]) -> None:
        self.refused.extend(items)

    def merge(self, other: Tally) -> None:
        """Take over what another run counted."""
        self.add(other.resources)
        self.instances.update(other.instances)
        self.studies += other.studies
        self.patients += other.patients
        self.refused.extend(other.refused)
        self.changed |= other.changed
        self.interrupted = self.interrupted or other.interrupted


def ingest_fhir(
    where: str | Path,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress = _silent,
    token: str = "",
) -> Tally:
    """Take every patient's record from a folder of Bundles or NDJSON, or from a FHIR R4 server.

    raises  Invalid when there is no such folder, or the address may not be called
    """
    tally = Tally()
    try:
        for record in _read_fhir(where, source, token):
            _take_record(record, source=source, by=by, now=now, tally=tally)
            progress("Records", tally.patients, None)
    except ehr.EhrError as error:
        if not is_address(where):
            raise Invalid(f"cannot read {where}: {error}") from error
        tally.interrupted = f"the FHIR server stopped answering: {error}"
    return tally


def ingest_dicom(
    where: str | Path,
    *,
    source: Source,
    by: recording.Actor,
    now: datetime,
    progress: Progress = _silent,
    token: str = "",
) -> Tally:
    """Take every DICOM instance from a folder (searched to its bottom), or from a DICOMweb server.

    raises  Invalid when there is no such folder, or the address may not be called
    """
    tally = Tally()
    touched: dict[UUID, Study] = {}
    try:
        for done, total, name, path in _read_dicom(where, source, token, tally):
            received = receiving.receive_file(path, source=source, by=by, now=now)
            tally.instances[received.outcome] += 1
            if received.outcome == "set-aside":
                tally.refuse([ehr.SetAside(name, "DICOM", "", received.reason)])
            elif received.study is not None:
                touched[received.study.pk] = received.study
            progress("DICOM files", done, total)
    except ehr.EhrError as error:
        if not is_address(where):
            raise Invalid(f"cannot read {where}: {error}") from error
        tally.interrupted = f"the DICOMweb server stopped answering: {error}"
    _complete(touched, by=by, now=now, tally=tally, progress=progress)
    return tally


def request_scores(tally: Tally, *, by: recording.Actor, now: datetime, progress: Progress = _silent) -> int:
    """Ask for fresh scores of everybody whose record changed; returns for how many patients."""
    changed = Patient.objects.filter(pk__in=tally.changed).order_by("pk")
    for done, patient in enumerate(changed.iterator(), 1):
        assessing.request_all(patient, by=by, now=now)
        progress("Scores asked for", done, len(tally.changed))
    return len(tally.changed)


def is_address(where: str | Path) -> bool:
    """A server's base URL, as opposed to a folder."""
    return isinstance(where, str) and where.lower().startswith(("http://", "https://"))


def check_address(url: str) -> None:
    """Only https, or this machine, or an address somebody registered as a Source. Raises Invalid."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username or parts.password or not host:
        raise Invalid("an address must name a host and carry no user name or password")
    if parts.scheme == "https" or host == "localhost" or _is_loopback(host):
        return
    if not Source.objects.filter(base_url=url.rstrip("/")).exists():
        raise Invalid(f"{parts.scheme}://{host} is not https, not this machine, and not a registered source")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _folder(where: str | Path) -> Path:
    folder = Path(where)
    if not folder.exists():
        raise Invalid(f"there is no folder or file {folder}")
    return folder


def _read_fhir(where: str | Path, source: Source, token: str) -> Iterator[ehr.PatientRecord]:
    if not is_address(where):
        yield from ehr.read_fhir_folder(_folder(where))
        return
    check_address(str(where))
    yield from ehr.FhirClient(str(where), token=token).patients()


def _take_record(
    record: ehr.PatientRecord, *, source: Source, by: recording.Actor, now: datetime, tally: Tally
) -> None:
    """One patient's record, in one transaction; a record that cannot be stored is set aside as a whole."""
    tally.refuse(record.set_aside)
    if not record.patient.resource_id:
        importing.keep_set_aside(source, record.set_aside, now=now)
        for item in record.set_aside:
            tally.add({item.kind: {importing.SET_ASIDE: 1}})
        return
    try:
        done = importing.import_record(record, source=source, by=by, now=now)
    except (ClinicError, DataError, IntegrityError) as error:
        whole = ehr.SetAside(
            source.slug, "Patient", record.patient.resource_id, f"not stored: {type(error).__name__}"
        )
        importing.keep_set_aside(source, [whole], now=now)
        tally.refuse([whole])
        tally.add({"Patient": {importing.SET_ASIDE: 1}})
        return
    tally.patients += 1
    tally.add(done.by_type)
    if done.changed:
        tally.changed.add(done.patient.pk)
        receiving.link_patient(done.patient, now=now)


def _read_dicom(
    where: str | Path, source: Source, token: str, tally: Tally
) -> Iterator[tuple[int, int | None, str, Path]]:
    """(how many so far, of how many, its name for people, the file), folder or server alike."""
    if is_address(where):
        check_address(str(where))
        yield from _fetch_instances(ehr.DicomWebClient(str(where), token=token), str(where), tally)
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


def _fetch_instances(
    client: ehr.DicomWebClient, where: str, tally: Tally
) -> Iterator[tuple[int, int | None, str, Path]]:
    """Instances of the studies we do not hold whole; each lies in a temporary file while it is received."""
    incoming = settings.DATA_DIR / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    done = 0
    for listed in client.studies():
        uid = str(_tag(listed, "0020000D") or "")
        expected = int(str(_tag(listed, "00201208") or 0))
        held = Instance.objects.filter(series__study__study_uid=uid).count()
        if uid and expected and held == expected:
            tally.instances["duplicate"] += held
            continue
        for content in client.instances(uid):
            done += 1
            with tempfile.NamedTemporaryFile(dir=incoming, suffix=".dcm") as file:
                file.write(content)
                file.flush()
                yield done, None, f"{where} study {uid}", Path(file.name)


def _tag(dataset: Mapping[str, object], tag: str) -> object:
    """The first value of an attribute in the DICOM JSON model (PS3.18 annex F)."""
    attribute = dataset.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return values[0] if isinstance(values, list) and values else None


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
