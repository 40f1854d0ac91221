"""Calling one registered server over HTTP: what every client of `ehr` has in common.

https outside loopback unless told otherwise; no redirects, so that a token stays with its host; no proxy of
the environment; certificates of the public authorities and of those this machine trusts, where a hospital
installs its own; a limit on every body, in bytes and in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

import httpx

from ehr.addresses import check_base_url
from ehr.bodies import read_body, why
from ehr.errors import Refused, Retriable
from ehr.fhir.sign_in import Bearer, GivenToken, SignIn
from ehr.trust import trusted

AGENT = "tessera"
BODY_BYTES = 5 * 2**20
PATIENCE = 6.0  # a whole body may take this many times as long as one read


class ServerClient:
    """One server. Use it in a `with`, or call `close`.

    token       bearer token, "" for none; or where tokens come from. `auth`: user and password instead
    timeout_s   for connecting and for each read; a whole body may take PATIENCE times as long
    allow_http  plain http outside loopback, for a network that is trusted
    raises      Refused when `base_url` is not an address we may call
    """

    def __init__(
        self,
        base_url: str,
        *,
        accept: str,
        token: str | SignIn = "",
        auth: tuple[str, str] | None = None,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
        allow_http: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._origin = check_base_url(base_url, allow_http=allow_http)
        self.base_url = base_url.rstrip("/") + "/"
        self._body_s = PATIENCE * timeout_s
        self._bearer = Bearer(GivenToken(token) if isinstance(token, str) else token)
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Accept": accept, "User-Agent": AGENT, **(headers or {})},
            auth=httpx.BasicAuth(*auth) if auth else self._bearer,
            timeout=timeout_s,
            transport=transport,
            verify=trusted(),
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _exchange(
        self,
        method: str,
        url: str,
        *,
        said: str,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = BODY_BYTES,
    ) -> tuple[httpx.Response, bytes]:
        """One request and the whole body of its answer, whatever its status.

        said    what is asked, for messages: "GET /fhir/metadata"
        raises  Retriable (nobody there, cut off, too slow), Refused (not HTTP, not decodable), TooLarge
        """
        try:
            with self._http.stream(method, url, content=content, headers=dict(headers or {})) as answer:
                body = read_body(answer, said, limit=limit, within_s=self._body_s)
        except httpx.TransportError as error:
            raise Retriable(f"{said}: {why(error)}") from error
        except httpx.HTTPError as error:
            raise Refused(f"{said}: {type(error).__name__}") from error
        return answer, body
