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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import orjson

from ehr.addresses import check_base_url, origin_of
from ehr.bodies import read_beginning, why
from ehr.errors import BadResource, Refused, Retriable, SignInRefused, TooLarge
from ehr.fhir import export_files
from ehr.fhir.export_files import KINDS, PIECE
from ehr.fhir.export_job import NDJSON, JobClient, Tell
from ehr.fhir.export_texts import fetch_texts
from ehr.fhir.notes import MAX_NOTE_BYTES
from ehr.fhir.sign_in import SignIn
from ehr.records import SetAside

STATE = "export-state.json"
MAX_TEXT_BYTES = MAX_NOTE_BYTES * 4 // 3 + 2**16  # a Binary with a note in base64
MAX_FILE_BYTES = 64 * 2**30  # of one NDJSON file, unpacked
TYPES = (
    "Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "MedicationStatement",
    "MedicationAdministration", "Medication", "Procedure", "AllergyIntolerance", "DiagnosticReport",
    "DocumentReference", "FamilyMemberHistory", "ImagingStudy", "Location",
)  # fmt: skip


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


class _NotNdjson(Retriable):
    """A file was answered 200 with something else: a portal's page, say."""


class BulkClient(JobClient):
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
            token=token,
            timeout_s=timeout_s,
            longest_s=longest_s,
            allow_http=allow_http,
            transport=transport,
            sleep=sleep,
        )
        self._hosts, self._allow_http = frozenset(host.lower() for host in file_hosts), allow_http

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
