"""What an EHR did not send ahead, read from its FHIR server within the time of one call.

All keys are asked for at once; whatever has not come when the time is up is told as such, and what has come
is used. Guarded as OPERATIONS 8 wants: the caller names a registered server; https outside loopback, no
redirects, the address looked at again at the moment of connecting, a `next` page only under the server's own
base address, a cap on each body. The token goes into one header and is in no message. Connections are kept
for the next calls, so that only the first spends its time on shaking hands; cookies of a server are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import orjson

from ehr.addresses import check_base_url, origin_of
from ehr.errors import BadResource, EhrError, Permanent, Refused, Retriable, TooLarge
from ehr.fhir.elements import Json, get_list, get_text
from ehr.fhir.prefetch import is_failure
from ehr.guarded import Kept, run

MAX_BODY_BYTES = 5 * 2**20
MAX_TOTAL_BYTES = 20 * 2**20  # of all bodies of one call
MAX_PAGES = 20  # of one key
LONGEST_S = 3.0
NOT_IN_TIME = "the FHIR server did not answer in time"
_kept = Kept()


@dataclass(frozen=True, slots=True)
class Completed:
    """What was read, and why the rest was not, by prefetch key.

    resources  key → resource, or Bundle with all its pages in one
    failed     key → why, without the server's words about a patient
    """

    resources: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def complete_prefetch(
    queries: Mapping[str, str],
    begun: Mapping[str, Json] | None = None,
    *,
    base_url: str,
    token: str = "",
    within_s: float = LONGEST_S,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Completed:
    """Read `queries` from a FHIR server.

    queries   key → resolved template, such as "Observation?patient=p1&code=…"
    begun     key → Bundle whose first pages were sent: read on from its `next` link
    within_s  for all of it together; three seconds at the very most
    raises    Refused when the server's address is not one we may call
    """
    check_base_url(base_url)

    async def complete(connections: httpx.AsyncBaseTransport) -> Completed:
        within = min(within_s, LONGEST_S)
        return await _complete(dict(queries), dict(begun or {}), base_url, token, within, connections)

    return _kept.run(complete) if transport is None else run(complete(transport))


async def _complete(
    queries: dict[str, str],
    begun: dict[str, Json],
    base_url: str,
    token: str,
    within_s: float,
    transport: httpx.AsyncBaseTransport,
) -> Completed:
    base = base_url.rstrip("/") + "/"
    headers = {"Accept": "application/fhir+json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    resources: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    # of this call alone, with its token and cookies; not closed, for that would close the connections
    http = httpx.AsyncClient(
        headers=headers, timeout=within_s, transport=transport, follow_redirects=False, trust_env=False
    )
    server = _Server(http, base)

    async def fetch(key: str) -> None:
        try:
            resources[key] = await server.read(queries[key], begun.get(key))
        except EhrError as error:
            failed[key] = str(error)

    tasks = {key: asyncio.ensure_future(fetch(key)) for key in queries}
    _, late = await asyncio.wait(tasks.values(), timeout=within_s) if tasks else (set(), set())
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for key, task in tasks.items():
        if task in late:
            failed[key] = NOT_IN_TIME
        elif (fault := task.exception()) is not None:
            raise fault
    return Completed(resources, failed)


class _Server:
    """One server for the length of one call; counts what came from it."""

    def __init__(self, http: httpx.AsyncClient, base: str) -> None:
        self._http, self._base, self._bytes = http, base, 0

    async def read(self, query: str, begun: Json | None) -> dict[str, Any]:
        """A resource, or a Bundle with all its pages in one."""
        if begun is None:
            url = urljoin(self._base, query)
            found = await self._get(url)
        else:
            url, found = self._base, dict(begun)
        if found.get("resourceType") != "Bundle":
            return found
        entries, seen = list(get_list(found, "entry", "Bundle")), {url}
        while link := _next_of(found):
            url = self._checked(_joined(url, link))
            if url in seen or len(seen) >= MAX_PAGES:
                raise TooLarge(f"a search has more than {MAX_PAGES} pages, or they go round in circles")
            seen.add(url)
            found = await self._get(url)
            if found.get("resourceType") != "Bundle":
                raise BadResource("a page of a search was not a Bundle")
            entries += get_list(found, "entry", "Bundle")
        whole = {"resourceType": "Bundle", "type": "searchset", "entry": entries}
        if is_failure(whole):
            raise Permanent("the FHIR server answered a search with nothing but an OperationOutcome")
        return whole

    def _checked(self, url: str) -> str:
        """A `next` link, when it stays on the server and under its base (HAPI pages at the base itself)."""
        under = urlsplit(url).path + "/"
        if origin_of(url) != origin_of(self._base) or not under.startswith(urlsplit(self._base).path):
            raise Refused(
                "the next page of a search lies outside the server and is not followed: have it, or the "
                "proxy before it, give links by the address in fhirServer"
            )
        if "@" in urlsplit(url).netloc or "/../" in under or "%2e" in under.lower():
            raise Refused("the next page of a search is not a plain address; not followed")
        return url

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            try:
                response, body = await self._read(url)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                response, body = await self._read(url)  # a kept connection that the server was just closing
        except httpx.TimeoutException as error:
            raise Retriable(NOT_IN_TIME) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Retriable(f"the FHIR server is out of reach ({type(error).__name__})") from error
        if response.status_code != 200:
            said = " (redirects are not followed)" if 300 <= response.status_code < 400 else ""
            raise Refused(f"the FHIR server answered {response.status_code}{said}")
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BadResource("the FHIR server's answer is not JSON") from None
        if not isinstance(found, dict) or not isinstance(found.get("resourceType"), str):
            raise BadResource("the FHIR server's answer is not a FHIR resource")
        if found["resourceType"] == "OperationOutcome":
            raise Permanent("the FHIR server answered with an OperationOutcome")
        return found

    async def _read(self, url: str) -> tuple[httpx.Response, bytes]:
        async with self._http.stream("GET", url) as response:
            return response, await self._body(response)

    async def _body(self, response: httpx.Response) -> bytes:
        pieces, size = [], 0
        async for piece in response.aiter_bytes():
            size += len(piece)
            self._bytes += len(piece)
            if size > MAX_BODY_BYTES or self._bytes > MAX_TOTAL_BYTES:
                raise TooLarge(
                    f"the FHIR server's answer is larger than {MAX_BODY_BYTES} bytes: have the EHR prefetch "
                    "it"
                )
            pieces.append(piece)
        return b"".join(pieces)


def _next_of(bundle: Json) -> str:
    for link in get_list(bundle, "link", "Bundle"):
        if get_text(link, "relation", "Bundle.link") == "next":
            return get_text(link, "url", "Bundle.link")
    return ""


def _joined(url: str, link: str) -> str:
    try:
        return urljoin(url, link)
    except ValueError:
        raise Refused("the next page of a search is not a plain address; not followed") from None
