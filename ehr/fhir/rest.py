"""The RESTful interactions with one FHIR R4 server: capabilities, read, search with paging, create, delete.

What it guards (INTEROP 31, OPERATIONS "SSRF"): https outside loopback unless told otherwise, no redirects, a
`next` link only on the origin it came from, a cap on each body, a bounded number of pages, and bounded
waiting on 429 and 5xx by `Retry-After`. The bearer token goes to this origin only and is in no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import orjson
import tenacity

from ehr.addresses import origin_of
from ehr.calling import ServerClient
from ehr.errors import BadResource, Refused, Retriable, TooLarge
from ehr.fhir.elements import Json, get_list, get_object, get_text
from ehr.fhir.references import ID
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import ATTEMPTS, backoff, is_busy, outcome_said, refusal_said, retry_after

MAX_PAGE_BYTES = 5 * 2**20
MAX_PAGES = 10_000
PAGE_SIZE = 200


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a FHIR server says of itself."""

    version: str
    software: str


class _LargePage(TooLarge):
    """One page is larger than we read; fewer resources on it may not be."""


class RestClient(ServerClient):
    """Calls one FHIR R4 server. Use as a context manager, or call `close`.

    base_url        such as "https://ehr.example/fhir"; raises Refused when it is not an address we may call
    token           bearer token, "" for none; or where tokens come from (`ehr.fhir.sign_in`)
    max_page_bytes  cap on one response body, unpacked
    attempts        of a read whose server is busy or away
    within_s        for all calls together: see `ServerClient`
    allow_http      plain http outside loopback, for a network that is trusted
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn = "",
        timeout_s: float = 10,
        within_s: float | None = None,
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
            within_s=within_s,
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


def _as_resource(body: bytes, path: str) -> dict[str, Any]:
    try:
        resource = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadResource(f"GET {path}: the answer is not JSON") from error
    if not isinstance(resource, dict):
        raise BadResource(f"GET {path}: the answer is not a FHIR resource")
    return resource
