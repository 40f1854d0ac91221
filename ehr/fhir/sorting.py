"""A folder of FHIR, sorted by patient on disk, so that each patient's record is read once and whole.

A Bulk Data export comes by type: a patient's measurements lie a million lines after the Patient.
`sort_folder` goes through every file once and lays each line into a `Bucket`, by patient; what others point
to (Medication, Location, Binary, Endpoint) goes onto a shelf of its own. A bucket then yields `Piece`s
(`ehr.fhir.reading`). Memory stays that of one file's longest line, or largest single document, however
large the folder.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ehr.errors import BadResource, TooLarge
from ehr.fhir.elements import Json
from ehr.fhir.resources import READERS, SUPPORTING, Gathering
from ehr.fhir.scope import Scope, identify, patient_of
from ehr.records import SetAside

MAX_FILE_BYTES = 256 * 2**20  # one JSON document, unpacked
MAX_LINE_BYTES = 32 * 2**20  # one NDJSON line
BUCKET_BYTES = 3 * 2**20  # some thousand resources: what is written in one transaction
MAX_BUCKETS = 1024
HELD_BYTES = 64 * 2**20  # what all buckets together hold before they write
NOBODY = ""  # the lines that name no patient, or several
SUFFIXES = (".json", ".ndjson", ".jsonl", ".json.gz", ".ndjson.gz", ".jsonl.gz")
_FIRST = ("Patient", "Location", "Medication", "Binary", "Endpoint")
_BUNDLE = re.compile(rb'"resourceType"\s*:\s*"Bundle"')
_PEEK = 2**16
_UNPACKED = 8  # NDJSON shrinks about this much


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some patients' lines, sorted out into `path`; or, without one, whole documents: (path, its name)."""

    path: Path | None
    size: int  # bytes
    documents: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SortedFolder:
    """What was laid out. Plain data: its buckets may be read in other processes, in any order.

    names        of the files, to tell where a resource stood
    shelf        database of what other resources point to
    fingerprint  of that, and of the code that reads: another one, and everything is read again
    ignored      resources that say nothing Tessera reads, by type
    set_aside    files and lines that are not FHIR
    """

    buckets: tuple[Bucket, ...]
    names: tuple[str, ...]
    shelf: Path
    fingerprint: str
    ignored: dict[str, int]
    set_aside: tuple[SetAside, ...]
    max_file_bytes: int


def list_fhir_files(folder: Path) -> list[Path]:
    """The files of `folder` (or the one file) that may hold FHIR, those that others point to first."""
    if folder.is_file():
        return [folder]
    files = (path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    return sorted(files, key=_reading_order)


def estimate_size(folder: Path) -> int:
    """Bytes of FHIR in `folder` (or the one file), unpacked; of packed files about as many."""
    return sum(_unpacked_size(path) for path in list_fhir_files(folder)) if folder.exists() else 0


def sort_folder(folder: Path, scratch: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> SortedFolder:
    """Lay out `folder`, or the one file, under `scratch`: an empty folder, which the caller removes.

    Raises BadResource when there is no such folder.
    """
    if not folder.exists():
        raise BadResource(f"{folder.name}: no such file or folder")
    root = folder if folder.is_dir() else folder.parent
    paths, top = list_fhir_files(folder), root.resolve()
    sorter = _Sorter(scratch, sum(_unpacked_size(path) for path in paths))
    for path in paths:
        where = path.relative_to(root).as_posix()
        if not path.resolve().is_relative_to(top):
            sorter.put_aside(where, "a link that leads out of the folder")
        elif path.name.removesuffix(".gz").endswith(".json"):
            _sort_document(path, where, sorter, max_file_bytes)
        else:
            _sort_lines(path, where, sorter)
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and not path.name.endswith(SUFFIXES):
            sorter.ignored[f"file *{path.suffix[:10]}"] += 1
    return sorter.finish(max_file_bytes)


def read_bucket(bucket: Bucket) -> Iterator[tuple[str, int, int, bytes]]:
    """(patient id or `NOBODY`, number of the file, line or 0, the resource) of each line of a bucket."""
    if bucket.path is None:
        return
    with bucket.path.open("rb") as file:
        for line in file:
            patient, name, number, resource = line.split(b"\t", 3)
            yield patient.decode(), int(name), int(number), resource


def read_content(path: Path, limit: int) -> bytes:
    """A document's bytes, unpacked. Raises BadResource (it cannot be read) or TooLarge."""
    try:
        with _open(path) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadResource(f"cannot be read: {_what(error)}") from error
    if len(content) > limit:
        raise TooLarge(f"larger than {limit} bytes")
    return content


def parse_document(content: bytes) -> Json:
    """The JSON object in a document. Raises BadResource."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadResource(f"not JSON: {error.msg} at line {error.lineno}") from error
    if not isinstance(document, dict):
        raise BadResource("not a FHIR resource: not a JSON object")
    return document


@cache
def reader_fingerprint() -> str:
    """SHA-256 hex of the code and tables of this room: what an older reader said may no longer hold."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*")):
        if path.suffix in (".py", ".tsv"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _Sorter:
    """Writes lines into buckets, holding little of them."""

    def __init__(self, scratch: Path, size: int) -> None:
        self.ignored: Counter[str] = Counter()
        self._scratch = scratch
        self._held = [bytearray() for _ in range(max(1, min(MAX_BUCKETS, size // BUCKET_BYTES)))]
        self._sizes = [0] * len(self._held)
        self._most = HELD_BYTES // len(self._held) // 2
        self._names: dict[str, int] = {}
        self._aside: list[SetAside] = []
        self._documents: list[tuple[Path, str]] = []
        self._shelf = sqlite3.connect(scratch / "shelf.sqlite3", isolation_level=None)
        self._shelf.execute("pragma journal_mode=off")
        self._shelf.execute("create table shelf (key text primary key, body blob) without rowid")
        self._shelf.execute("begin")
        self._fingerprint = hashlib.sha256(reader_fingerprint().encode())
        self._nowhere = Scope()

    def put_aside(self, where: str, reason: str) -> None:
        self._aside.append(SetAside(where[:500], "", "", reason[:500]))

    def leave(self, path: Path, where: str) -> None:
        """A document to be read as it lies."""
        self._documents.append((path, where))

    def add(self, where: str, number: int, resource: Json, line: bytes) -> None:
        """One resource: `line` is its JSON, without a line break."""
        kind = resource.get("resourceType")
        is_type = isinstance(kind, str) and kind.isalpha() and len(kind) <= 60
        if is_type and kind in SUPPORTING:
            self.ignored[kind] += 1
            own = resource.get("id")
            if isinstance(own, str):
                self._fingerprint.update(line)
                self._shelf.execute("insert or replace into shelf values (?, ?)", (f"{kind}/{own}", line))
            return
        if is_type and kind not in READERS and kind not in ("Patient", "Bundle"):
            self.ignored[str(kind)] += 1
            return
        patient = self._patient_of(resource, kind)
        place = zlib.crc32(patient.encode()) % len(self._held)
        name = self._names.setdefault(where, len(self._names))
        held = self._held[place]
        held += b"%b\t%d\t%d\t%b\n" % (patient.encode(), name, number, line)
        if len(held) >= self._most:
            self._write(place)

    def finish(self, max_file_bytes: int) -> SortedFolder:
        self._shelf.execute("commit")
        self._shelf.close()
        for place in range(len(self._held)):
            self._write(place)
        filled = [Bucket(self._path(place), size) for place, size in enumerate(self._sizes) if size]
        return SortedFolder(
            buckets=(*_document_buckets(self._documents), *filled),
            names=tuple(self._names),
            shelf=self._scratch / "shelf.sqlite3",
            fingerprint=self._fingerprint.hexdigest(),
            ignored=dict(self.ignored),
            set_aside=tuple(self._aside),
            max_file_bytes=max_file_bytes,
        )

    def _patient_of(self, resource: Json, kind: Any) -> str:
        try:
            if kind == "Patient":
                return identify(resource)
            if kind != "Bundle":
                return patient_of(resource, self._nowhere)
            gathering = Gathering()  # a Bundle on a line, which is rare
            gathering.add("", resource, self._nowhere)
            whose = {record.patient.resource_id for record in gathering.take()} - {NOBODY}
            return whose.pop() if len(whose) == 1 else NOBODY
        except BadResource:
            return NOBODY  # whoever reads it says why

    def _path(self, place: int) -> Path:
        return self._scratch / f"{place:04}"

    def _write(self, place: int) -> None:
        with self._path(place).open("ab") as file:
            self._sizes[place] += file.write(self._held[place])
        self._held[place] = bytearray()


class Shelf(dict[str, Json]):
    """Resources by "Type/id", read from the disk as they are asked for; a thousand are kept at hand."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def get(self, key: str, default: Any = None) -> Any:
        """The resource, or `default`."""
        if key in self:
            return self[key]
        row = self._database.execute("select body from shelf where key = ?", (key,)).fetchone()
        if row is None:
            return default
        found = orjson.loads(row[0])
        if key.startswith("Binary/"):
            return found  # one note's own, and it may be large
        if len(self) >= 1000:
            self.clear()
        self[key] = found
        return found


def _document_buckets(documents: list[tuple[Path, str]]) -> Iterator[Bucket]:
    held: list[tuple[Path, str]] = []
    size = 0
    for path, where in documents:
        held.append((path, where))
        size += _unpacked_size(path)
        if size >= BUCKET_BYTES:
            yield Bucket(None, size, tuple(held))
            held, size = [], 0
    if held:
        yield Bucket(None, size, tuple(held))


def _sort_document(path: Path, where: str, sorter: _Sorter, limit: int) -> None:
    """A Bundle is left where it lies; a single resource goes to its patient's others."""
    try:
        if _BUNDLE.search(read_start(path)):
            sorter.leave(path, where)
            return
        content = read_content(path, limit)
        document = parse_document(content)
    except (BadResource, TooLarge) as error:
        sorter.put_aside(where, str(error))
        return
    if document.get("resourceType") == "Bundle":
        sorter.leave(path, where)
    else:  # a line break in JSON is white space: within texts it is written \n
        sorter.add(where, 0, document, content.replace(b"\r", b" ").replace(b"\n", b" "))


def read_start(path: Path) -> bytes:
    """The first bytes of a document, unpacked. Raises BadResource."""
    try:
        with _open(path) as file:
            return file.read(_PEEK)
    except (OSError, EOFError, zlib.error) as error:
        raise BadResource(f"cannot be read: {_what(error)}") from error


def _sort_lines(path: Path, where: str, sorter: _Sorter) -> None:
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    sorter.put_aside(f"{where}:{number}", f"a line larger than {MAX_LINE_BYTES} bytes")
                    _skip_line(file, line)
                elif line := line.strip():
                    _sort_line(line.removeprefix(b"\xef\xbb\xbf"), where, number, sorter)
    except (OSError, EOFError, zlib.error) as error:
        sorter.put_aside(where, f"cannot be read after line {number}: {_what(error)}")


def _sort_line(line: bytes, where: str, number: int, sorter: _Sorter) -> None:
    try:
        resource = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        sorter.put_aside(f"{where}:{number}", f"not JSON: {error.msg}")
        return
    if isinstance(resource, dict):
        sorter.add(where, number, resource, line)
    else:
        sorter.put_aside(f"{where}:{number}", "not a FHIR resource: not a JSON object")


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _reading_order(path: Path) -> tuple[int, str]:
    kind = path.name.split(".")[0].split("-")[0]
    return (_FIRST.index(kind) if kind in _FIRST else len(_FIRST), path.as_posix())


def _unpacked_size(path: Path) -> int:
    return path.stat().st_size * (_UNPACKED if path.name.endswith(".gz") else 1)


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    return path.open("rb")


def _what(error: Exception) -> str:
    """The kind of fault, without the machine's paths that OSError texts carry."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)[:200]
