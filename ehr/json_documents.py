"""One JSON document of a registered server: a key set, a SMART configuration, the answer with a token.

Guarded as OPERATIONS 8 wants: https outside loopback (whoever takes the address in sees to that), no
redirects, the address looked at again when connecting, three seconds for all of it, 256 KB, uncompressed so
that a small answer cannot become a large one. What was sent is in no message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from ehr.addresses import check_base_url
from ehr.errors import BadResource, Refused, Retriable, TooLarge
from ehr.guarded import guarded_transport, run

MAX_BODY_BYTES = 256 * 1024
TIMEOUT_S = 3.0
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


def read_key_set(
    url: str, *, timeout_s: float = TIMEOUT_S, transport: httpx.AsyncBaseTransport | None = None
) -> dict[str, Any]:
    """The JSON Web Key Set (RFC 7517) at a registered address.

    timeout_s  for all of it: looking up, connecting, reading
    raises     Refused (an address we may not call; a status that is not 200), Retriable, BadResource,
               TooLarge
    """
    check_base_url(url)
    return call_json("GET", url, timeout_s=timeout_s, transport=transport)


def call_json(
    method: str,
    url: str,
    *,
    form: Mapping[str, str] | None = None,
    basic: tuple[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    transport: httpx.AsyncBaseTransport | None = None,
) -> dict[str, Any]:
    """The JSON object that an address answers. Messages name its path only.

    basic   user and password, for whoever signs in that way
    raises  Refused, Retriable (out of reach, 429, 5xx), BadResource (no JSON object), TooLarge
    """
    return run(_called(method, url, form, basic, timeout_s, transport or guarded_transport()))


async def _called(
    method: str,
    url: str,
    form: Mapping[str, str] | None,
    basic: tuple[str, str] | None,
    timeout_s: float,
    transport: httpx.AsyncBaseTransport,
) -> dict[str, Any]:
    path = urlsplit(url).path
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(
                transport=transport,
                timeout=timeout_s,
                follow_redirects=False,
                trust_env=False,
                auth=basic,
            ) as http,
            http.stream(method, url, data=form, headers=HEADERS) as response,
        ):
            body = await _body(response, path)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise Retriable(f"{method} {path}: the server is out of reach ({type(error).__name__})") from error
    said = _object(body)
    if response.status_code >= 500 or response.status_code == 429:
        raise Retriable(f"{method} {path}: the server answered {response.status_code}")
    if response.status_code != 200:
        moved = "(redirects are not followed)" if 300 <= response.status_code < 400 else ""
        reason = said_by(said) or moved
        raise Refused(
            f"{method} {path}: the server answered {response.status_code} {reason}".rstrip(),
            status=response.status_code,
        )
    if not said:
        raise BadResource(f"{method} {path}: the answer is not a JSON object")
    return said


async def _body(response: httpx.Response, path: str) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadResource(f"{path}: the answer is compressed, which was not asked for")
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise TooLarge(f"{path}: the answer is larger than {MAX_BODY_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def said_by(answer: Mapping[str, Any]) -> str:
    """Why an authorisation server refuses (RFC 6749, 5.2): `error` and `error_description`; or ""."""
    words = (
        str(answer.get(name) or "")[:most] for name, most in (("error", 100), ("error_description", 200))
    )
    return ": ".join(filter(None, words))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
