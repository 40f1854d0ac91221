"""The job on a server that makes an export: asked for, waited for, deleted. HL7 Bulk Data Access IG 2.0."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import tenacity

from ehr.addresses import origin_of
from ehr.calling import ServerClient
from ehr.errors import BadResource, Permanent, Refused, Retriable, SignInRefused
from ehr.fhir import export_files
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import ATTEMPTS, MAX_WAIT_S, backoff, is_busy, outcome_said, refusal_said, retry_after

NDJSON = "application/fhir+ndjson"
MAX_MANIFEST_BYTES = 64 * 2**20
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 3600.0  # between two looks at the job, however long the server asks for
MOST_RUNS = 5  # that find the job's status out of order (502, 503, 504): it is given up then
Answer = TypeVar("Answer")
Tell = Callable[[str, int, int | None], None]  # what, how many are done, of how many (None: not known)


class _Failed(Retriable):
    """The job's status was answered 5xx. `is_final`: the export has failed, as the specification has it."""

    def __init__(self, message: str, *, status: int, is_final: bool, retry_after_s: float | None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status, self.is_final = status, is_final


class JobClient(ServerClient):
    """What a BulkClient asks of the job behind its export.

    longest_s  how long to wait for the export to be made
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn,
        timeout_s: float,
        longest_s: float,
        allow_http: bool,
        transport: httpx.BaseTransport | None,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(
            base_url,
            accept="application/fhir+json",
            token=token,
            timeout_s=timeout_s,
            transport=transport,
            allow_http=allow_http,
        )
        self._longest_s, self._sleep = longest_s, sleep

    def _give_up(self, state: export_files.State) -> None:
        self._delete(state.held["job"])
        state.forget()

    def _kick_off(self, of: str, types: Sequence[str], since: datetime | None) -> str:
        params = {"_outputFormat": NDJSON, "_type": ",".join(types)}
        if since is not None:
            params["_since"] = since.astimezone(UTC).isoformat(timespec="milliseconds")
        url = str(httpx.URL(urljoin(self.base_url, f"{of}/$export".lstrip("/")), params=params))
        headers = {"Accept": "application/fhir+json", "Prefer": "respond-async"}
        answer, _ = self._again(lambda: self._ask("GET", url, headers))
        if answer.status_code != 202:
            raise Refused(
                f"$export was answered {answer.status_code} instead of 202: does this server offer Bulk "
                f"Data, and may this client export {of or 'the system'}?",
                status=answer.status_code,
            )
        job: str = urljoin(url, answer.headers.get("Content-Location", ""))
        if job == url or origin_of(job) != self._origin:
            raise Refused("$export was accepted without a Content-Location on the same server")
        return job

    def _manifest_of(self, state: export_files.State, tell: Tell) -> dict[str, Any]:
        """The manifest, once the job is done. A job that came to nothing is forgotten, unless it is we who
        are not let in (401, or no token): the next run starts another."""
        try:
            return export_files.check_manifest(self._wait_for(state.held["job"], tell))
        except _Failed as error:
            runs = state.held.get("out_of_order", 0) + 1
            if not error.is_final and runs < MOST_RUNS:
                state.keep(out_of_order=runs)
                raise
            self._give_up(state)
            raise Refused(
                f"the server could not make the export: {error}; its log says why. Run again for a "
                "new export",
                status=error.status,
            ) from error
        except Permanent as error:
            status = error.status if isinstance(error, Refused) else None
            if status == 401 or isinstance(error, SignInRefused):
                raise
            self._give_up(state)
            said = f"{error}. Run again for a new export"
            raise (
                BadResource(said) if isinstance(error, BadResource) else Refused(said, status=status)
            ) from error

    def _wait_for(self, job: str, tell: Tell) -> bytes:
        started, pause = time.monotonic(), FIRST_WAIT_S
        waited = 0.0
        while True:
            answer, body = self._again(lambda: self._ask_status(job))
            if answer.status_code == 200:
                return body
            if answer.status_code not in (202, 429):
                raise Refused(
                    f"the export's status was answered {answer.status_code} instead of 200 or 202: the "
                    "server does not keep to Bulk Data Access there",
                    status=answer.status_code,
                )
            said = re.match(r"\s*(\d{1,3})\s*%", answer.headers.get("X-Progress", ""))
            done = (int(said[1]) if said else 0, 100 if said else None)
            tell("Export is being made", *done)
            if max(waited, time.monotonic() - started) > self._longest_s:
                raise Retriable(
                    f"the export was not ready after {self._longest_s:g} s; run again to go on waiting"
                )
            asked = retry_after(answer)
            pause = min(LONGEST_WAIT_S, asked) if asked is not None else min(MAX_WAIT_S, pause * 1.5)
            waited += pause
            for nap in _naps(pause):
                self._sleep(nap)
                tell("Export is being made", *done)

    def _ask_status(self, job: str) -> tuple[httpx.Response, bytes]:
        """One look at the job. Raises _Failed on 5xx, which may be the job's fault or the server's."""
        what = "the export's status"
        answer, body = self._exchange(
            "GET", job, said=what, headers={"Accept": "application/json"}, limit=MAX_MANIFEST_BYTES
        )
        status = answer.status_code
        if status >= 500:
            said = outcome_said(body)
            is_passing = status in (502, 503, 504) or said.startswith((": transient", ": throttled"))
            raise _Failed(
                f"{what}: {status}{said}",
                status=status,
                is_final=not is_passing,
                retry_after_s=retry_after(answer),
            )
        if status >= 300 and status != 429:  # asked too often: it says when to look again, as 202 does
            self._refuse(answer, body, what)
        return answer, body

    def _ask(self, method: str, url: str, headers: Mapping[str, str]) -> tuple[httpx.Response, bytes]:
        said = f"{method} {urlsplit(url).path}"
        answer, body = self._exchange(method, url, said=said, headers=headers, limit=MAX_MANIFEST_BYTES)
        if answer.status_code >= 300:
            self._refuse(answer, body, said)
        return answer, body

    def _refuse(self, answer: httpx.Response, body: bytes, what: str) -> None:
        if is_busy(answer.status_code):
            said = f"{what}: {answer.status_code}{outcome_said(body)}"
            raise Retriable(said, retry_after_s=retry_after(answer))
        raise Refused(f"{what}: {refusal_said(answer, body)}", status=answer.status_code)

    def _again(self, call: Callable[[], Answer]) -> Answer:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Retriable),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=backoff,
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(call)

    def _delete(self, job: str) -> None:
        """Good manners, and no more: a server that will not is left alone."""
        try:
            self._again(lambda: self._ask("DELETE", job, {"Accept": "application/json"}))
        except (Permanent, Retriable):
            return


def _naps(seconds: float) -> Iterator[float]:
    """A long pause in parts of MAX_WAIT_S at most, so that whoever looks sees that the run is alive."""
    while seconds > MAX_WAIT_S:
        yield MAX_WAIT_S
        seconds -= MAX_WAIT_S
    yield seconds
