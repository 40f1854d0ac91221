"""What we ask an EHR to send ahead, and how what it sent becomes the record.

Templates keep to CDS Hooks 2.0 (INTEROP 5, 6): instance reads and type searches by reference and token,
with `_sort` and `_count`, sized to what the model looks at. A prefetch that was read before and left the
patient as they are now costs one look-up by its digest, without parsing.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

import orjson
from django.db.models import F

import ehr
from cds.hooks.client_auth import Caller
from cds.hooks.models import PrefetchRead
from cds.hooks.wire import HookRequest, Unobtainable
from cds.patients import code_map, importing
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.studies import receiving

_OF_PATIENT = "patient={{context.patientId}}"
ALWAYS: dict[str, str] = {
    "patient": "Patient/{{context.patientId}}",
    "encounters": f"Encounter?{_OF_PATIENT}&_sort=-date&_count=20",
    "conditions": f"Condition?{_OF_PATIENT}&_count=200",
    "medications": f"MedicationRequest?{_OF_PATIENT}&_count=100",
    "vitals": f"Observation?{_OF_PATIENT}&category=vital-signs&_sort=-date&_count=200",
    "labs": f"Observation?{_OF_PATIENT}&category=laboratory&_sort=-date&_count=200",
    "smoking": f"Observation?{_OF_PATIENT}&code=http://loinc.org|72166-2&_sort=-date&_count=5",
    "family": f"FamilyMemberHistory?{_OF_PATIENT}&_count=50",
}
BY_MODALITY: dict[str, tuple[str, str]] = {
    "text": ("notes", f"DocumentReference?{_OF_PATIENT}&_sort=-date&_count=20"),
    "image": ("imaging", f"ImagingStudy?{_OF_PATIENT}&_sort=-started&_count=20"),
    "cine": ("imaging", f"ImagingStudy?{_OF_PATIENT}&_sort=-started&_count=20"),
}


def templates(version: ModelVersion) -> dict[str, str]:
    """Prefetch templates for a version: notes and imaging studies only when it reads them."""
    return ALWAYS | dict(BY_MODALITY[name] for name in sorted(version.encoders) if name in BY_MODALITY)


def take(request: HookRequest, *, caller: Caller, now: datetime) -> Patient:
    """Bring the record up to what the EHR just sent, and return the patient.

    raises  Unobtainable when nothing usable was sent: we fetch nothing ourselves yet (INTEROP 11)
            ehr.Permanent when what was sent cannot be read as one patient's record
    """
    if not request.prefetch.resources:
        raise Unobtainable(
            "no prefetch data were sent, and this service does not fetch from fhirServer: send the prefetch "
            "named at /cds-services"
        )
    digest = digest_of(request)
    known = (
        PrefetchRead.objects.select_related("patient__source")
        .filter(
            patient__source=caller.source,
            patient__resource_id=request.patient_id,
            digest=digest,
            revision=F("patient__revision"),
        )
        .first()
    )
    if known is not None:
        return known.patient
    record = ehr.read_prefetch(request.prefetch.resources, patient_id=request.patient_id)
    imported = importing.import_record(record, source=caller.source, by=caller.actor, now=now)
    if imported.merged:
        receiving.follow_mergers(imported.merged, now=now, by=caller.actor)
    patient = imported.patient
    PrefetchRead.objects.update_or_create(
        patient=patient, defaults={"digest": digest, "revision": patient.revision}
    )
    return patient


def digest_of(request: HookRequest) -> str:
    """SHA-256 of the prefetch, whatever the order of its keys, and of the table that maps its codes."""
    sent = orjson.dumps(request.prefetch.resources, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(sent + code_map.site_map().digest.encode()).hexdigest()
