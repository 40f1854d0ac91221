"""FHIR Patient → PatientIdentity. https://hl7.org/fhir/R4/patient.html"""

from __future__ import annotations

from ehr.errors import BadResource
from ehr.fhir.dates import get_span, read_birth_date
from ehr.fhir.elements import Json, get_bool, get_list, get_text, get_texts
from ehr.fhir.scope import Scope, reference_of
from ehr.records import Identifier, PatientIdentity, Sex

_NAME_ORDER = ("official", "usual", "", "temp", "nickname", "anonymous", "maiden", "old")


def read_patient(resource: Json, identity: str, scope: Scope) -> PatientIdentity:
    """Read a Patient. Raises BadResource.

    A death dated no better than a month has `deceased` True and no `deceased_at`: an outcome needs the day.
    """
    name = _best_name(get_list(resource, "name", "Patient"))
    birth = get_text(resource, "birthDate", "Patient")
    gender = get_text(resource, "gender", "Patient") or "unknown"
    if gender not in set(Sex):
        raise BadResource("Patient.gender is not a code of administrative-gender")
    died = get_span(resource, "deceasedDateTime", "Patient")
    return PatientIdentity(
        resource_id=identity,
        identifiers=tuple(_identifiers(resource)),
        family=get_text(name, "family", "Patient.name")[:200],
        given=" ".join(get_texts(name, "given", "Patient.name"))[:200],
        birth_date=read_birth_date(birth, "Patient.birthDate") if birth else None,
        sex=Sex(gender),
        deceased=died is not None or bool(get_bool(resource, "deceasedBoolean", "Patient")),
        deceased_at=died.end if died and died.is_exact else None,
        replaced_by=next(iter(_linked(resource, "replaced-by", scope)), ""),
        replaces=_linked(resource, "replaces", scope),
    )


def _identifiers(resource: Json) -> list[Identifier]:
    found: dict[Identifier, None] = {}
    for item in get_list(resource, "identifier", "Patient"):
        value = get_text(item, "value", "Patient.identifier").strip()
        if value and len(value) <= 128 and get_text(item, "use", "Patient.identifier") != "old":
            found[Identifier(get_text(item, "system", "Patient.identifier")[:300], value)] = None
    return list(found)


def _best_name(names: list[Json]) -> Json:
    def rank(name: Json) -> int:
        use = get_text(name, "use", "Patient.name")
        return _NAME_ORDER.index(use) if use in _NAME_ORDER else len(_NAME_ORDER)

    return min(names, key=rank, default={})


def _linked(resource: Json, how: str, scope: Scope) -> tuple[str, ...]:
    """Ids of the patients this one is linked to in one way (Patient.link.type)."""
    found = (
        scope.id_of(reference_of(link, "other", "Patient.link"))
        for link in get_list(resource, "link", "Patient")
        if get_text(link, "type", "Patient.link") == how
    )
    return tuple(dict.fromkeys(identity for kind, identity in found if kind in ("Patient", "") and identity))
