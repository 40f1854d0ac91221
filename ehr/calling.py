"""Calling one registered server over HTTP: what every client of `ehr` has in common.

https outside loopback unless told otherwise; no redirects, so that a token stays with its host; no proxy of
the environment; certificates of the public authorities and of those this machine trusts, where a hospital
installs its own; a limit on every body, in bytes and in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import Self

import httpx

from ehr.addresses import check_base_url
from ehr.bodies import read_body, why
from ehr.errors import OutOfTime, Refused, Retriable
from ehr.fhir.sign_in import Bearer, GivenToken, SignIn
from ehr.trust import trusted

AGENT = "tessera"
BODY_BYTES = 5 * 2**20
PATIENCE = 6.0  # a whole body may take this many times as long as one read


class ServerClient:
    """One server. Use it in a `with`, or call `close`.

    token       bearer token, "" for none; or where tokens come from. `auth`: user and password instead
    timeout_s   for connecting and for each read; a whole body may take PATIENCE times as long
    within_s    for all calls together, from now; whatever is asked for later, or has not come, is OutOfTime
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
        within_s: float | None = None,
        transport: httpx.BaseTransport | None = None,
        allow_http: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._origin = check_base_url(base_url, allow_http=allow_http)
        self.base_url = base_url.rstrip("/") + "/"
        self._timeout_s, self._body_s = timeout_s, PATIENCE * timeout_s
        self._ends = monotonic() + within_s if within_s is not None else None
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

    @property
    def is_out_of_time(self) -> bool:
        """Whether all the time there was for its calls is used up."""
        return self._ends is not None and monotonic() >= self._ends

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
        raises  Retriable (nobody there, cut off, too slow), Refused (not HTTP, not decodable), TooLarge,
                OutOfTime
        """
        left = self._ends - monotonic() if self._ends is not None else self._body_s
        if left <= 0:
            raise OutOfTime(f"{said}: not asked for, the time for all of it is over")
        at_most = min(self._timeout_s, left)
        try:
            with self._http.stream(
                method, url, content=content, headers=dict(headers or {}), timeout=at_most
            ) as answer:
                body = read_body(answer, said, limit=limit, within_s=min(self._body_s, left))
        except (httpx.TransportError, Retriable) as error:
            if self.is_out_of_time:
                raise OutOfTime(f"{said}: not here when the time for all of it was over") from error
            if isinstance(error, Retriable):
                raise
            raise Retriable(f"{said}: {why(error)}") from error
        except httpx.HTTPError as error:
            raise Refused(f"{said}: {type(error).__name__}") from error
        return answer, body
