"""FHIR Bulk Data Access: `$export` of a whole population into a folder of NDJSON (INTEROP 32).

Kick off, wait, fetch each file as a stream, delete the job. Where it stands is kept in the folder, so that a
run that was killed goes on with the same job and fetches no finished file again. Read `Export.folder` with
`read_fhir_folder`, then call `finish`. HL7 Bulk Data Access IG 2.0.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import orjson
import tenacity

from ehr.addresses import check_base_url, origin_of
from ehr.calling import ServerClient
from ehr.errors import BadResource, Permanent, Refused, Retriable, TooLarge
from ehr.fhir.prefetch import outcome_text
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import ATTEMPTS, MAX_WAIT_S, backoff, is_busy, outcome_said, retry_after
from ehr.records import SetAside

NDJSON = "application/fhir+ndjson"
STATE = "export-state.json"
PIECE = 2**20
MAX_FILES = 100_000
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_FILE_BYTES = 64 * 2**30  # of one NDJSON file, unpacked
MAX_LINE_BYTES = 16 * 2**20
FIRST_WAIT_S = 1.0
TYPES = (
    "Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "MedicationStatement",
    "MedicationAdministration", "Medication", "Procedure", "AllergyIntolerance", "DiagnosticReport",
    "DocumentReference", "FamilyMemberHistory", "ImagingStudy", "Location",
)  # fmt: skip
KINDS = ("output", "error", "deleted")  # of files, each in a folder of its own
Answer = TypeVar("Answer")
Tell = Callable[[str, int, int | None], None]  # what, how many are done, of how many (None: not known)


def _silent(what: str, done: int, total: int | None) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True)
class Export:
    """What an export brought, once every file lies in the folder.

    transaction_time  the server's clock when it took the picture: `since` of the next export
    folder            NDJSON files of resources
    problems          OperationOutcomes of `error[]`, and files that held fewer lines than promised
    deleted           (type, id) of resources that are gone since `since`
    """

    transaction_time: datetime
    folder: Path
    problems: tuple[SetAside, ...]
    deleted: tuple[tuple[str, str], ...]


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
        Raises Refused (4xx, an address we may not call, files that have expired: the job is then forgotten,
        and the next run starts a new one), Retriable (busy beyond patience: run again), BadResource.
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
        state = _State(folder / STATE)
        if state.held.get("asked") != asked:
            state.begin(asked)
        if "job" not in state.held:
            state.keep(job=self._kick_off(of, types, since))
        if "manifest" not in state.held:
            state.keep(manifest=self._wait_for(state.held["job"], tell))
        try:
            return self._fetch(folder, state, tell)
        except Refused as error:
            if error.status in (403, 404, 410):
                self._delete(state.held["job"])
                state.forget()
                raise Refused(
                    f"{error}: the files of this export are no longer there; run again for a new export",
                    status=error.status,
                ) from error
            raise

    def finish(self, folder: Path) -> None:
        """The folder has been read: delete the job on the server, and the files here."""
        state = _State(folder / STATE)
        if "job" in state.held:
            self._delete(state.held["job"])
        _clear(folder)
        state.forget()

    def _kick_off(self, of: str, types: Sequence[str], since: datetime | None) -> str:
        params = {"_outputFormat": NDJSON, "_type": ",".join(types)}
        if since is not None:
            params["_since"] = since.astimezone(UTC).isoformat(timespec="milliseconds")
        url = str(httpx.URL(urljoin(self.base_url, f"{of}/$export".lstrip("/")), params=params))
        headers = {"Accept": "application/fhir+json", "Prefer": "respond-async"}
        answer = self._again(lambda: self._ask("GET", url, headers))
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

    def _wait_for(self, job: str, tell: Tell) -> dict[str, Any]:
        started, pause = time.monotonic(), FIRST_WAIT_S
        waited = 0.0
        while True:
            answer = self._again(lambda: self._ask("GET", job, {"Accept": "application/json"}))
            if answer.status_code == 200:
                return _checked_manifest(answer.content)
            if answer.status_code != 202:
                raise Refused(
                    f"the export's status was answered {answer.status_code}", status=answer.status_code
                )
            said = re.match(r"\s*(\d{1,3})\s*%", answer.headers.get("X-Progress", ""))
            tell("Export is being made", int(said[1]) if said else 0, 100 if said else None)
            if max(waited, time.monotonic() - started) > self._longest_s:
                raise Retriable(
                    f"the export was not ready after {self._longest_s:g} s; run again to go on waiting"
                )
            asked = retry_after(answer)
            pause = min(MAX_WAIT_S, asked if asked is not None else pause * 1.5)
            waited += pause
            self._sleep(pause)

    def _fetch(self, folder: Path, state: _State, tell: Tell) -> Export:
        manifest = state.held["manifest"]
        wanted = [(kind, entry) for kind in KINDS for entry in manifest[kind]]
        needs_token = bool(manifest["requiresAccessToken"])
        paths: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            (folder / kind).mkdir(exist_ok=True)
        problems: list[SetAside] = []
        for number, (kind, entry) in enumerate(wanted):
            path = folder / kind / f"{entry['type']}-{number:05}.ndjson"
            if not path.exists():
                self._again(partial(self._download, entry["url"], path, needs_token))
            paths[kind].append(path)
            promised = entry.get("count")
            if isinstance(promised, int) and (found := _lines(path)) != promised:
                reason = f"the file holds {found} resources and the manifest promised {promised}"
                problems.append(SetAside(path.name, entry["type"], "", reason))
            tell("Export files", number + 1, len(wanted))
        for path in paths["error"]:
            problems.extend(_errors(path))
        deleted = [gone for path in paths["deleted"] for gone in _deleted(path)]
        moment = datetime.fromisoformat(manifest["transactionTime"])
        return Export(moment, folder / "output", tuple(problems), tuple(deleted))

    def _download(self, url: str, path: Path, needs_token: bool) -> None:
        """Stream one file to disk, whole or not at all. Compressed on the way where the server can."""
        scheme, host, _ = origin = origin_of(url)
        if origin != self._origin:
            check_base_url(url.split("?")[0], allow_http=self._allow_http)
            if host not in self._hosts:
                raise Refused(
                    f"the export keeps its files on {host}, which is not this server: allow it by "
                    "--file-host if it is theirs"
                )
        if scheme == "http" and self._origin[0] == "https":
            raise Refused("the export's files are offered without encryption")
        part = path.with_suffix(".part")
        headers = {"Accept": NDJSON, "Accept-Encoding": "gzip"}
        name = urlsplit(url).path.rsplit("/", 1)[-1][:80]
        try:
            with (
                self._http.stream(
                    "GET", url, headers=headers, auth=self._bearer if needs_token else None
                ) as answer,
                part.open("wb") as file,
            ):
                if answer.status_code != 200:
                    answer.read()
                    self._refuse(answer, f"file {name}")
                size = 0
                for piece in answer.iter_bytes(PIECE):
                    size += file.write(piece)
                    if size > MAX_FILE_BYTES:
                        raise TooLarge(f"file {name} unpacks to more than {MAX_FILE_BYTES} bytes")
                file.flush()
                os.fsync(file.fileno())
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Retriable(f"file {name}: {type(error).__name__}") from error
        part.rename(path)

    def _ask(self, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
        try:
            answer = self._http.request(method, url, headers=dict(headers), auth=self._bearer)
        except httpx.HTTPError as error:
            raise Retriable(f"{method} {urlsplit(url).path}: {type(error).__name__}") from error
        if answer.status_code >= 300:
            self._refuse(answer, f"{method} {urlsplit(url).path}")
        if len(answer.content) > MAX_MANIFEST_BYTES:
            raise TooLarge(f"{method} {urlsplit(url).path}: larger than {MAX_MANIFEST_BYTES} bytes")
        return answer

    def _refuse(self, answer: httpx.Response, what: str) -> None:
        said = f"{what}: {answer.status_code}{outcome_said(answer.content)}"
        if is_busy(answer.status_code):
            raise Retriable(said, retry_after_s=retry_after(answer))
        if answer.is_redirect:
            said += " (redirects are not followed)"
        raise Refused(said, status=answer.status_code)

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


class _State:
    """Where an export stands, in a file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):
            found = {}
        self.held: dict[str, Any] = found if isinstance(found, dict) else {}

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Another export than the one that was left here: its files go."""
        _clear(self._path.parent)
        self.held = {}
        self.keep(asked=dict(asked))

    def keep(self, **what: Any) -> None:
        self.held |= what
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.held))
        part.replace(self._path)

    def forget(self) -> None:
        self.held = {}
        self._path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    for kind in KINDS:
        for pattern in ("*.ndjson", "*.part"):
            for path in (folder / kind).glob(pattern):
                path.unlink()


def _checked_manifest(body: bytes) -> dict[str, Any]:
    """The manifest with only what is used, checked. Raises BadResource."""
    try:
        found = orjson.loads(body)
        moment = datetime.fromisoformat(found["transactionTime"])
        kept: dict[str, Any] = {
            "transactionTime": moment.isoformat(),
            "requiresAccessToken": found.get("requiresAccessToken", True) is not False,
        }
        for kind in KINDS:
            kept[kind] = [
                {"type": str(entry["type"]), "url": str(entry["url"]), "count": entry.get("count")}
                for entry in found.get(kind) or []
            ]
            if len(kept[kind]) > MAX_FILES or not all(
                re.fullmatch("[A-Za-z]{1,40}", e["type"]) for e in kept[kind]
            ):
                raise ValueError(kind)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadResource("the export's manifest is not one of Bulk Data Access") from error
    return kept


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, its JSON; None where it is not) of every line that is not blank."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError:
                yield number, None


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _errors(path: Path) -> Iterator[SetAside]:
    """What the server says it could not export."""
    for number, found in _rows(path):
        is_outcome = isinstance(found, dict) and found.get("resourceType") == "OperationOutcome"
        said = outcome_text(found) if is_outcome else "an error entry that is not an OperationOutcome"
        yield SetAside(f"{path.name}:{number}", "OperationOutcome", "", f"the server says: {said}"[:500])


def _deleted(path: Path) -> Iterator[tuple[str, str]]:
    """(type, id) of the DELETE entries of transaction Bundles."""
    for _, found in _rows(path):
        entries = found.get("entry") if isinstance(found, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            request = entry.get("request") if isinstance(entry, dict) else None
            if not isinstance(request, dict) or request.get("method") != "DELETE":
                continue
            gone = re.fullmatch(
                r"(?:.*/)?([A-Z][A-Za-z]{2,40})/([A-Za-z0-9._-]{1,128})", str(request.get("url"))
            )
            if gone:
                yield gone[1], gone[2]
