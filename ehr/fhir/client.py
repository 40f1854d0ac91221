"""A FHIR R4 server over HTTP: search with paging, read, and whole patients by typed searches.

What it guards (INTEROP 31, OPERATIONS "SSRF"): https outside loopback unless told otherwise, no redirects, a
`next` link only on the origin it came from, a cap on each body, a bounded number of pages, and bounded
waiting on 429 and 5xx by `Retry-After`. The bearer token goes to this origin only and is in no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import orjson
import tenacity

from ehr.addresses import check_base_url, origin_of
from ehr.errors import BadResource, Permanent, Refused, Retriable, TooLarge
from ehr.fhir.elements import Json, get_list, get_object, get_text
from ehr.fhir.reading import read_resources
from ehr.fhir.resources import ReadingTally
from ehr.fhir.scope import Scope, patient_of
from ehr.fhir.sign_in import Bearer, GivenToken, SignIn
from ehr.fhir.waiting import ATTEMPTS, backoff, is_busy, outcome_said, retry_after
from ehr.records import PatientIdentity, PatientRecord, SetAside

MAX_PAGE_BYTES = 5 * 2**20
MAX_PAGES = 10_000
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


class FhirClient:
    """Reads from one FHIR R4 server. Use as a context manager, or call `close`.

    base_url        such as "https://ehr.example/fhir"; raises Refused when it is not an address we may call
    token           bearer token, "" for none; or where tokens come from (`ehr.fhir.sign_in`)
    timeout_s       for connecting and for each read; a whole body may take six times as long
    max_page_bytes  cap on one response body, unpacked
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
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._origin = check_base_url(base_url, allow_http=allow_http)
        self.base_url = base_url.rstrip("/") + "/"
        self._max_page_bytes = max_page_bytes
        self._longest_s = 6 * timeout_s
        self._sleep = sleep
        self._http = httpx.Client(
            headers={"Accept": "application/fhir+json"},
            auth=Bearer(GivenToken(token) if isinstance(token, str) else token),
            timeout=timeout_s,
            transport=transport,
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> FhirClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def read(self, resource_type: str, resource_id: str) -> dict[str, Any]:
        """The resource `type/id`. Raises Refused (4xx), Retriable, TooLarge or BadResource."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", resource_id):
            raise BadResource(f"not a FHIR id to read a {resource_type} by")
        resource = self._get(urljoin(self.base_url, f"{resource_type}/{resource_id}"))
        if resource.get("resourceType") != resource_type:
            raise BadResource(f"GET {resource_type}/[id] answered another type of resource")
        return resource

    def search(
        self, resource_type: str, params: Mapping[str, str | Sequence[str]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The matches of a search and what it includes, page after page.

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
                if resource is not None and resource.get("resourceType") != "OperationOutcome":
                    yield dict(resource)
            url = self._next_page(bundle, url)
            if url in seen:
                raise BadResource(f"the pages of a search of {resource_type} go round in circles")

    def patients(
        self, since: datetime | None = None, *, tally: ReadingTally | None = None
    ) -> Iterator[PatientRecord]:
        """Each patient with all that Tessera reads of them, by typed searches (`$everything` is not assumed).

        since  only patients of whom anything has changed since then (`_lastUpdated`); the whole patient comes

        A type that the server cannot be searched for is said in the record's `set_aside`; the rest goes on.
        """
        if since is None:
            for patient in self.search("Patient", {"_count": str(PAGE_SIZE)}):
                if patient.get("resourceType") == "Patient":
                    yield from self._pull(patient, tally)
            return
        for identity in self._changed_since(since):
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
                resources.extend(self._typed(resource_type, identity, extra))
            except Permanent as error:
                _check_authorised(error)
                problems.append(SetAside(self.base_url[:500], resource_type, "", str(error)[:500]))
        for record in read_resources(resources, tally=tally):
            if record.patient.resource_id == identity and problems:
                yield _with_problems(record, problems)
            else:
                yield record

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
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=backoff,
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(self._get_once, url)

    def _get_once(self, url: str) -> dict[str, Any]:
        path = urlsplit(url).path
        try:
            with self._http.stream("GET", url) as response:
                body = self._read_body(response, path)
        except httpx.TransportError as error:
            raise Retriable(f"GET {path}: {type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise Refused(f"GET {path}: {type(error).__name__}") from error
        status = response.status_code
        if status == 200:
            return _as_resource(body, path)
        said = outcome_said(body)
        if is_busy(status):
            raise Retriable(f"GET {path}: {status}{said}", retry_after_s=retry_after(response))
        said = " (redirects are not followed)" if 300 <= status < 400 else said
        raise Refused(f"GET {path}: {status}{said}", status=status)

    def _read_body(self, response: httpx.Response, path: str) -> bytes:
        pieces, size, started = [], 0, time.monotonic()
        for piece in response.iter_bytes():
            size += len(piece)
            if time.monotonic() - started > self._longest_s:
                raise Retriable(f"GET {path}: the body took longer than {self._longest_s:g} s")
            if size > self._max_page_bytes:
                raise TooLarge(f"GET {path}: the body is larger than {self._max_page_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)


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
