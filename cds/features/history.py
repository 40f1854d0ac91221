"""Who the patient is and has been: age and sex, smoking, medications, conditions, family history, genomics.

A status of today is never read into the past (INTEROP 34); what is not known is None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import ehr
from cds import catalogue
from cds.features.basis import USABLE_STATUS, Used
from cds.patients import models
from cds.patients.models import FamilyHistory, GenomicFinding, Medication, Observation, Patient
from cds.statements import Records

NOT_BEGUN = frozenset({"draft", "intended"})  # of medications
_RESOURCE = ("resource_type", "resource_id", "available_at")
DOUBTFUL = frozenset({"refuted", "entered-in-error", "differential"})


def computed_values(
    patient: Patient, conditions: list[Condition] | None, *, as_of: datetime, used: Used
) -> dict[str, float | None]:
    """The fields worked out from several rows (`catalogue.COMPUTED`)."""
    rules: dict[str, Callable[[Patient, datetime, Used], float | None]] = {
        "age": _age,
        "female": _female,
        "smoker": _smoker,
        "medications": _medications,
        "family_cardiac": _family_cardiac,
    }
    is_countable = conditions is not None and all(one.is_sure for one in conditions)
    counted = float(len({one.tokens[0] for one in conditions or ()})) if is_countable else None
    return {
        computed.name: counted if computed.how == "conditions" else rules[computed.how](patient, as_of, used)
        for computed in catalogue.COMPUTED
    }


def _age(patient: Patient, as_of: datetime, used: Used) -> float | None:
    """Years since birth; missing when unknown or when as_of lies before birth."""
    if patient.birth_date is None:
        return None
    days = (as_of.astimezone(UTC).date() - patient.birth_date).days
    if not 0 <= days <= 120 * 366:
        return None
    used.add("Patient", patient.resource_id, None)
    return days / 365.25


def _female(patient: Patient, as_of: datetime, used: Used) -> float | None:
    if patient.sex not in ("female", "male"):
        return None
    used.add("Patient", patient.resource_id, None)
    return float(patient.sex == "female")


_smoking = Records(
    lambda patient, as_of: Observation.objects.filter(
        patient=patient, code=catalogue.SMOKING_STATUS, available_at__lte=as_of, status__in=USABLE_STATUS
    ).order_by("-effective_at", "-available_at")[:20],
    "value_code",
    *_RESOURCE,
)


def _smoker(patient: Patient, as_of: datetime, used: Used) -> float | None:
    """The latest answer to LOINC 72166-2 with a SNOMED CT code we know."""
    for row in _smoking.records(patient=patient.pk, as_of=as_of):
        answer = row.value_code.rpartition("|")[2]
        if answer in catalogue.SMOKES or answer in catalogue.DOES_NOT_SMOKE:
            used.add(row.resource_type, row.resource_id, row.available_at)
            return float(answer in catalogue.SMOKES)
    return None


_taken = Records(
    lambda patient, as_of: Medication.objects.filter(patient=patient, available_at__lte=as_of),
    "code_system",
    "code",
    "status",
    "start",
    "end",
    "over_at",
    *_RESOURCE,
)


def _medications(patient: Patient, as_of: datetime, used: Used) -> float | None:
    """Distinct drugs in use at as_of; unknown when one of them was stopped and nobody says when."""
    rows = [
        row
        for row in _taken.records(patient=patient.pk, as_of=as_of)
        if row.start is None or row.start <= as_of
    ]
    in_use = [(row, _is_going_on(row.status, row.end, row.over_at, as_of)) for row in rows]
    if not rows or any(going_on is None for _, going_on in in_use):
        return None
    active = [row for row, going_on in in_use if going_on]
    for row in active:
        used.add(row.resource_type, row.resource_id, row.available_at)
    return float(len({(row.code_system, row.code) for row in active}))


def _is_going_on(status: str, end: datetime | None, over_at: datetime | None, as_of: datetime) -> bool | None:
    """Whether what had begun by as_of went on then.

    None when it is over by now and nobody says since when: its status of today must not be read into the
    past (INTEROP 34). From `over_at` on it is known to be over.
    """
    if end is not None:
        return end > as_of
    if not ehr.is_over(status):
        return status not in NOT_BEGUN
    return False if over_at is not None and over_at <= as_of else None


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition active at as_of, for all that is known (`is_sure`) or perhaps."""

    is_sure: bool
    tokens: tuple[str, ...]  # system|code, the main one first
    resource: tuple[str, str]
    known_at: datetime


_conditions = Records(
    lambda patient, as_of: models.Condition.objects.filter(patient=patient, available_at__lte=as_of).exclude(
        verification_status__in=DOUBTFUL
    ),
    "code_system",
    "code",
    "also",
    "clinical_status",
    "onset_at",
    "abated_at",
    "over_at",
    *_RESOURCE,
)


def known_conditions(patient: Patient, as_of: datetime) -> list[Condition] | None:
    """Those active or perhaps active at as_of; None when none is known at all."""
    rows = _conditions.records(patient=patient.pk, as_of=as_of)
    if not rows:
        return None
    known = []
    for row in rows:
        if row.onset_at is not None and row.onset_at > as_of:
            continue
        going_on = _is_going_on(row.clinical_status, row.abated_at, row.over_at, as_of)
        if going_on is not False and row.available_at is not None:
            tokens = (f"{row.code_system}|{row.code}", *row.also)
            resource = (row.resource_type, row.resource_id)
            known.append(Condition(bool(going_on), tokens, resource, row.available_at))
    return known


def condition_flags(conditions: list[Condition] | None, *, used: Used) -> dict[str, float | None]:
    """1 for a condition active at as_of, 0 for none, None where it is perhaps or no condition is known."""
    if conditions is None:
        return {flag.name: None for flag in catalogue.CONDITIONS}
    flags: dict[str, float | None] = {}
    for flag in catalogue.CONDITIONS:
        hits = [one for one in conditions if _is_one_of(one.tokens, flag.snomed, flag.icd10)]
        sure = [one for one in hits if one.is_sure]
        flags[flag.name] = 1.0 if sure else None if hits else 0.0
        for one in sure:
            used.add(*one.resource, one.known_at)
    return flags


def _is_one_of(tokens: Iterable[str], snomed: Collection[str], icd10: tuple[str, ...]) -> bool:
    for token in tokens:
        system, _, code = token.rpartition("|")
        if (system == catalogue.SNOMED and code in snomed) or ("icd-10" in system and code.startswith(icd10)):
            return True
    return False


_family = Records(
    lambda patient, as_of: FamilyHistory.objects.filter(patient=patient, available_at__lte=as_of),
    "code_system",
    "code",
    *_RESOURCE,
)


def _family_cardiac(patient: Patient, as_of: datetime, used: Used) -> float | None:
    rows = _family.records(patient=patient.pk, as_of=as_of)
    if not rows:
        return None
    hits = [
        row
        for row in rows
        if _is_one_of(
            [f"{row.code_system}|{row.code}"], catalogue.FAMILY_CARDIAC_SNOMED, catalogue.FAMILY_CARDIAC_ICD10
        )
    ]
    for row in hits or rows:
        used.add(row.resource_type, row.resource_id, row.available_at)
    return float(bool(hits))


_genomics = Records(
    lambda patient, as_of: GenomicFinding.objects.filter(patient=patient, available_at__lte=as_of).order_by(
        "-available_at"
    ),
    "kind",
    "gene",
    "significance",
    "present",
    "value",
    *_RESOURCE,
)


def genomic_values(patient: Patient, *, as_of: datetime, used: Used) -> dict[str, float | None]:
    """1 for a (likely) pathogenic variant present, 0 when these genes were read without one, else missing."""
    rows = _genomics.records(patient=patient.pk, as_of=as_of)
    values: dict[str, float | None] = {}
    for wanted in catalogue.GENOMICS:
        if wanted.genes:
            read = [
                row
                for row in rows
                if row.kind == "variant" and row.gene in wanted.genes and row.present is not None
            ]
            hits = [row for row in read if row.present and _is_pathogenic(row.significance)]
            values[wanted.name] = float(bool(hits)) if read else None
            taken = hits or read
        else:
            scores = [row for row in rows if row.kind == "score" and row.value is not None]
            taken = [row for row in scores if wanted.low <= (row.value or 0.0) <= wanted.high][:1]
            values[wanted.name] = taken[0].value if taken else None
        for row in taken:
            used.add(row.resource_type, row.resource_id, row.available_at)
    return values


def _is_pathogenic(significance: str) -> bool:
    """ClinVar wording: "Pathogenic", "Likely pathogenic"; not "Conflicting …"."""
    word = significance.lower()
    return "pathogenic" in word and "conflicting" not in word
