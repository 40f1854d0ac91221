"""FHIR ImagingStudy → ImagingStudyRecord: which Study exists, and where its pixels are to be had."""

from __future__ import annotations

import re

from ehr.errors import BadResource
from ehr.fhir.dates import get_span, latest, start_of
from ehr.fhir.elements import Json, get_list, get_text, read_coding
from ehr.fhir.subject import About
from ehr.records import WITHOUT_PIXELS, Fact, ImagingStudyRecord

# the first is the rule of R4; the second is what came before it and is still sent (docs/oddities.md)
_UID_SYSTEMS = frozenset({"urn:dicom:uid", "urn:ietf:rfc:3986"})
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # DICOM PS3.5 §9.1, leading zeros tolerated


def read_imaging_study(about: About) -> list[Fact]:
    """Read an ImagingStudy. Raises BadResource when it has no Study Instance UID."""
    resource, kind = about.resource, "ImagingStudy"
    about.status(retracted=frozenset({"cancelled"}))
    started = get_span(resource, "started", kind)
    uid = _study_uid(resource)
    codes = [read_coding(item, f"{kind}.modality") for item in get_list(resource, "modality", kind)]
    endpoints = get_list(resource, "endpoint", kind)
    for series in get_list(resource, "series", kind):
        codes.extend(
            read_coding(item, f"{kind}.series.modality") for item in get_list(series, "modality", kind)
        )
        endpoints.extend(get_list(series, "endpoint", kind))
    expected = _expected(resource)
    endpoint = ""
    for item in endpoints:
        reference = get_text(item, "reference", f"{kind}.endpoint")
        found = about.scope.find(reference, resource)
        endpoint = endpoint or (get_text(found, "address", "Endpoint") if found else "") or reference
    return [
        ImagingStudyRecord(
            resource_type=kind,
            resource_id=about.identity,
            available_at=latest(started),
            study_uid=uid,
            modalities=tuple(dict.fromkeys(code.code for code in codes if code)),
            started_at=start_of(started),
            description=get_text(resource, "description", kind)[:300],
            endpoint=endpoint[:500],
            expected=expected,
        )
    ]


def _expected(resource: Json) -> tuple[tuple[str, int], ...]:
    """How many instances each Series with pixels has; without Series, how many the Study has."""
    counts = []
    for series in get_list(resource, "series", "ImagingStudy"):
        uid, count = series.get("uid"), series.get("numberOfInstances")
        modality = series.get("modality")
        code = modality.get("code") if isinstance(modality, dict) else None
        if isinstance(uid, str) and isinstance(count, int) and count > 0 and code not in WITHOUT_PIXELS:
            counts.append((uid.removeprefix("urn:oid:"), count))
    whole = resource.get("numberOfInstances")
    if not counts and isinstance(whole, int) and whole > 0:
        return (("", whole),)
    return tuple(counts)


def _study_uid(resource: Json) -> str:
    candidates = [
        get_text(item, "value", "ImagingStudy.identifier")
        for item in get_list(resource, "identifier", "ImagingStudy")
        if get_text(item, "system", "ImagingStudy.identifier") in _UID_SYSTEMS
    ]
    candidates.append(get_text(resource, "uid", "ImagingStudy"))  # as FHIR STU3 had it
    for candidate in candidates:
        uid = candidate.removeprefix("urn:oid:").strip()
        if _UID.fullmatch(uid) and len(uid) <= 64:
            return uid
    raise BadResource("ImagingStudy.identifier has no Study Instance UID (system urn:dicom:uid)")
