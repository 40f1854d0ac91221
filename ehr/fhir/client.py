"""Whole patients from a FHIR R4 server: everything Tessera reads of each, by typed searches."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property

from ehr.errors import BadResource, OutOfTime, Permanent, Refused
from ehr.fhir.elements import Json, get_list
from ehr.fhir.prefetch import outcome_text
from ehr.fhir.reading import read_resources
from ehr.fhir.references import name_here, pointed_to, texts_of
from ehr.fhir.resources import ReadingTally
from ehr.fhir.rest import PAGE_SIZE, RestClient
from ehr.fhir.scope import Scope, patient_of
from ehr.records import PatientIdentity, PatientRecord, SetAside

MAX_READ = 500  # of one patient: texts, and as many others that are pointed to, read one by one
MAX_KNOWN = 2000  # drugs, places and endpoints at hand: patients share them
POINTED_TO = "Medication|Location|Endpoint"
# type → what else to bring along
SEARCHES: dict[str, dict[str, str]] = {
    "Encounter": {"_include": "Encounter:location"},
    "Condition": {},
    "Observation": {},
    "MedicationRequest": {"_include": "MedicationRequest:medication"},
    "MedicationStatement": {"_include": "MedicationStatement:medication"},
    "MedicationAdministration": {"_include": "MedicationAdministration:medication"},
    "Procedure": {},
    "AllergyIntolerance": {},
    "DiagnosticReport": {},
    "DocumentReference": {},
    "FamilyMemberHistory": {},
    "ImagingStudy": {"_include": "ImagingStudy:endpoint"},
}


def listened_types() -> tuple[str, ...]:
    """The resource types whose changes matter to a patient's record."""
    return ("Patient", *SEARCHES)


class FhirClient(RestClient):
    """Reads whole patients from one FHIR R4 server; made and closed as a RestClient is."""

    @cached_property
    def _known(self) -> dict[str, Json | Permanent]:
        """Drugs, places and endpoints read so far, or why they could not be."""
        return {}

    def patients(
        self,
        since: datetime | None = None,
        *,
        done: Container[str] = (),
        tally: ReadingTally | None = None,
    ) -> Iterator[PatientRecord]:
        """Each patient with all that Tessera reads of them, by typed searches (`$everything` is not assumed).

        since  only patients of whom anything has changed since then (`_lastUpdated`); the whole patient comes

        done   ids of patients to pass over: a run before this one got that far

        A type that the server cannot be searched for is said in the record's `set_aside`; the rest goes on.
        What is said of no patient comes in a record whose patient has the id "".
        """
        if since is None:
            for patient in self.search("Patient", {"_count": str(PAGE_SIZE)}):
                if patient.get("resourceType") == "OperationOutcome":
                    yield from _nobodys(self._warnings("Patient", patient))
                elif patient.get("resourceType") == "Patient" and patient.get("id") not in done:
                    yield from self._pull(patient, tally)
            return
        problems: list[SetAside] = []
        changed = self._changed_since(since, problems)
        yield from _nobodys(problems)
        yield from self.whole_patients((one for one in changed if one not in done), tally=tally)

    def whole_patients(
        self, ids: Iterable[str], *, tally: ReadingTally | None = None
    ) -> Iterator[PatientRecord]:
        """These patients, each with all that Tessera reads of them; one that cannot be read is set aside."""
        for identity in ids:
            try:
                patient = self.read("Patient", identity)
            except Permanent as error:
                _check_authorised(error)
                problem = SetAside(
                    f"{self.base_url}Patient/{identity}"[:500], "Patient", identity, str(error)[:500]
                )
                stub = PatientIdentity(resource_id=identity, is_stub=True)
                yield PatientRecord(patient=stub, set_aside=(problem,))
                continue
            yield from self._pull(patient, tally)

    def find_patient_of(self, resource_type: str, resource_id: str) -> str:
        """The id of the patient a resource of the server is about.

        Raises what `read` raises (Refused, status 410 or 404, for one that is gone) and BadResource.
        """
        if resource_type == "Patient":
            return resource_id
        return patient_of(self.read(resource_type, resource_id), Scope())

    def _changed_since(self, since: datetime, problems: list[SetAside]) -> list[str]:
        """Ids of the patients of whom anything has changed; what was not seen goes to `problems`."""
        params = {
            "_lastUpdated": f"ge{since.astimezone(UTC).isoformat(timespec='seconds')}",
            "_count": str(PAGE_SIZE),
        }
        found: dict[str, None] = {}
        for resource_type in ("Patient", *SEARCHES):
            nobodys, example = 0, ""
            try:
                for resource in self.search(resource_type, params):
                    if resource.get("resourceType") == "OperationOutcome":
                        problems.extend(self._warnings(resource_type, resource))
                    elif resource.get("resourceType") == resource_type:
                        try:
                            is_patient = resource_type == "Patient"
                            whose = str(resource.get("id")) if is_patient else patient_of(resource, Scope())
                            found[whose] = None
                        except BadResource as error:
                            nobodys, example = nobodys + 1, f"{str(resource.get('id'))[:64]}: {error}"
            except Permanent as error:  # a type this server cannot be searched for; the others still tell
                _check_authorised(error)
                if resource_type == "Patient":
                    raise
                problems.append(self._aside(resource_type, f"its changes are not seen: {error}"))
            if nobodys:
                said = f"{nobodys} have changed and are not fetched, such as {example}"
                problems.append(self._aside(resource_type, said))
        return list(found)

    def _pull(self, patient: Json, tally: ReadingTally | None) -> Iterator[PatientRecord]:
        identity = str(patient.get("id") or "")
        resources: list[tuple[str, Json]] = [(f"Patient/{identity}", patient)]
        problems: list[SetAside] = []
        for resource_type, extra in SEARCHES.items():
            if self.is_out_of_time:
                left = list(SEARCHES)[list(SEARCHES).index(resource_type) :]
                said = f"not asked for, as the time for the whole record was over: {', '.join(left)}"
                problems.append(self._aside("Patient", said, identity))
                break
            for resource in self._typed(resource_type, identity, extra, problems):
                if resource.get("resourceType") == "OperationOutcome":
                    problems.extend(self._warnings(resource_type, resource))
                else:
                    resources.append((f"{resource.get('resourceType')}/{resource.get('id')}", resource))
        if not self.is_out_of_time:
            resources.extend(self._texts(resources, problems))
            resources.extend(self._pointed_to(resources, problems))
        for record in read_resources(resources, tally=tally):
            if record.patient.resource_id not in (identity, ""):
                continue  # a server that passes over `patient` answers with everybody's; they have their turn
            if record.patient.resource_id == identity and problems:
                yield _with_problems(record, problems)
            else:
                yield record

    def _warnings(self, resource_type: str, outcome: Json) -> list[SetAside]:
        """What a search was answered beside its matches: that it is incomplete, say (FHIR R4 §3.1.1.1)."""
        try:
            issues = get_list(outcome, "issue", "OperationOutcome")
        except BadResource:
            issues = []
        if not {str(issue.get("severity")) for issue in issues} & {"fatal", "error", "warning"}:
            return []
        return [self._aside(resource_type, f"the server says of this search: {outcome_text(outcome)}")]

    def _aside(self, kind: str, reason: str, identity: str = "") -> SetAside:
        return SetAside(self.base_url[:500], kind, identity, reason[:500])

    def _texts(self, resources: list[tuple[str, Json]], problems: list[SetAside]) -> list[tuple[str, Json]]:
        """The Binaries of this server in which notes and reports keep their text."""
        urls = dict.fromkeys(url for _, resource in resources for url in texts_of(resource))
        here = [name for url in urls if (name := name_here(url, self.base_url, "Binary"))]
        if len(here) > MAX_READ:  # one elsewhere: whoever reads the resource says so
            said = f"{len(here) - MAX_READ} texts of this patient are not fetched: {MAX_READ} at most are"
            problems.append(self._aside("Binary", said))
        found: list[tuple[str, Json]] = []
        for kind, identity in here[:MAX_READ]:
            try:
                found.append((f"{kind}/{identity}", self.read(kind, identity)))
            except Permanent as error:
                _check_authorised(error)
                problems.append(self._aside(kind, str(error), identity))
                if isinstance(error, OutOfTime):
                    break
        return found

    def _pointed_to(
        self, resources: list[tuple[str, Json]], problems: list[SetAside]
    ) -> list[tuple[str, Json]]:
        """Medications, Locations and Endpoints that `_include` did not bring: refused, or passed over."""
        held = {where for where, _ in resources}
        references = dict.fromkeys(one for _, resource in resources for one in pointed_to(resource))
        here = [name for one in references if (name := name_here(one, self.base_url, POINTED_TO))]
        absent = [name for name in dict.fromkeys(here) if "/".join(name) not in held]
        if len(absent) > MAX_READ:
            said = f"{len(absent) - MAX_READ} that this patient's resources point to are not read: have the "
            problems.append(self._aside("Medication", f"{said}server take _include ({MAX_READ} at most are)"))
        found: list[tuple[str, Json]] = []
        for kind, identity in absent[:MAX_READ]:
            key = f"{kind}/{identity}"
            if key not in self._known:
                if len(self._known) >= MAX_KNOWN:
                    self._known.clear()
                try:
                    self._known[key] = self.read(kind, identity)
                except OutOfTime as error:
                    problems.append(self._aside(kind, str(error), identity))
                    break
                except Permanent as error:
                    _check_authorised(error)
                    self._known[key] = error
            known = self._known[key]
            if isinstance(known, Permanent):
                problems.append(self._aside(kind, str(known), identity))
            else:
                found.append((key, known))
        return found

    def _typed(
        self, resource_type: str, patient: str, extra: Mapping[str, str], problems: list[SetAside]
    ) -> list[Json]:
        """A patient's resources of one type; what came before a fault is kept, and the fault said."""
        params, found = {"patient": patient, "_count": str(PAGE_SIZE)}, list[Json]()
        fault = self._collect(resource_type, {**params, **extra}, found)
        if isinstance(fault, Refused) and extra and not found:
            fault = self._collect(resource_type, params, found)  # a server that does not know this _include
        if fault is not None:
            problems.append(self._aside(resource_type, str(fault)))
        return found

    def _collect(self, resource_type: str, params: Mapping[str, str], found: list[Json]) -> Permanent | None:
        """Append what a search finds; the fault at which it ended, None at its end. Raises for a 401."""
        try:
            found.extend(self.search(resource_type, params))
        except Permanent as error:
            _check_authorised(error)
            return error
        return None


def _check_authorised(error: Permanent) -> None:
    """Raise `error` again when the token is no longer good: what follows would only look empty."""
    if isinstance(error, Refused) and error.status == 401:
        raise error


def _with_problems(record: PatientRecord, problems: list[SetAside]) -> PatientRecord:
    return replace(record, set_aside=(*record.set_aside, *problems))


def _nobodys(problems: list[SetAside]) -> Iterator[PatientRecord]:
    """What is said of no patient, if anything is."""
    if problems:
        yield PatientRecord(patient=PatientIdentity(resource_id="", is_stub=True), set_aside=tuple(problems))
