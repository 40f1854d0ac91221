"""What was read before, so that the same again costs a look-up: records by digest, and pieces of folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import F

from cds.patients import code_map
from cds.patients.models import ImportedRecord, Patient, Source
from cds.statements import Statement


@dataclass(frozen=True, slots=True)
class Known:
    """What a piece of a folder said when it was read.

    digest     `ehr.Piece.digest`
    revisions  patient -> revision of their record once the piece was imported
    by_type    resource type -> state -> how many, when the same is read again
    ignored    resources that say nothing Tessera reads, by type
    """

    digest: str
    revisions: Mapping[UUID, int]
    by_type: Mapping[str, Mapping[str, int]]
    ignored: Mapping[str, int]


def has_read(source: Source) -> bool:
    """Whether anything of this source was read before."""
    return ImportedRecord.objects.filter(patient__source=source).exists()


def find_known(source: Source, digests: Iterable[str]) -> dict[str, Known]:
    """Of these pieces, those that were read before and whose patients nobody has changed since."""
    asked = {_piece_key(digest): digest for digest in digests}
    held = ImportedRecord.objects.filter(
        digest__in=list(asked), revision=F("patient__revision"), patient__source=source
    )
    revisions: dict[str, dict[UUID, int]] = {}
    said: dict[str, Mapping[str, Any]] = {}
    for key, patient_id, revision, told in held.values_list("digest", "patient_id", "revision", "said"):
        digest = asked[key]
        revisions.setdefault(digest, {})[patient_id] = revision
        said[digest] = told
    return {
        digest: Known(digest, whose, said[digest]["by_type"], said[digest]["ignored"])
        for digest, whose in revisions.items()
        if said[digest].get("patients") == len(whose)
    }


def _piece_key(digest: str) -> str:
    """The digest a piece is remembered by: another table of local codes reads it otherwise."""
    table = code_map.site_map().digest
    return hashlib.sha256(f"{digest} {table}".encode()).hexdigest() if table else digest


def remember_pieces(pieces: Iterable[Known]) -> None:
    """Keep what these pieces said, for `find_known`."""
    ImportedRecord.objects.bulk_create(
        [
            ImportedRecord(
                patient_id=patient_id,
                digest=_piece_key(piece.digest),
                revision=revision,
                said={
                    "patients": len(piece.revisions),
                    "by_type": piece.by_type,
                    "ignored": piece.ignored,
                },
            )
            for piece in pieces
            for patient_id, revision in piece.revisions.items()
        ],
        update_conflicts=True,
        unique_fields=["patient", "digest"],
        update_fields=["revision", "said"],
    )


def find_unchanged(source: Source, resource_id: str, digest: str) -> Patient | None:
    """The patient, when this very record was imported before and nothing has changed since."""
    found = _unchanged.row(digest=digest, source=source.pk, resource_id=resource_id)
    return Patient.from_db(connection.alias, _OF_PATIENT, found) if found else None


_OF_PATIENT = [field.attname for field in Patient._meta.concrete_fields]
_unchanged = Statement(
    lambda digest, source, resource_id: ImportedRecord.objects.filter(
        digest=digest,
        patient__source=source,
        patient__resource_id=resource_id,
        revision=F("patient__revision"),
    ).values_list(*(f"patient__{name}" for name in _OF_PATIENT))[:1]
)


def remember(patient: Patient, digest: str, *, is_new: bool) -> None:
    """Keep the digest of the record that left the patient at this revision; older ones are forgotten."""
    if is_new:
        ImportedRecord.objects.create(patient=patient, digest=digest, revision=patient.revision)
        return
    patient.imported_records.filter(revision__lt=patient.revision).exclude(digest=digest).delete()
    ImportedRecord.objects.bulk_create(
        [ImportedRecord(patient=patient, digest=digest, revision=patient.revision)],
        update_conflicts=True,
        unique_fields=["patient", "digest"],
        update_fields=["revision"],
    )
