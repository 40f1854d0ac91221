"""The files of a Bulk Data export on our side: the manifest, how far a run got, what the lines hold.

Nothing here holds a whole file in memory.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from ehr.errors import BadResource
from ehr.fhir.prefetch import outcome_text
from ehr.records import SetAside

KINDS = ("output", "error", "deleted")  # of files, each in a folder of its own
PIECE = 2**20
MAX_FILES = 100_000
MAX_LINE_BYTES = 16 * 2**20
MOST_PROBLEMS = 10_000  # listed one by one; the others are counted
GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib: a gzip header is expected


class State:
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
        clear(self._path.parent)
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


def clear(folder: Path) -> None:
    """Remove the files of an export."""
    for kind in KINDS:
        for pattern in ("*.ndjson", "*.part", "*.short"):
            for path in (folder / kind).glob(pattern):
                path.unlink()


def check_manifest(body: bytes) -> dict[str, Any]:
    """The manifest with only what is used, checked. Raises BadResource naming what is wrong with it."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _not_a_manifest("it is not JSON") from error
    if not isinstance(found, dict):
        raise _not_a_manifest("it is not a JSON object")
    try:
        moment = datetime.fromisoformat(found["transactionTime"])
    except (KeyError, TypeError, ValueError) as error:
        raise _not_a_manifest("transactionTime is missing, or no instant") from error
    kept: dict[str, Any] = {
        "transactionTime": moment.isoformat(),
        "requiresAccessToken": found.get("requiresAccessToken", True) is not False,
    }
    for kind in KINDS:
        entries = found.get(kind) or []
        if not isinstance(entries, list) or len(entries) > MAX_FILES:
            raise _not_a_manifest(f"{kind} is not a list, or of more than {MAX_FILES} files")
        kept[kind] = [_checked_entry(entry, kind) for entry in entries]
    return kept


def _checked_entry(entry: Any, kind: str) -> dict[str, Any]:
    is_sound = isinstance(entry, dict) and isinstance(entry.get("url"), str) and entry["url"]
    if not is_sound or not re.fullmatch("[A-Za-z]{1,40}", str(entry.get("type"))):
        raise _not_a_manifest(f"an entry of {kind} has no url, or a type that is no resource type")
    return {"type": str(entry["type"]), "url": entry["url"], "count": entry.get("count")}


def _not_a_manifest(what: str) -> BadResource:
    return BadResource(
        f"the export's manifest is not one of Bulk Data Access: {what}; the server's maker has to mend it"
    )


def unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a file; those of one that is gzip itself (`.ndjson.gz`, served as it lies) inflated.

    A piece of what is inflated is PIECE bytes at most. Raises zlib.error (damaged) and EOFError (cut off).
    """
    waiting, start = iter(pieces), b""
    while len(start) < len(GZIP) and (piece := next(waiting, None)) is not None:
        start += piece
    if not start.startswith(GZIP):
        yield start
        yield from waiting
        return
    inflater, rest = zlib.decompressobj(_GZIP_WINDOW), start
    while True:
        while rest:
            yield inflater.decompress(rest, PIECE)
            rest = inflater.unconsumed_tail
            if inflater.eof:  # gzip files may be laid end to end
                rest = inflater.unused_data.lstrip(b"\0")
                if rest:
                    inflater = zlib.decompressobj(_GZIP_WINDOW)
        if (piece := next(waiting, None)) is None:
            break
        rest = piece
        if inflater.eof and (rest := rest.lstrip(b"\0")):
            inflater = zlib.decompressobj(_GZIP_WINDOW)
    yield inflater.flush()
    if not inflater.eof:
        raise EOFError


def path_of(folder: Path, kind: str, entry: Mapping[str, Any], number: int) -> Path:
    """Where the file of a manifest's entry lies; `number`: its place among the entries of all KINDS."""
    return folder / kind / f"{entry['type']}-{number:05}.ndjson"


def holds_ndjson(path: Path) -> bool:
    """Whether a file begins as JSON objects do; an empty one may."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            start = piece.removeprefix(b"\xef\xbb\xbf").lstrip()
            if start:
                return start.startswith(b"{")
    return True


def count_lines(path: Path) -> int:
    """How many lines are not blank; a line of any length takes the memory of PIECE."""
    found, says_something = 0, False
    with path.open("rb") as file:
        while part := file.readline(PIECE):
            says_something = says_something or not part.isspace()
            if part.endswith(b"\n"):
                found, says_something = found + says_something, False
    return found + says_something


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, its JSON; None where it is not, or too long) of every line that is not blank."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            is_whole = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
            rest = line
            while not rest.endswith(b"\n") and (rest := file.readline(PIECE)):
                is_whole = False
            if not line.isspace():
                try:
                    yield number, orjson.loads(line) if is_whole else None
                except orjson.JSONDecodeError:
                    yield number, None


def read_errors(path: Path) -> Iterator[SetAside]:
    """What the server says it could not export."""
    for number, found in rows(path):
        is_outcome = isinstance(found, dict) and found.get("resourceType") == "OperationOutcome"
        said = outcome_text(found) if is_outcome else "an error entry that is not an OperationOutcome"
        yield SetAside(f"{path.name}:{number}", "OperationOutcome", "", f"the server says: {said}"[:500])


def read_miscounted(folder: Path, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[SetAside]:
    """Files of errors and deletions that hold less than their `count`: told, and no more.

    `count` is of the resources in a file, that is its lines, but servers count what was deleted there, too.
    """
    for number, (kind, entry) in enumerate(wanted):
        path, promised = path_of(folder, kind, entry, number), entry["count"]
        if kind == "output" or not isinstance(promised, int) or not path.exists():
            continue
        found = count_lines(path)
        if kind == "deleted" and found < promised:
            found = max(found, sum(_entries(bundle) for _, bundle in rows(path)))
        if found < promised:
            reason = f"the file holds {found} of the {promised} that the manifest counts: taken as it is"
            yield SetAside(path.name, str(entry["type"]), "", reason)


def _entries(bundle: Any) -> int:
    entries = bundle.get("entry") if isinstance(bundle, dict) else None
    return len(entries) if isinstance(entries, list) else 0


def listed(problems: Iterable[SetAside]) -> tuple[SetAside, ...]:
    """The first MOST_PROBLEMS, and one that counts the others."""
    waiting = iter(problems)
    kept = list(islice(waiting, MOST_PROBLEMS))
    if more := sum(1 for _ in waiting):
        kept.append(SetAside("error[]", "OperationOutcome", "", f"and {more} more, which are not listed"))
    return tuple(kept)


def read_deleted(path: Path) -> Iterator[tuple[str, str]]:
    """(type, id) of the DELETE entries of transaction Bundles. Raises BadResource for a line that is none."""
    for number, found in rows(path):
        entries = found.get("entry", []) if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise BadResource(
                f"line {number} of {path.name} is not a Bundle of deletions, or larger than "
                f"{MAX_LINE_BYTES} bytes"
            )
        for entry in entries:
            request = entry.get("request") if isinstance(entry, dict) else None
            if not isinstance(request, dict) or request.get("method") != "DELETE":
                continue
            gone = re.fullmatch(
                r"(?:.*/)?([A-Z][A-Za-z]{2,40})/([A-Za-z0-9._-]{1,128})", str(request.get("url"))
            )
            if gone:
                yield gone[1], gone[2]
