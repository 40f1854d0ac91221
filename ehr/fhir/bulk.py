"""FHIR Bulk Data Access: `$export` of a whole population into a folder of NDJSON (INTEROP 32).

Kick off, wait, fetch each file as a stream, delete the job. Where it stands is kept in the folder, so that a
run that was killed goes on with the same job and fetches no finished file again. Read `Export.folder` with
`read_fhir_folder`, then call `finish`. HL7 Bulk Data Access IG 2.0.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import orjson
import tenacity

from ehr.addresses import check_base_url, origin_of
from ehr.bodies import read_beginning, why
from ehr.calling import ServerClient
from ehr.errors import BadResource, Permanent, Refused, Retriable, SignInRefused, TooLarge
from ehr.fhir import export_files
from ehr.fhir.export_files import KINDS, PIECE
from ehr.fhir.export_texts import fetch_texts
from ehr.fhir.notes import MAX_NOTE_BYTES
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import ATTEMPTS, MAX_WAIT_S, backoff, is_busy, outcome_said, refusal_said, retry_after
from ehr.records import SetAside

NDJSON = "application/fhir+ndjson"
STATE = "export-state.json"
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_TEXT_BYTES = MAX_NOTE_BYTES * 4 // 3 + 2**16  # a Binary with a note in base64
MAX_FILE_BYTES = 64 * 2**30  # of one NDJSON file, unpacked
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 3600.0  # between two looks at the job, however long the server asks for
MOST_RUNS = 5  # that find the job's status out of order (502, 503, 504): it is given up then
TYPES = (
    "Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "MedicationStatement",
    "MedicationAdministration", "Medication", "Procedure", "AllergyIntolerance", "DiagnosticReport",
    "DocumentReference", "FamilyMemberHistory", "ImagingStudy", "Location",
)  # fmt: skip
Answer = TypeVar("Answer")
Tell = Callable[[str, int, int | None], None]  # what, how many are done, of how many (None: not known)


def _silent(what: str, done: int, total: int | None) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True)
class Export:
    """What an export brought, once every file lies in the folder.

    transaction_time  the server's clock when it took the picture: `since` of the next export
    folder            NDJSON files of resources
    problems          OperationOutcomes of `error[]`, and texts of notes that could not be read
    missing           what was promised and did not come, though it was fetched twice: `since` of the next
                      export must then be the one of this export again
    deleted           (type, id) of resources that are gone since `since`
    """

    transaction_time: datetime
    folder: Path
    problems: tuple[SetAside, ...]
    missing: tuple[SetAside, ...]
    deleted: tuple[tuple[str, str], ...]


class _Failed(Retriable):
    """The job's status was answered 5xx. `is_final`: the export has failed, as the specification has it."""

    def __init__(self, message: str, *, status: int, is_final: bool, retry_after_s: float | None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status, self.is_final = status, is_final


class _NotNdjson(Retriable):
    """A file was answered 200 with something else: a portal's page, say."""


class BulkClient(ServerClient):
    """Exports from one FHIR server. Use as a context manager, or call `close`.

    base_url    such as "https://ehr.example/fhir"; raises Refused when it is not an address we may call
    token       bearer token, or where tokens come from; it goes to the server, and to a file's host only
                where the manifest says `requiresAccessToken`
    file_hosts  other hosts the server may keep its files on, such as an object store's
    longest_s   how long to wait for the export to be made
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn = "",
        file_hosts: Sequence[str] = (),
        timeout_s: float = 30,
        longest_s: float = 24 * 3600,
        allow_http: bool = False,
        transport: httpx.BaseTransport | None = None,
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
        self._hosts, self._allow_http = frozenset(host.lower() for host in file_hosts), allow_http
        self._longest_s, self._sleep = longest_s, sleep

    def export(
        self,
        folder: Path,
        *,
        of: str = "Patient",
        types: Sequence[str] = TYPES,
        since: datetime | None = None,
        tell: Tell = _silent,
    ) -> Export:
        """Fetch an export into `folder`; go on with the one that a killed run left there.

        of     "Patient" (every patient), "Group/[id]", or "" (the whole system)
        since  only what has changed since then (`transaction_time` of the export before)
        Raises Refused (4xx, an address we may not call, a job that failed or files that have expired: it is
        then forgotten, and the next run starts a new one), SignInRefused (no token for us: nothing is
        forgotten), Retriable (busy beyond patience: run again), BadResource. A job that an earlier run left
        and that is gone meanwhile is asked for anew at once.
        """
        if of not in ("", "Patient") and not re.fullmatch(r"Group/[A-Za-z0-9.-]{1,64}", of):
            raise Refused(f"an export is of 'Patient', 'Group/[id]' or '' (the system), not {of!r}")
        folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "base": self.base_url,
            "of": of,
            "types": list(types),
            "since": since.isoformat() if since else "",
        }
        state = export_files.State(folder / STATE)
        if state.held.get("asked") != asked:
            state.begin(asked)
        was_left = "job" in state.held
        try:
            return self._carry_out(folder, state, of, types, since, tell)
        except SignInRefused:  # which says nothing of the job
            raise
        except Refused as error:
            if not was_left or error.status not in (404, 410):
                raise
        state.begin(asked)
        return self._carry_out(folder, state, of, types, since, tell)

    def _carry_out(
        self,
        folder: Path,
        state: export_files.State,
        of: str,
        types: Sequence[str],
        since: datetime | None,
        tell: Tell,
    ) -> Export:
        if "job" not in state.held:
            state.keep(job=self._kick_off(of, types, since))
        if "manifest" not in state.held:
            state.keep(manifest=self._manifest_of(state, tell))
        try:
            return self._fetch(folder, state, tell)
        except SignInRefused:  # which says nothing of the files
            raise
        except Refused as error:
            if error.status in (403, 404, 410):
                self._give_up(state)
                raise Refused(
                    f"{error}: the files of this export are no longer there; run again for a new export",
                    status=error.status,
                ) from error
            raise

    def finish(self, folder: Path) -> None:
        """The folder has been read: delete the job on the server, and the files here."""
        state = export_files.State(folder / STATE)
        if "job" in state.held:
            self._delete(state.held["job"])
        export_files.clear(folder)
        state.forget()

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

    def _fetch(self, folder: Path, state: export_files.State, tell: Tell) -> Export:
        manifest = state.held["manifest"]
        wanted = [(kind, entry) for kind in KINDS for entry in manifest[kind]]
        needs_token = bool(manifest["requiresAccessToken"])
        paths: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            (folder / kind).mkdir(exist_ok=True)
        missing: list[SetAside] = []
        for number, (kind, entry) in enumerate(wanted):
            path = export_files.path_of(folder, kind, entry, number)
            promised = entry["count"] if kind == "output" else None
            if fault := self._fetch_file(path, entry["url"], promised, needs_token):
                missing.append(SetAside(path.name, entry["type"], "", fault[:500]))
            if path.exists():
                paths[kind].append(path)
            tell("Export files", number + 1, len(wanted))
        texts = fetch_texts(
            folder, self.base_url, self._read_text, lambda done: tell("Texts of notes", done, None)
        )
        problems = chain(
            texts,
            *(export_files.read_errors(path) for path in paths["error"]),
            export_files.read_miscounted(folder, wanted),
        )
        deleted: list[tuple[str, str]] = []
        for path in paths["deleted"]:
            try:
                deleted.extend(export_files.read_deleted(path))
            except BadResource as error:
                missing.append(SetAside(path.name, "Bundle", "", f"{error}: what is gone there stays here"))
        moment = datetime.fromisoformat(manifest["transactionTime"])
        return Export(
            moment, folder / "output", export_files.listed(problems), tuple(missing), tuple(deleted)
        )

    def _fetch_file(self, path: Path, url: str, promised: Any, needs_token: bool) -> str:
        """Fetch one file unless it is here; what is wrong with it though it was fetched twice, "" if nothing.

        Fewer lines than the manifest promised are resources that never come again: they changed before
        this export's moment, and the next one asks for what changes after it.
        """
        short = path.with_suffix(".short")
        for _ in range(2):
            if not path.exists():
                try:
                    self._again(partial(self._download, url, path, needs_token))
                except _NotNdjson as error:
                    return str(error)
            found = export_files.count_lines(path) if isinstance(promised, int) else 0
            if not isinstance(promised, int) or found >= promised:
                short.unlink(missing_ok=True)
                return ""
            path.rename(short)
            fault = (
                f"the file holds {found} resources and the manifest promised {promised}, twice: the server's "
                "maker has to mend one of them"
            )
        short.rename(path)  # what there is, is taken
        return fault

    def _download(self, url: str, path: Path, needs_token: bool) -> None:
        """Stream one file to disk, whole or not at all. Compressed on the way where the server can; one that
        is kept as `.ndjson.gz` is unpacked, whatever its headers say."""
        scheme, host, _ = origin = origin_of(url)
        if origin != self._origin:
            check_base_url(url.split("?")[0], allow_http=self._allow_http)
            if host not in self._hosts:
                raise Refused(
                    f"the export keeps its files on {host}, which is not this server: allow it by "
                    "--file-host if it is theirs"
                )
        if scheme == "http" and self._origin[0] == "https":
            raise Refused(
                "the export's files are offered without encryption: have the server name them by https"
            )
        part = path.with_suffix(".part")
        headers = {"Accept": NDJSON, "Accept-Encoding": "gzip"}
        name = urlsplit(url).path.rsplit("/", 1)[-1][:80]
        auth = self._bearer if needs_token else None
        try:
            with self._http.stream("GET", url, headers=headers, auth=auth) as answer, part.open("wb") as file:
                if answer.status_code != 200:
                    self._refuse(answer, read_beginning(answer), f"file {name}")
                size = 0
                for piece in export_files.unpacked(answer.iter_bytes(PIECE)):
                    size += file.write(piece)
                    if size > MAX_FILE_BYTES:
                        raise TooLarge(
                            f"file {name} unpacks to more than {MAX_FILE_BYTES} bytes: have the server "
                            "export into more and smaller files"
                        )
                file.flush()
                os.fsync(file.fileno())
        except httpx.TransportError as error:
            raise Retriable(f"file {name}: {why(error)}") from error
        except (httpx.DecodingError, zlib.error, EOFError) as error:
            raise Retriable(f"file {name}: its compression breaks off or is damaged") from error
        if not export_files.holds_ndjson(part):
            part.unlink()
            raise _NotNdjson(
                f"file {name} was answered 200 and is not NDJSON: a proxy or portal before the server, or "
                "the server itself, gives another page there"
            )
        part.rename(path)

    def _read_text(self, identity: str) -> dict[str, Any]:
        """A Binary of this server. Raises Refused, Retriable, TooLarge or BadResource."""
        said = f"GET Binary/{identity}"

        def read() -> dict[str, Any]:
            url = urljoin(self.base_url, f"Binary/{identity}")
            answer, body = self._exchange("GET", url, said=said, limit=MAX_TEXT_BYTES)
            if answer.status_code != 200:
                self._refuse(answer, body, said)
            try:
                found = orjson.loads(body)
            except orjson.JSONDecodeError:
                found = None
            if not isinstance(found, dict) or found.get("resourceType") != "Binary":
                raise BadResource(
                    f"{said}: not answered by a Binary in JSON: have the server heed Accept "
                    "(application/fhir+json)"
                )
            return {**found, "id": identity}

        return self._again(read)

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
