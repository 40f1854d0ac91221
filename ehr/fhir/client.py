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
from ehr.fhir.resources import ReadingTally
from ehr.fhir.scope import Scope, patient_of
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import ATTEMPTS, backoff, is_busy, outcome_said, retry_after
from ehr.records import PatientIdentity, PatientRecord, SetAside

_ID = r"[A-Za-z0-9._-]{1,128}"
MAX_PAGE_BYTES = 5 * 2**20
MAX_PAGES = 10_000
MAX_BINARIES = 500  # texts fetched one by one for one patient
PAGE_SIZE = 200
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
        bundle = self._get(str(httpx.URL(urljoin(self.base_url, resource_type), params={"_count": "1"})))
        if bundle.get("resourceType") != "Bundle":
            raise BadResource(f"a search of {resource_type} was not answered by a Bundle")

    def read(self, resource_type: str, resource_id: str) -> dict[str, Any]:
        """The resource `type/id`. Raises Refused (4xx), Retriable, TooLarge or BadResource."""
        if not re.fullmatch(_ID, resource_id):
            raise BadResource(f"not a FHIR id to read a {resource_type} by")
        resource = self._get(urljoin(self.base_url, f"{resource_type}/{resource_id}"))
        if resource.get("resourceType") != resource_type:
            raise BadResource(f"GET {resource_type}/[id] answered another type of resource")
        return resource

    def search(
        self, resource_type: str, params: Mapping[str, str | Sequence[str]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The matches of a search, what it includes, and OperationOutcomes about it, page after page.

        Raises Refused (4xx with the server's OperationOutcome; a `next` link to another origin), Retriable,
        TooLarge (a page over the cap; more than MAX_PAGES) and BadResource (not a searchset).
        """
        url = str(httpx.URL(urljoin(self.base_url, resource_type), params=dict(params or {})))
        seen: set[str] = set()
        while url:
            if len(seen) >= MAX_PAGES:
                raise TooLarge(f"a search of {resource_type} has more than {MAX_PAGES} pages")
            seen.add(url)
            bundle = self._get(url)
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
        """
        if since is None:
            for patient in self.search("Patient", {"_count": str(PAGE_SIZE)}):
                if patient.get("resourceType") == "Patient" and patient.get("id") not in done:
                    yield from self._pull(patient, tally)
            return
        changed = (identity for identity in self._changed_since(since) if identity not in done)
        yield from self.whole_patients(changed, tally=tally)

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
        if not isinstance(identity, str) or not re.fullmatch(_ID, identity):
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
        said = f"{method} {path}: {response.status_code}{outcome_said(body)}"
        if is_busy(response.status_code):
            raise Retriable(said, retry_after_s=retry_after(response))
        raise Refused(said, status=response.status_code)

    def _changed_since(self, since: datetime) -> list[str]:
        params = {
            "_lastUpdated": f"ge{since.astimezone(UTC).isoformat(timespec='seconds')}",
            "_count": str(PAGE_SIZE),
        }
        found: dict[str, None] = {}
        for resource_type in ("Patient", *SEARCHES):
            try:
                for resource in self.search(resource_type, params):
                    if resource.get("resourceType") == resource_type:
                        try:
                            is_patient = resource_type == "Patient"
                            identity = (
                                str(resource.get("id")) if is_patient else patient_of(resource, Scope())
                            )
                        except BadResource:
                            continue  # nobody's: the whole patient could not be pulled anyway
                        found[identity] = None
            except Permanent as error:  # a type this server cannot be searched for; the others still tell
                _check_authorised(error)
                if resource_type == "Patient":
                    raise
        return list(found)

    def _pull(self, patient: Json, tally: ReadingTally | None) -> Iterator[PatientRecord]:
        identity = str(patient.get("id") or "")
        resources: list[tuple[str, Json]] = [(f"Patient/{identity}", patient)]
        problems: list[SetAside] = []
        for resource_type, extra in SEARCHES.items():
            try:
                found = self._typed(resource_type, identity, extra)
            except Permanent as error:
                _check_authorised(error)
                problems.append(SetAside(self.base_url[:500], resource_type, "", str(error)[:500]))
                continue
            for where, resource in found:
                if resource.get("resourceType") == "OperationOutcome":
                    problems.extend(self._warnings(resource_type, resource))
                else:
                    resources.append((where, resource))
        resources.extend(self._texts(resources, problems))
        for record in read_resources(resources, tally=tally):
            if record.patient.resource_id not in (identity, ""):
                continue  # a server that passes over `patient` answers with everybody's; they have their turn
            if record.patient.resource_id == identity and problems:
                yield _with_problems(record, problems)
            else:
                yield record

    def _warnings(self, resource_type: str, outcome: Json) -> list[SetAside]:
        """What a search was answered beside its matches: that it is incomplete, say (FHIR R4 §3.1.1.1)."""
        severities = {str(issue.get("severity")) for issue in get_list(outcome, "issue", "OperationOutcome")}
        if not severities & {"fatal", "error", "warning"}:
            return []
        said = f"the server says of this search: {outcome_text(outcome)}"
        return [SetAside(self.base_url[:500], resource_type, "", said[:500])]

    def _texts(self, resources: list[tuple[str, Json]], problems: list[SetAside]) -> list[tuple[str, Json]]:
        """The Binaries of this server in which notes and reports keep their text."""
        wanted: dict[str, None] = {}
        for _, resource in resources:
            wanted |= dict.fromkeys(_binaries_of(resource))
        found: list[tuple[str, Json]] = []
        for url in list(wanted)[:MAX_BINARIES]:
            match = re.fullmatch(rf"(?:{re.escape(self.base_url)})?Binary/({_ID})", url)
            if match is None:
                continue  # elsewhere: whoever reads the resource says so
            try:
                found.append((f"Binary/{match[1]}", self.read("Binary", match[1])))
            except Permanent as error:
                _check_authorised(error)
                problems.append(SetAside(self.base_url[:500], "Binary", match[1], str(error)[:500]))
        return found

    def _typed(self, resource_type: str, patient: str, extra: Mapping[str, str]) -> list[tuple[str, Json]]:
        params = {"patient": patient, "_count": str(PAGE_SIZE)}
        try:
            found = list(self.search(resource_type, {**params, **extra}))
        except Refused as error:
            _check_authorised(error)
            if not extra:
                raise
            found = list(self.search(resource_type, params))  # a server that does not know this _include
        return [(f"{resource.get('resourceType')}/{resource.get('id')}", resource) for resource in found]

    def _next_page(self, bundle: Json, current: str) -> str:
        for link in get_list(bundle, "link", "Bundle"):
            if get_text(link, "relation", "Bundle.link") == "next":
                url = urljoin(current, get_text(link, "url", "Bundle.link"))
                if origin_of(url) != self._origin:
                    raise Refused(
                        "the next page of a search lies on another origin than the server; not followed"
                    )
                return url
        return ""

    def _get(self, url: str) -> dict[str, Any]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Retriable),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=backoff,
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(self._get_once, url)

    def _get_once(self, url: str) -> dict[str, Any]:
        path = urlsplit(url).path
        response, body = self._exchange("GET", url, said=f"GET {path}", limit=self._max_page_bytes)
        status = response.status_code
        if status == 200:
            return _as_resource(body, path)
        said = outcome_said(body)
        if is_busy(status):
            raise Retriable(f"GET {path}: {status}{said}", retry_after_s=retry_after(response))
        said = " (redirects are not followed)" if 300 <= status < 400 else said
        raise Refused(f"GET {path}: {status}{said}", status=status)


def _binaries_of(resource: Json) -> list[str]:
    """Addresses of the attachments of a note or report that are text and do not carry it themselves."""
    attachments: list[Any] = []
    try:
        if resource.get("resourceType") == "DocumentReference":
            contents = get_list(resource, "content", "DocumentReference")
            attachments = [content.get("attachment") for content in contents]
        elif resource.get("resourceType") == "DiagnosticReport":
            attachments = list(get_list(resource, "presentedForm", "DiagnosticReport"))
    except BadResource:
        return []  # its reader says what is wrong
    return [
        str(one["url"])
        for one in attachments
        if isinstance(one, Mapping)
        and one.get("url")
        and not one.get("data")
        and str(one.get("contentType", "text")).startswith(("text", "application/xhtml"))
    ]


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
