"""What the reader of one resource is told, and what it may say: a part kept apart, a retraction, no use."""

from __future__ import annotations

from dataclasses import dataclass, field

from ehr.errors import BadResource
from ehr.fhir.elements import Json, get_concept, get_text
from ehr.fhir.scope import Scope, reference_of
from ehr.records import SetAside


class Retraction(Exception):
    """The resource is entered-in-error, refuted, cancelled or not done: remove it where it is held."""


class Waiting(Exception):
    """What the resource points to has not been read yet; it is tried again before records are handed out."""


class Unused(Exception):
    """The resource is sound but says nothing Tessera reads; the message is what it is counted as."""


# Required value sets of FHIR R4 (http://hl7.org/fhir/R4/{type}.html), less entered-in-error.
STATUSES: dict[str, frozenset[str]] = {
    kind: frozenset(codes.split())
    for kind, codes in {
        "Observation": "registered preliminary final amended corrected cancelled unknown",
        "Encounter": "planned arrived triaged in-progress onleave finished cancelled unknown",
        "MedicationRequest": "active on-hold cancelled completed stopped draft unknown",
        "MedicationStatement": "active completed intended stopped on-hold unknown not-taken",
        "MedicationAdministration": "in-progress not-done on-hold completed stopped unknown",
        "Procedure": "preparation in-progress not-done on-hold stopped completed unknown",
        "FamilyMemberHistory": "partial completed health-unknown",
        "DiagnosticReport": "registered partial preliminary final amended corrected appended cancelled "
        "unknown",
        "DocumentReference": "current superseded",
        "ImagingStudy": "registered available cancelled unknown",
    }.items()
}


# The same of statuses that are CodeableConcepts; "unknown" is of FHIR STU3.
CONCEPT_STATUSES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Condition", "clinicalStatus"): (
        "active", "recurrence", "relapse", "inactive", "remission", "resolved",
    ),
    ("Condition", "verificationStatus"): (
        "unconfirmed", "provisional", "differential", "confirmed", "refuted", "entered-in-error", "unknown",
    ),
    ("AllergyIntolerance", "clinicalStatus"): ("active", "inactive", "resolved"),
    ("AllergyIntolerance", "verificationStatus"): (
        "unconfirmed", "confirmed", "refuted", "entered-in-error",
    ),
}  # fmt: skip


@dataclass(slots=True)
class About:
    """One resource being read."""

    kind: str
    identity: str
    where: str
    resource: Json
    scope: Scope
    last_chance: bool = True  # False: what it points to may still be read
    set_aside: list[SetAside] = field(default_factory=list)

    def keep_apart(self, reason: str) -> None:
        """A part of the resource was not taken; the rest goes on."""
        self.set_aside.append(SetAside(self.where, self.kind, self.identity, reason[:500]))

    def status(self, name: str = "status", *, retracted: frozenset[str] = frozenset()) -> str:
        """The status code, "" when there is none. Raises Retraction when it is entered-in-error or one of
        `retracted`, BadResource when it is no code of the required value set (INTEROP 35)."""
        status = get_text(self.resource, name, self.kind)[:30]
        if status == "entered-in-error" or status in retracted:
            raise Retraction
        if name == "status" and status and status not in STATUSES.get(self.kind, {status}):
            allowed = ", ".join(sorted(STATUSES[self.kind] | {"entered-in-error"}))
            raise BadResource(
                f"{self.kind}.{name} is not a code of its required value set: the source has to send one of "
                f"{allowed}"
            )
        return status

    def concept_status(self, name: str) -> str:
        """clinicalStatus or verificationStatus as a code of its required value set, "" when there is none.

        A text counts where it spells one ("Entered in error"); plain strings are of FHIR STU3 and DSTU2.
        Raises Retraction when it is entered-in-error or refuted, BadResource for anything else (INTEROP 35):
        a status nobody can read must not pass for active and confirmed.
        """
        value = self.resource.get(name)
        if isinstance(value, str):
            said = [value]
        else:
            concept = get_concept(self.resource, name, self.kind)
            if concept is None:
                return ""
            said = [*(code.code for code in concept.codes), concept.text]
        codes = CONCEPT_STATUSES[self.kind, name]
        found = [code for one in said if (code := "-".join(one.lower().split())) in codes]
        if not set(found).isdisjoint(("entered-in-error", "refuted")):
            raise Retraction
        if not found:
            raise BadResource(
                f"{self.kind}.{name} is not a code of its required value set: send one of {', '.join(codes)}"
            )
        return found[0]

    def id_of(self, name: str) -> str:
        """The id in the reference `resource[name]`, "" when absent or not known."""
        return self.scope.id_of(reference_of(self.resource, name, self.kind))[1]
