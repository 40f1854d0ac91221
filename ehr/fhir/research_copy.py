"""A patient's record as de-identified FHIR R4 resources: written anew from what was understood, not copied.

So names, addresses, telecom, narratives, extensions, contained resources, identifiers and attachments of the
original cannot slip through: nothing is there that is not written below. Codes of the big terminologies (and
of systems the caller vouches for) are kept, without their texts; a value that is a text becomes "masked",
unless it is one of the usual words of a result. Dates are moved by whole days, ids are replaced.
Every component of an Observation becomes an Observation of its own.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta
from typing import Any

from ehr.codes import Code, Icd10, Loinc, RxNorm, Snomed
from ehr.fhir.genomics import VARIANT
from ehr.fhir.subject import STATUSES
from ehr.pseudonyms import TOP_AGE, Pseudonyms, moved, topped_birth_date
from ehr.records import (
    AllergyRecord,
    ConditionRecord,
    EncounterKind,
    EncounterRecord,
    Fact,
    FamilyHistoryRecord,
    GenomicRecord,
    MedicationRecord,
    NoteRecord,
    ObservationRecord,
    PatientRecord,
    ProcedureRecord,
)
from ehr.scrubbing import Scrubber, known_of

Resource = dict[str, Any]
IDENTIFIER_SYSTEM = "urn:tessera:research-copy"
UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
SOUND = (Loinc, Snomed, RxNorm, Icd10)  # their shape was checked when they were read
# Further terminologies whose codes have a shape that no name has
SHAPED = {
    "http://hl7.org/fhir/sid/cvx": re.compile(r"\d{1,3}"),
    "http://hl7.org/fhir/sid/icd-9-cm": re.compile(r"[VE]?\d{2,4}(\.\d{1,2})?"),
    "http://www.whocc.no/atc": re.compile(r"[A-Z]\d\d[A-Z]{2}\d\d|[A-Z]\d\d[A-Z]{0,2}"),
    "http://www.ama-assn.org/go/cpt": re.compile(r"\d{4}[0-9FTU]"),
    "http://www.genenames.org/geneId": re.compile(r"HGNC:\d{1,6}"),
    f"{TERMINOLOGY}/v3-RoleCode": re.compile(r"[A-Z]{2,12}"),
}
VOUCHED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]{0,39}")
# Value sets of FHIR R4, and the usual words of a result
WORDS: dict[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "category": "vital-signs laboratory imaging social-history exam survey procedure therapy activity",
        "clinical": "active recurrence relapse inactive remission resolved",
        "verification": "unconfirmed provisional differential confirmed",
        "criticality": "low high unable-to-assess",
        "absent": "unknown asked-unknown temp-unknown not-asked asked-declined masked not-applicable error "
        "unsupported as-text not-a-number negative-infinity positive-infinity not-performed not-permitted",
        "result": "positive negative detected not-detected present absent normal abnormal reactive none yes "
        "no true false non-reactive trace indeterminate equivocal borderline",
    }.items()
}
SIGNIFICANCES = frozenset(
    {"pathogenic", "likely pathogenic", "uncertain significance", "likely benign", "benign"}
)
GENE = re.compile(r"[A-Z][A-Z0-9]{1,9}(-[A-Z0-9]{1,5})?")
HGVS = re.compile(
    r"(N[CGMPR]_\d{6,9}\.\d{1,2}(\([A-Z0-9-]{2,12}\))?:)?[cgpnm]\.(?=\D{0,6}\d)[\w*=>()?+-]{1,60}|rs\d{1,12}"
)
UNIT = re.compile(r"[A-Za-z0-9%*/.\[\]{}'_^+-]{1,24}")
CLASSES = {
    EncounterKind.INPATIENT: "IMP",
    EncounterKind.EMERGENCY: "EMER",
    EncounterKind.INTENSIVE_CARE: "IMP",
    EncounterKind.AMBULATORY: "AMB",
}
INTENSIVE_CARE = "305351004"  # Admission to intensive care unit (procedure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What a research copy keeps beyond coded facts; all off by default.

    characteristics  sex and birth date (moved, topped), of DICOM sex, age, size, weight …
    notes            the text of notes, scrubbed (`ehr.scrubbing` says what that is worth)
    genomics         variants and scores: who knows somebody's variants can find them
    code_systems     URIs of local code systems whose codes somebody has seen and vouches for
    """

    characteristics: bool = False
    notes: bool = False
    genomics: bool = False
    code_systems: frozenset[str] = frozenset()


@dataclass(slots=True)
class ResearchRecord:
    """One patient's record in the copy.

    resources  FHIR R4, the Patient first
    left_out   facts not written, by why; `masked`: values replaced by "masked"; `scrubbed`: by kind
    """

    person: str
    shift: timedelta
    resources: list[Resource] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    masked: int = 0
    scrubbed: Counter[str] = field(default_factory=Counter)


def deidentify_record(
    record: PatientRecord, *, who: str, names: Pseudonyms, keeping: Keeping | None = None
) -> ResearchRecord:
    """The record, de-identified. `who` identifies the patient to the key (never written)."""
    made = ResearchRecord(names.person(who), names.shift_of(who))
    writer = _Writer(record, made, names, keeping or Keeping())
    made.resources.extend(writer.resources())
    made.scrubbed = writer.scrubber.found
    return made


class _LeftOut(Exception):
    """This fact is not written; the message says why, without anything of the patient."""


class _Writer:
    def __init__(
        self, record: PatientRecord, made: ResearchRecord, names: Pseudonyms, keeping: Keeping
    ) -> None:
        self.record, self.made, self.names, self.keeping = record, made, names, keeping
        self.scrubber = Scrubber(known_of(record))
        self._now = ""
        self.subject = {"reference": f"Patient/{made.person}"}

    def resources(self) -> Iterator[Resource]:
        yield self.patient()
        kinds: tuple[tuple[tuple[Any, ...], Any], ...] = (
            (self.record.encounters, self.encounter),
            (self.record.observations, self.observation),
            (self.record.conditions, self.condition),
            (self.record.medications, self.medication),
            (self.record.procedures, self.procedure),
            (self.record.allergies, self.allergy),
            (self.record.notes, self.note),
            (self.record.family_history, self.relative),
            (self.record.genomics, self.genomic),
        )
        for facts, write in kinds:
            for fact in facts:
                try:
                    yield _without_empty(write(fact))
                except _LeftOut as why:
                    self.made.left_out[str(why)] += 1

    def patient(self) -> Resource:
        held = self.record.patient
        found: Resource = {
            "resourceType": "Patient",
            "id": self.made.person,
            "identifier": [{"system": IDENTIFIER_SYSTEM, "value": self.made.person}],
        }
        if self.keeping.characteristics:
            found["gender"] = held.sex.value
            if held.birth_date is not None:
                born = topped_birth_date(held.birth_date, self._last_day())
                found["birthDate"] = moved(born, self.made.shift).isoformat()
        if held.deceased_at is not None:
            found["deceasedDateTime"] = self.at(held.deceased_at)
        elif held.deceased:
            found["deceasedBoolean"] = True
        return found

    def _last_day(self) -> date:
        """The last day anything is told of: from there on nobody is older than the top."""
        days = [self.record.patient.deceased_at] if self.record.patient.deceased_at else []
        for kind in fields(self.record):
            held = getattr(self.record, kind.name)
            for fact in held if isinstance(held, tuple) else ():
                if isinstance(fact, Fact):
                    values = (getattr(fact, one.name) for one in fields(fact))
                    days.extend(value for value in values if isinstance(value, datetime))
        return max(days).date() if days else date.min.replace(year=TOP_AGE + 2)

    def encounter(self, fact: EncounterRecord) -> Resource:
        found = self._new(fact, "Encounter", _one_of(fact.status, STATUSES["Encounter"], "unknown"))
        found["class"] = {"system": f"{TERMINOLOGY}/v3-ActCode", "code": CLASSES.get(fact.kind, "")}
        if fact.kind not in CLASSES:
            found["class"] = {"system": f"{TERMINOLOGY}/v3-NullFlavor", "code": "UNK"}
        if fact.kind is EncounterKind.INTENSIVE_CARE:
            found["type"] = [{"coding": [{"system": Snomed.system, "code": INTENSIVE_CARE}]}]
        found["period"] = {"start": self.at(fact.start), "end": self.at(fact.end)}
        if fact.part_of:
            found["partOf"] = {"reference": f"Encounter/{self.names.identity('Encounter', fact.part_of)}"}
        return found

    def observation(self, fact: ObservationRecord) -> Resource:
        found = self._new(fact, "Observation", _one_of(fact.status, STATUSES["Observation"], "unknown"))
        found["code"] = self.concept(fact.code, *fact.also)
        if fact.category in WORDS["category"]:
            system = f"{TERMINOLOGY}/observation-category"
            found["category"] = [{"coding": [{"system": system, "code": fact.category}]}]
        found["effectiveDateTime"] = self.at(fact.effective_at)
        found["issued"] = self.at(fact.available_at)
        found |= self._value_of(fact)
        bounds = {"low": self._quantity(fact.low, fact.unit), "high": self._quantity(fact.high, fact.unit)}
        if "valueQuantity" in found and any(bounds.values()):
            found["referenceRange"] = [bounds]
        return found

    def _value_of(self, fact: ObservationRecord) -> Resource:
        said = fact.value_text.strip().lower()
        is_number_of_theirs = fact.value is not None and f"{fact.value:.15g}" in self.scrubber.known.numbers
        if not is_number_of_theirs and (quantity := self._quantity(fact.value, fact.unit)):
            return {"valueQuantity": quantity}
        if fact.value_code is not None and (coding := self.coding(fact.value_code)):
            return {"valueCodeableConcept": {"coding": [coding]}}
        if said.replace(" ", "-") in WORDS["result"]:
            return {"valueString": said}
        if fact.value is not None or fact.value_code is not None or said:
            self.made.masked += 1
        reason = fact.absent_reason if fact.absent_reason in WORDS["absent"] and not said else "masked"
        return {
            "dataAbsentReason": {"coding": [{"system": f"{TERMINOLOGY}/data-absent-reason", "code": reason}]}
        }

    def _quantity(self, value: float | None, unit: str) -> Resource | None:
        if value is None or (unit and not UNIT.fullmatch(unit)) or self._is_known(unit):
            return None
        return {"value": value, "system": UCUM, "code": unit or "1"}

    def condition(self, fact: ConditionRecord) -> Resource:
        found = self._new(fact, "Condition")
        found |= _statuses(fact, "condition-clinical", "condition-ver-status")
        found["code"] = self.concept(fact.code, *fact.also)
        found["onsetDateTime"] = self.at(fact.onset_at)
        found["abatementDateTime"] = self.at(fact.abated_at)
        found["recordedDate"] = self.at(fact.available_at)
        return found

    def medication(self, fact: MedicationRecord) -> Resource:
        kind = fact.resource_type if fact.resource_type in STATUSES else "MedicationStatement"
        found = self._new(fact, kind, _one_of(fact.status, STATUSES[kind], "unknown"))
        found["medicationCodeableConcept"] = self.concept(fact.code, *fact.also)
        period = {"start": self.at(fact.start), "end": self.at(fact.end)}
        if kind == "MedicationRequest":
            found["intent"], found["authoredOn"] = "order", self.at(fact.available_at)
            found["dosageInstruction"] = [{"timing": {"repeat": {"boundsPeriod": period}}}]
        else:
            found["effectivePeriod"] = period
            if kind == "MedicationStatement":
                found["dateAsserted"] = self.at(fact.available_at)
        return found

    def procedure(self, fact: ProcedureRecord) -> Resource:
        found = self._new(fact, "Procedure", _one_of(fact.status, STATUSES["Procedure"], "unknown"))
        found["code"] = self.concept(fact.code, *fact.also)
        found["performedPeriod"] = {"start": self.at(fact.performed_at), "end": self.at(fact.available_at)}
        return found

    def allergy(self, fact: AllergyRecord) -> Resource:
        found = self._new(fact, "AllergyIntolerance")
        found["patient"] = found.pop("subject")
        found |= _statuses(fact, "allergyintolerance-clinical", "allergyintolerance-verification")
        found["code"] = self.concept(fact.code)
        if fact.criticality in WORDS["criticality"]:
            found["criticality"] = fact.criticality
        found["recordedDate"] = self.at(fact.available_at)
        return found

    def relative(self, fact: FamilyHistoryRecord) -> Resource:
        found = self._new(fact, "FamilyMemberHistory", "completed")
        found["patient"] = found.pop("subject")
        found["relationship"] = self.concept(fact.relationship)
        found["date"] = self.at(fact.available_at)
        condition: Resource = {"code": self.concept(fact.condition)}
        if fact.onset_age is not None:
            years = min(fact.onset_age, float(TOP_AGE))
            condition["onsetAge"] = {"value": years, "system": UCUM, "code": "a"}
        found["condition"] = [condition]
        return found

    def note(self, fact: NoteRecord) -> Resource:
        if not self.keeping.notes:
            raise _LeftOut("note: texts were not asked for")
        found = self._new(fact, "DocumentReference", "current")
        if fact.kind is not None and (coding := self.coding(fact.kind)):
            found["type"] = {"coding": [coding]}
        found["date"] = self.at(fact.available_at)
        words = self.scrubber.scrub(fact.text).encode("utf-8", "replace")
        attachment = {"contentType": "text/plain; charset=utf-8", "data": base64.b64encode(words).decode()}
        found["content"] = [{"attachment": attachment}]
        return found

    def genomic(self, fact: GenomicRecord) -> Resource:
        if not self.keeping.genomics:
            raise _LeftOut("genomic finding: not asked for")
        found = self._new(fact, "Observation", "final")
        found["category"] = [{"coding": [{"system": f"{TERMINOLOGY}/v2-0074", "code": "GE"}]}]
        found["issued"] = self.at(fact.available_at)
        is_symbol = GENE.fullmatch(fact.gene) and not self._is_known(fact.gene)
        gene = [("48018-6", fact.gene)] if is_symbol else []
        if fact.kind == "score":
            if fact.code is None or fact.value is None:
                raise _LeftOut("genomic score without code or value")
            found["code"] = self.concept(fact.code)
            found["valueQuantity"] = {"value": fact.value, "system": UCUM, "code": "1"}
        else:
            found["code"] = {"coding": [{"system": Loinc.system, "code": VARIANT}]}
            if fact.present is not None:
                code = "LA9633-4" if fact.present else "LA9634-2"
                found["valueCodeableConcept"] = {"coding": [{"system": Loinc.system, "code": code}]}
            if HGVS.fullmatch(fact.variant) and not self._is_known(fact.variant):
                gene.append(("48004-6", fact.variant))
            if fact.significance.lower() in SIGNIFICANCES:
                gene.append(("53037-8", fact.significance))
        found["component"] = [
            {"code": {"coding": [{"system": Loinc.system, "code": code}]}, "valueString": value}
            for code, value in gene
        ]
        return found

    def at(self, moment: datetime | None) -> str | None:
        return moved(moment, self.made.shift).isoformat() if moment is not None else None

    def concept(self, *given: Code) -> Resource:
        """A CodeableConcept of the codes that may leave. Raises _LeftOut when none may."""
        kept = [coding for code in given if (coding := self.coding(code))]
        if not kept:
            raise _LeftOut(f"{self._now}: its code is a text or of a local system")
        return {"coding": kept}

    def coding(self, code: Code) -> Resource | None:
        shape = SHAPED.get(code.uri) or (VOUCHED if code.uri in self.keeping.code_systems else None)
        is_sound = isinstance(code, SOUND) and code.code not in self.scrubber.known.numbers
        if is_sound or (shape and shape.fullmatch(code.code) and not self._is_known(code.code)):
            return {"system": code.uri, "code": code.code}
        return None

    def _is_known(self, text: str) -> bool:
        folded = text.casefold()
        return any(one.casefold() in folded for one in self.scrubber.known.everything if len(one) > 2)

    def _new(self, fact: Fact, kind: str, status: str = "") -> Resource:
        self._now = kind
        found: Resource = {
            "resourceType": kind,
            "id": self.names.identity(fact.resource_type, f"{fact.resource_id}|{fact.part}".rstrip("|")),
            "subject": self.subject,
        }
        return found | ({"status": status} if status else {})


def _statuses(fact: ConditionRecord | AllergyRecord, clinical: str, verification: str) -> Resource:
    """Both statuses, by their code systems, where they are codes."""
    return {
        name: {"coding": [{"system": f"{TERMINOLOGY}/{system}", "code": said}]}
        for name, said, codes, system in (
            ("clinicalStatus", fact.clinical_status, WORDS["clinical"], clinical),
            ("verificationStatus", fact.verification_status, WORDS["verification"], verification),
        )
        if said in codes
    }


def _one_of(said: str, codes: frozenset[str], otherwise: str) -> str:
    return said if said in codes else otherwise


def _without_empty(value: Any) -> Any:
    """Without what says nothing: FHIR has no null, no empty object and no empty list."""
    if isinstance(value, dict):
        kept = {name: _without_empty(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if inner not in (None, "", {}, [])}
    if isinstance(value, list):
        return [inner for one in value if (inner := _without_empty(one)) not in (None, "", {}, [])]
    return value
