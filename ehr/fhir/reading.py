"""Reading resources from memory and from folders of Bundles, single resources and NDJSON.

Files are read one at a time and NDJSON line by line; a folder of any size takes the memory of its largest
file plus about `BATCH` resources. A file that is not FHIR is set aside with its reason; the rest goes on.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ehr.errors import BadResource, TooLarge
from ehr.fhir.elements import Json
from ehr.fhir.genomics import is_variant
from ehr.fhir.resources import SUPPORTING, Gathering, ReadingTally
from ehr.fhir.scope import Scope
from ehr.records import PatientRecord

MAX_FILE_BYTES = 256 * 2**20  # one JSON document, unpacked
MAX_LINE_BYTES = 32 * 2**20  # one NDJSON line
BATCH = 20_000
_SUFFIXES = (".json", ".ndjson", ".jsonl", ".json.gz", ".ndjson.gz", ".jsonl.gz")
_FIRST = ("Patient", "Location", "Medication", "Binary", "Endpoint")


def read_resources(
    resources: Iterable[tuple[str, Mapping[str, Any]]], *, tally: ReadingTally | None = None
) -> list[PatientRecord]:
    """Read resources and Bundles, and group them by patient.

    resources  (where it came from, the resource as parsed JSON)
    tally      counts what became of each, where given
    returns    one record per patient; what cannot be laid to a patient is set aside in a record whose
               patient has the id ""
    """
    items = list(resources)
    gathering, scope = Gathering(tally), Scope()
    for _, resource in items:
        if isinstance(resource, Mapping) and resource.get("resourceType") != "Bundle":
            scope.remember(resource)
    for where, resource in items:
        if isinstance(resource, Mapping):
            gathering.add(where, resource, scope)
        else:
            gathering.put_aside(where, "", "", "not a FHIR resource: not a JSON object")
    return gathering.take()


def list_fhir_files(folder: Path) -> list[Path]:
    """The files of `folder` (or the one file) that may hold FHIR, those that others point to first."""
    if folder.is_file():
        return [folder]
    files = (path for path in folder.rglob("*") if path.name.endswith(_SUFFIXES) and path.is_file())
    return sorted(files, key=_reading_order)


def read_fhir_folder(
    folder: Path, *, tally: ReadingTally | None = None, max_file_bytes: int = MAX_FILE_BYTES
) -> Iterator[PatientRecord]:
    """Read a folder of Bundles, resources and NDJSON (each also gzipped), or one such file.

    A Bundle file yields its patients at once. Resources spread over files are gathered up to `BATCH` and then
    yielded: in a large export a patient comes in several records, the later ones with a stub identity.
    Raises BadResource when there is no such folder.
    """
    if not folder.exists():
        raise BadResource(f"{folder.name}: no such file or folder")
    gathering, scope = Gathering(tally), Scope()
    root = folder if folder.is_dir() else folder.parent
    for path in list_fhir_files(folder):
        where = path.relative_to(root).as_posix()
        if not path.resolve().is_relative_to(root.resolve()):
            gathering.put_aside(where, "", "", "a link that leads out of the folder")
        elif path.name.removesuffix(".gz").endswith(".json"):
            document = _read_document(path, where, gathering, max_file_bytes)
            if document is not None and document.get("resourceType") == "Bundle":
                alone = Gathering(gathering.tally)
                alone.add(where, document, scope)
                yield from alone.take()
            elif document is not None:
                _add(gathering, where, document, scope)
        else:
            yield from _read_lines(path, where, gathering, scope)
        if gathering.size >= BATCH:
            yield from gathering.take()
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and not path.name.endswith(_SUFFIXES):
            gathering.tally.ignored[f"file *{path.suffix[:10]}"] += 1
    yield from gathering.take()


def _reading_order(path: Path) -> tuple[int, str]:
    kind = path.name.split(".")[0].split("-")[0]
    return (_FIRST.index(kind) if kind in _FIRST else len(_FIRST), path.as_posix())


def _add(gathering: Gathering, where: str, resource: Json, scope: Scope) -> None:
    kind = resource.get("resourceType")
    if isinstance(kind, str) and (kind in SUPPORTING or (kind == "Observation" and is_variant(resource))):
        scope.remember(resource)
    gathering.add(where, resource, scope)


def _read_document(path: Path, where: str, gathering: Gathering, limit: int) -> Json | None:
    """The JSON object in a file; None, and set aside, when there is none."""
    try:
        with _open(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise TooLarge(f"larger than {limit} bytes")
        document = orjson.loads(content)
    except TooLarge as error:
        gathering.put_aside(where, "", "", str(error))
        return None
    except (OSError, EOFError, zlib.error) as error:
        gathering.put_aside(where, "", "", f"cannot be read: {_what(error)}")
        return None
    except orjson.JSONDecodeError as error:
        gathering.put_aside(where, "", "", f"not JSON: {error.msg} at line {error.lineno}")
        return None
    if not isinstance(document, dict):
        gathering.put_aside(where, "", "", "not a FHIR resource: not a JSON object")
        return None
    return document


def _read_lines(path: Path, where: str, gathering: Gathering, scope: Scope) -> Iterator[PatientRecord]:
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                place = f"{where}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    gathering.put_aside(place, "", "", f"a line larger than {MAX_LINE_BYTES} bytes")
                    _skip_line(file, line)
                elif line.strip():
                    _add_line(line, place, gathering, scope)
                if gathering.size >= BATCH:
                    yield from gathering.take()
    except (OSError, EOFError, zlib.error) as error:
        gathering.put_aside(where, "", "", f"cannot be read after line {number}: {_what(error)}")


def _add_line(line: bytes, place: str, gathering: Gathering, scope: Scope) -> None:
    try:
        resource = orjson.loads(line.lstrip(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        gathering.put_aside(place, "", "", f"not JSON: {error.msg}")
        return
    if isinstance(resource, dict):
        _add(gathering, place, resource, scope)
    else:
        gathering.put_aside(place, "", "", "not a FHIR resource: not a JSON object")


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    return path.open("rb")


def _what(error: Exception) -> str:
    """The kind of fault, without the machine's paths that OSError texts carry."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)[:200]
