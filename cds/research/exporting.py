"""Writing a research copy: who is in it is fixed at the start, then part after part, then the tables.

    DIR/fhir/records-0001.ndjson     FHIR R4 resources of the patients of a part
    DIR/dicom/<pseudonym>/<study>/<instance>.dcm
    DIR/cohort.csv                   of a cohort: pseudonym, moment, split, labels
    DIR/files.csv                    every file with its SHA-256
    DIR/manifest.json                what was asked, what was kept, what was left out and why

Killed, it goes on with the same command: a part is written down only after its files lie durably, and files
of a part that is not are written again, the same bytes under the same names. Nothing in the folder says who
anybody is; the key stays in the database (`relinking`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction

import ehr
from cds.audit import recording
from cds.errors import Conflict, Invalid, NotAllowed
from cds.patients.models import Patient, Source
from cds.registry.models import Cohort
from cds.research import folders
from cds.research.models import ResearchExport, ResearchPart, ResearchSubject
from cds.research.records import read_record
from cds.studies import clips
from cds.studies.models import Instance, Series

PART_PATIENTS = 25
AT_ONCE = 500
KEEPABLE = ("characteristics", "notes", "genomics", "unchecked-pixels")
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whose data, and what is kept beyond coded facts and pictures without words.

    cohort        id of a cohort, or ""; else all patients of `sources`, or those of `patients` (our ids)
    keep          of `KEEPABLE`
    code_systems  URIs of local code systems that somebody has looked at
    """

    cohort: str = ""
    sources: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    code_systems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As kept with the export. Of a list of patients the number and a digest: no id leaves."""
        told = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        digest = hashlib.sha256("\n".join(sorted(self.patients)).encode()).hexdigest()
        return {**told, "patients": {"listed": len(self.patients), "sha256": digest}}


@dataclass(slots=True)
class _Made:
    """What one part wrote."""

    files: list[tuple[str, str, int, str]] = field(default_factory=list)
    resources: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)
    masked: int = 0
    instances: int = 0
    words_in_pixels: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "resources": dict(sorted(self.resources.items())),
            "instances": self.instances,
            "instances_that_say_they_show_words": self.words_in_pixels,
            "masked_values": self.masked,
            "scrubbed": dict(sorted(self.scrubbed.items())),
            "left_out": dict(sorted(self.left_out.items())),
        }


def begin(folder: Path, asked: Asked, *, user: User, by: recording.Actor, now: datetime) -> ResearchExport:
    """A new copy, or the one that a killed run left unfinished in this folder.

    raises  NotAllowed without the permission `research.export`; Invalid when the folder holds anything else,
            or nobody is meant; Conflict when it was begun with another wish
    """
    _check_may_export(user, by=by, now=now)
    unfinished = _find_unfinished(folder)
    if unfinished is not None:
        if unfinished.asked != asked.as_json():
            raise Conflict(
                "the copy in this folder was begun with other options: use the same, or a new folder"
            )
        return unfinished
    folders.check_empty(folder)
    who = _select(asked)
    with transaction.atomic():
        export = ResearchExport.objects.create(
            key=secrets.token_bytes(32),
            cohort_id=asked.cohort or None,
            asked=asked.as_json(),
            started_by=by.name,
            started_at=now,
        )
        names = _names(export)
        placed = sorted((names.person(str(pk)), pk) for pk in who)
        ResearchSubject.objects.bulk_create(
            (
                ResearchSubject(export=export, patient_id=pk, pseudonym=pseudonym, place=place)
                for place, (pseudonym, pk) in enumerate(placed)
            ),
            batch_size=AT_ONCE,
        )
        told = {**asked.as_json(), "patients": len(placed)}
        _record(export, "research.begin", by=by, now=now, **told)
    folders.write(folder / folders.MANIFEST, [_manifest(export, state="unfinished")])
    return export


def carry_on(
    export: ResearchExport, folder: Path, *, by: recording.Actor, now: datetime, progress: Progress
) -> dict[str, Any]:
    """Write the parts that are missing, then the tables; returns the counts of the manifest.

    raises  ehr.Retriable and OSError when the work cannot go on now: the same command goes on later
    """
    total = export.subjects.count()
    done = set(export.parts.values_list("number", flat=True))
    for number in range(1, -(-total // PART_PATIENTS) + 1):
        if number not in done:
            _write_part(export, number, folder, by=by, now=now)
        progress("Patients copied", min(number * PART_PATIENTS, total), total)
    return _finish(export, folder, by=by, now=now)


def _check_may_export(user: User, *, by: recording.Actor, now: datetime) -> None:
    if user.is_active and user.has_perm("research.export"):
        return
    with transaction.atomic(durable=True):
        recording.record(
            by=by,
            action="research.begin",
            object_type="ResearchExport",
            object_id="",
            now=now,
            outcome="refused",
        )
    raise NotAllowed("this needs the permission research.export (role admin)")


def _find_unfinished(folder: Path) -> ResearchExport | None:
    manifest = folder / folders.MANIFEST
    if not manifest.is_file():
        return None
    try:
        told = json.loads(manifest.read_bytes())["export"]
        return ResearchExport.objects.filter(pk=told, finished_at=None).first()
    except (ValueError, KeyError, TypeError, ValidationError):
        return None


def _select(asked: Asked) -> list[UUID]:
    """Our ids of those meant, patients who were merged into others left out. Raises Invalid."""
    unknown = set(asked.keep) - set(KEEPABLE)
    if unknown:
        raise Invalid(f"cannot keep {', '.join(sorted(unknown))}: choose of {', '.join(KEEPABLE)}")
    if sum(map(bool, (asked.cohort, asked.sources, asked.patients))) != 1:
        raise Invalid("say whose data: either a cohort, or sources, or a list of patients")
    patients = Patient.objects.filter(replaced_by="")
    try:
        if asked.cohort:
            cohort = Cohort.objects.filter(pk=asked.cohort).exclude(frozen_at=None).first()
            if cohort is None:
                raise Invalid("there is no such cohort, or it is not frozen yet")
            patients = patients.filter(pk__in=cohort.members.values("patient"))
        elif asked.sources:
            missing = set(asked.sources) - set(Source.objects.values_list("slug", flat=True))
            if missing:
                raise Invalid(f"no source {', '.join(sorted(missing))}")
            patients = patients.filter(source__slug__in=asked.sources)
        else:
            return _listed(patients, asked.patients)
    except ValidationError:
        raise Invalid("that is not an id of ours") from None
    found = list(patients.values_list("pk", flat=True))
    if not found:
        raise Invalid("nobody is meant: there would be nothing to export")
    return found


def _listed(patients: Any, wanted: tuple[str, ...]) -> list[UUID]:
    found: list[UUID] = []
    for start in range(0, len(wanted), AT_ONCE):
        found += patients.filter(pk__in=wanted[start : start + AT_ONCE]).values_list("pk", flat=True)
    if len(found) < len(set(wanted)):
        raise Invalid(
            f"{len(set(wanted)) - len(found)} of the patients listed are not known (or were merged)"
        )
    return found


def _names(export: ResearchExport) -> ehr.Pseudonyms:
    return ehr.Pseudonyms(bytes(export.key))


def _write_part(
    export: ResearchExport, number: int, folder: Path, *, by: recording.Actor, now: datetime
) -> None:
    """The files of one part, then its row and who was in it: in this order."""
    subjects = list(
        export.subjects.filter(place__gte=(number - 1) * PART_PATIENTS, place__lt=number * PART_PATIENTS)
        .select_related("patient")
        .order_by("place")
    )
    made = _Made()
    name = f"fhir/records-{number:04}.ndjson"
    digest, size = folders.write(folder / name, _lines(export, subjects, folder, made))
    made.files.insert(0, (name, digest, size, ""))
    with transaction.atomic():
        ResearchPart.objects.create(
            export=export, number=number, made_at=now, files=made.files, counts=made.as_json()
        )
        for subject in subjects:
            _record(export, "research.copy", by=by, now=now, patient_id=subject.patient_id)


def _lines(
    export: ResearchExport, subjects: list[ResearchSubject], folder: Path, made: _Made
) -> Iterator[bytes]:
    """NDJSON of each patient; their pictures are written on the way."""
    names, keep = _names(export), set(export.asked["keep"])
    keeping = ehr.Keeping(
        characteristics="characteristics" in keep,
        notes="notes" in keep,
        genomics="genomics" in keep,
        code_systems=frozenset(export.asked["code_systems"]),
    )
    for subject in subjects:
        record = read_record(subject.patient)
        copied = ehr.deidentify_record(record, who=str(subject.patient_id), names=names, keeping=keeping)
        for resource in copied.resources:
            made.resources[resource["resourceType"]] += 1
            yield orjson.dumps(resource) + b"\n"
        made.left_out.update(copied.left_out)
        made.scrubbed.update(copied.scrubbed)
        made.masked += copied.masked
        _copy_pictures(subject, record, copied, folder, made, names=names, keep=keep)


def _copy_pictures(
    subject: ResearchSubject,
    record: ehr.PatientRecord,
    copied: ehr.ResearchRecord,
    folder: Path,
    made: _Made,
    *,
    names: ehr.Pseudonyms,
    keep: set[str],
) -> None:
    known = ehr.known_of(record).everything
    held = Instance.objects.filter(series__study__patient=subject.patient_id).order_by("sop_uid")
    for instance in held.select_related("series__study"):
        study = instance.series.study
        theirs = {study.dicom_patient_id, study.issuer_of_patient_id} - {""}
        try:
            one = ehr.deidentify_instance(
                clips.path_of(instance.path),
                names=names,
                person=subject.pseudonym,
                shift=copied.shift,
                characteristics="characteristics" in keep,
                burned_in="unchecked-pixels" in keep,
                known=known | theirs,
            )
        except ehr.Permanent as error:
            made.left_out[f"instance: {error}"] += 1
            continue
        path = f"dicom/{subject.pseudonym}/{one.study_uid}/{one.sop_uid}.dcm"
        digest, size = folders.write(folder / path, [one.content])
        made.files.append((path, digest, size, subject.pseudonym))
        made.instances += 1
        made.words_in_pixels += one.burned_in is True


def _finish(export: ResearchExport, folder: Path, *, by: recording.Actor, now: datetime) -> dict[str, Any]:
    """The tables, the manifest, and the end in the database: in this order, so that a kill is made good."""
    paths = {one[0] for one in _files(export)}
    tables: dict[str, str] = {}
    for name, rows in (("files.csv", _file_rows(export)), ("cohort.csv", _cohort_rows(export))):
        if rows is not None:
            tables[name], _ = folders.write(folder / name, rows)
    folders.remove_strays(folder, paths | set(tables) | {folders.MANIFEST})
    counts = _totals(export)
    folders.write(
        folder / folders.MANIFEST,
        [_manifest(export, state="finished", counts=counts, sha256=tables, finished_at=now.isoformat())],
    )
    with transaction.atomic():
        export.counts, export.finished_at = counts, now
        export.save(update_fields=["counts", "finished_at"])
        _record(export, "research.finish", by=by, now=now, files=len(paths), patients=counts["patients"])
    return counts


def _files(export: ResearchExport) -> Iterator[list[Any]]:
    for part in export.parts.order_by("number").iterator(1):
        yield from part.files


def _file_rows(export: ResearchExport) -> Iterator[bytes]:
    yield _csv(["path", "sha256", "bytes", "subject"])
    for one in _files(export):
        yield _csv(one)


def _cohort_rows(export: ResearchExport) -> Iterator[bytes] | None:
    """Of a cohort: every member's moment (moved as their dates are), split and labels."""
    if export.cohort is None:
        return None
    return _member_rows(export, export.cohort)


def _member_rows(export: ResearchExport, cohort: Cohort) -> Iterator[bytes]:
    names, outcomes = _names(export), sorted(cohort.outcomes)
    yield _csv(["subject", "as_of", "split", *outcomes])
    pseudonyms = dict(export.subjects.values_list("patient_id", "pseudonym"))
    members = cohort.members.filter(patient__in=pseudonyms).order_by("as_of")
    for member in sorted(members, key=lambda one: (pseudonyms[one.patient_id], one.as_of)):
        at = ehr.moved(member.as_of, names.shift_of(str(member.patient_id)))
        labels = [member.labels.get(name, "") for name in outcomes]
        yield _csv([pseudonyms[member.patient_id], at.isoformat(), member.split, *labels])


def _csv(row: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(row)
    return line.getvalue().encode()


def _totals(export: ResearchExport) -> dict[str, Any]:
    totals: dict[str, Any] = {"patients": export.subjects.count()}
    for part in export.parts.order_by("number"):
        for name, value in part.counts.items():
            if isinstance(value, dict):
                totals[name] = dict(sorted((Counter(totals.get(name, {})) + Counter(value)).items()))
            else:
                totals[name] = totals.get(name, 0) + value
    held = Series.objects.filter(study__patient__in=export.subjects.values("patient"), instances=None)
    totals["series_without_files"] = held.count()
    return totals


def _manifest(export: ResearchExport, *, state: str, **more: Any) -> bytes:
    said = {
        "export": str(export.pk),
        "state": state,
        "asked": {**export.asked, "sources": len(export.asked["sources"])},
        "method": ehr.describe_deidentification(characteristics="characteristics" in export.asked["keep"]),
        **more,
    }
    return orjson.dumps(said, option=orjson.OPT_INDENT_2)


def _record(
    export: ResearchExport, action: str, *, by: recording.Actor, now: datetime, **detail: Any
) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="ResearchExport",
        object_id=export.pk,
        now=now,
        patient_id=detail.pop("patient_id", None),
        **detail,
    )
