"""Whose study is it: a DICOM PatientID leads to one patient of the same source, or to none.

A study given to the wrong patient is the worst mistake this room can make. So nothing is guessed: two
patients with the same identifier, or an issuer that is not the identifier's system, leave it unlinked.
"""

from __future__ import annotations

from django.db.models import Q

from cds.patients import merging
from cds.patients.models import Patient, PatientIdentifier, Source
from cds.studies.models import Study


def find_patient(source: Source, patient_id: str, issuer: str = "") -> Patient | None:
    """The one patient of `source` that PatientID means.

    issuer  IssuerOfPatientID; then only identifiers of that system (as given, or as an OID), or without any,
            count. Without an issuer any system counts, and the id within the source as well.
    """
    if not patient_id:
        return None
    if issuer:
        wanted = Q(identifiers__system__in=["", issuer, f"urn:oid:{issuer}"], identifiers__value=patient_id)
    else:
        wanted = Q(identifiers__value=patient_id) | Q(resource_id=patient_id)
    found = list(Patient.objects.filter(wanted, source=source).distinct()[:10])
    survivors = {survivor.pk: survivor for survivor in map(merging.survivor, found)}
    return next(iter(survivors.values())) if len(survivors) == 1 else None


def list_unlinked(patient: Patient) -> list[Study]:
    """Studies without a patient that carry an identifier of this one."""
    values = set(PatientIdentifier.objects.filter(patient=patient).values_list("value", flat=True))
    return list(
        Study.objects.filter(
            patient=None, source=patient.source_id, dicom_patient_id__in={*values, patient.resource_id} - {""}
        )
    )
