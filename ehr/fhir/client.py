"""A FHIR R4 server over HTTP: search with paging, read, and whole patients by typed searches.

What it guards (INTEROP 31, OPERATIONS "SSRF"): https outside loopback unless told otherwise, no redirects, a
`next` link only on the origin it came from, a cap on each body, a bounded number of pages, and bounded
waiting on 429 and 5xx by `Retry-After`. The bearer token goes to this origin only and is in no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import orjson
import tenacity

from ehr.addresses import origin_of
from ehr.calling import ServerClient
from ehr.errors import BadResource, Permanent, Refused, Retriable, TooLarge
from ehr.fhir.elements import Json, get_list, get_object, get_text
from ehr.fhir.prefetch import outcome_text
from ehr.fhir.reading import read_resources
from ehr.fhir.references import ID, name_here, pointed_to, texts_of
from ehr.fhir.resources import ReadingTally
from ehr.fhir.scope import Scope, patient_of
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import ATTEMPTS, backoff, is_busy, outcome_said, refusal_said, retry_after
from ehr.records import PatientIdentity, PatientRecord, SetAside

MAX_PAGE_BYTES = 5 * 2**20
MAX_PAGES = 10_000
MAX_READ = 500  # of one patient: texts, and as many others that are pointed to, read one by one
MAX_KNOWN = 2000  # drugs, places and endpoints at hand: patients share them
PAGE_SIZE = 200
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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a FHIR server says of itself."""

    version: str
    software: str


class _LargePage(TooLarge):
    """One page is larger than we read; fewer resources on it may not be."""


def listened_types() -> tuple[str, ...]:
    """The resource types whose changes matter to a patient's record."""
    return ("Patient", *SEARCHES)


class FhirClient(ServerClient):
    """Reads from one FHIR R4 server. Use as a context manager, or call `close`.

    base_url        such as "https://ehr.example/fhir"; raises Refused when it is not an address we may call
    token           bearer token, "" for none; or where tokens come from (`ehr.fhir.sign_in`)
    max_page_bytes  cap on one response body, unpacked
    attempts        of a read whose server is busy or away
    allow_http      plain http outside loopback, for a network that is trusted
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn = "",
        timeout_s: float = 10,
        transport: httpx.BaseTransport | None = None,
        max_page_bytes: int = MAX_PAGE_BYTES,
        allow_http: bool = False,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(
            base_url,
            accept="application/fhir+json",
            token=token,
            timeout_s=timeout_s,
            transport=transport,
            allow_http=allow_http,
        )
        self._max_page_bytes, self._attempts, self._sleep = max_page_bytes, attempts, sleep
        self._known: dict[str, Json | Permanent] = {}

    def capabilities(self) -> Capabilities:
        """What the server says it is (`metadata`). Raises Refused, Retriable, TooLarge or BadResource."""
        statement = self._get(urljoin(self.base_url, "metadata"))
        if statement.get("resourceType") != "CapabilityStatement":
            raise BadResource(
                "GET metadata was not answered by a CapabilityStatement: is this a FHIR server?"
            )
        software = get_object(statement, "software", "CapabilityStatement") or {}
        return Capabilities(
            get_text(statement, "fhirVersion", "CapabilityStatement")[:20] or "of an unknown version",
            get_text(software, "name", "CapabilityStatement.software")[:100] or "software not named",
        )

    def ask(self, resource_type: str) -> None:
        """Ask for one resource of a type, to see that we may. Raises what `search` raises."""
        url = str(httpx.URL(urljoin(self.base_url, resource_type), params={"_count": "1"}))
        bundle = self._get(url, resource_type)
        if bundle.get("resourceType") != "Bundle":
            raise BadResource(f"a search of {resource_type} was not answered by a Bundle")

    def read(self, resource_type: str, resource_id: str) -> dict[str, Any]:
        """The resource `type/id`. Raises Refused (4xx), Retriable, TooLarge or BadResource."""
        if not re.fullmatch(ID, resource_id):
            raise BadResource(f"not a FHIR id to read a {resource_type} by")
        resource = self._get(urljoin(self.base_url, f"{resource_type}/{resource_id}"))
        if resource.get("resourceType") != resource_type:
            raise BadResource(f"GET {resource_type}/[id] answered another type of resource")
        return resource

    def search(
        self, resource_type: str, params: Mapping[str, str | Sequence[str]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The matches of a search, what it includes, and OperationOutcomes about it, page after page.

        A page over the cap: the search begins anew with half as many to a page, and what has been given is
        passed over. Raises Refused (4xx with the server's OperationOutcome; a `next` link to another origin),
        Retriable, TooLarge (one resource over the cap; more than MAX_PAGES), BadResource (not a searchset).
        """
        asked, given = dict(params or {}), set[tuple[str, str]]()
        count = PAGE_SIZE
        while True:
            try:
                for resource in self._pages(resource_type, asked):
                    key = str(resource.get("resourceType")), str(resource.get("id"))
                    if key not in given or "id" not in resource:
                        given.add(key)
                        yield resource
                return
            except _LargePage as error:
                count = int(str(asked.get("_count", count))) // 2
                if not count:
                    raise TooLarge(
                        f"a search of {resource_type}: one resource, with what it includes, is larger than "
                        f"{self._max_page_bytes} bytes; have the server keep attachments and pictures in "
                        "Binaries"
                    ) from error
                asked["_count"] = str(count)

    def _pages(
        self, resource_type: str, params: Mapping[str, str | Sequence[str]]
    ) -> Iterator[dict[str, Any]]:
        url = str(httpx.URL(urljoin(self.base_url, resource_type), params=dict(params)))
        seen: set[str] = set()
        while url:
            if len(seen) >= MAX_PAGES:
                raise TooLarge(f"a search of {resource_type} has more than {MAX_PAGES} pages")
            seen.add(url)
            try:
                bundle = self._get(url, resource_type)
            except TooLarge as error:
                raise _LargePage(str(error)) from error
            if bundle.get("resourceType") != "Bundle":
                raise BadResource(f"a search of {resource_type} was not answered by a Bundle")
            for entry in get_list(bundle, "entry", "Bundle"):
                resource = get_object(entry, "resource", "Bundle.entry")
                if resource is not None:
                    yield dict(resource)
            url = self._next_page(bundle, url)
            if url in seen:
                raise BadResource(f"the pages of a search of {resource_type} go round in circles")

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

    def create(self, resource: Mapping[str, Any]) -> str:
        """Create a resource; the id the server gave it. One attempt: a second might make a second one.

        Raises Refused (4xx with the server's words), Retriable, BadResource (no id was given).
        """
        kind = str(resource["resourceType"])
        location, made = self._send("POST", kind, resource)
        identity = made.get("id") or (re.search(rf"{kind}/([^/]+)", location) or ["", ""])[1]
        if not isinstance(identity, str) or not re.fullmatch(ID, identity):
            raise BadResource(f"POST {kind}: the server gave the {kind} no id")
        return identity

    def delete(self, resource_type: str, resource_id: str) -> None:
        """Delete a resource; one that is gone already is fine. Raises Refused, Retriable."""
        try:
            self._send("DELETE", f"{resource_type}/{resource_id}", None)
        except Refused as error:
            if error.status not in (404, 410):
                raise

    def _send(self, method: str, path: str, resource: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
        """(Location, body) of a write; the body {} when there is none."""
        headers = {"Content-Type": "application/fhir+json", "Prefer": "return=representation"}
        content = orjson.dumps(resource) if resource is not None else None
        url = urljoin(self.base_url, path)
        response, body = self._exchange(
            method, url, said=f"{method} {path}", content=content, headers=headers, limit=self._max_page_bytes
        )
        if 200 <= response.status_code < 300:
            location = response.headers.get("Location", "")
            return location, _as_resource(body, path) if body.strip() and resource is not None else {}
        if is_busy(response.status_code):
            said = f"{method} {path}: {response.status_code}{outcome_said(body)}"
            raise Retriable(said, retry_after_s=retry_after(response))
        raise Refused(f"{method} {path}: {refusal_said(response, body)}", status=response.status_code)

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
            for resource in self._typed(resource_type, identity, extra, problems):
                if resource.get("resourceType") == "OperationOutcome":
                    problems.extend(self._warnings(resource_type, resource))
                else:
                    resources.append((f"{resource.get('resourceType')}/{resource.get('id')}", resource))
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

    def _next_page(self, bundle: Json, current: str) -> str:
        for link in get_list(bundle, "link", "Bundle"):
            if get_text(link, "relation", "Bundle.link") == "next":
                url = urljoin(current, get_text(link, "url", "Bundle.link"))
                if origin_of(url) != self._origin:
                    raise Refused(
                        "the next page of a search lies on another origin than the server "
                        f"({'://'.join(urlsplit(url)[:2])[:100]}) and is not followed: call the server by "
                        "that address, or have it, or the proxy before it, give links by the one we call"
                    )
                return url
        return ""

    def _get(self, url: str, kind: str = "") -> dict[str, Any]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Retriable),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=backoff,
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(self._get_once, url, kind)

    def _get_once(self, url: str, kind: str) -> dict[str, Any]:
        path = urlsplit(url).path
        response, body = self._exchange("GET", url, said=f"GET {path}", limit=self._max_page_bytes)
        status = response.status_code
        if status == 200:
            return _as_resource(body, path)
        if is_busy(status):
            said = f"GET {path}: {status}{outcome_said(body)}"
            raise Retriable(said, retry_after_s=retry_after(response))
        raise Refused(f"GET {path}: {refusal_said(response, body, kind)}", status=status)


def _check_authorised(error: Permanent) -> None:
    """Raise `error` again when the token is no longer good: what follows would only look empty."""
    if isinstance(error, Refused) and error.status == 401:
        raise error


def _as_resource(body: bytes, path: str) -> dict[str, Any]:
    try:
        resource = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadResource(f"GET {path}: the answer is not JSON") from error
    if not isinstance(resource, dict):
        raise BadResource(f"GET {path}: the answer is not a FHIR resource")
    return resource


def _with_problems(record: PatientRecord, problems: list[SetAside]) -> PatientRecord:
    return replace(record, set_aside=(*record.set_aside, *problems))


def _nobodys(problems: list[SetAside]) -> Iterator[PatientRecord]:
    """What is said of no patient, if anything is."""
    if problems:
        yield PatientRecord(patient=PatientIdentity(resource_id="", is_stub=True), set_aside=tuple(problems))
