"""The texts of an export's notes and reports: Binaries its files point to and do not hold.

Each is read by itself and laid as a line beside the export's files, where whoever reads them finds it. A
run that was killed goes on with those that have no whole line yet. They are told by their ids: a file that
came late lays its texts between the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ehr.errors import Permanent, Refused, SignInRefused
from ehr.fhir import export_files
from ehr.fhir.references import name_here, texts_of
from ehr.records import SetAside

MOST_DENIED = 20  # one after the other: the others would be, too
Read = Callable[[str], dict[str, Any]]  # the Binary of this id; raises EhrError


def fetch_texts(folder: Path, base_url: str, read: Read, tell: Callable[[int], None]) -> Iterator[SetAside]:
    """Lay the Binaries that notes and reports in `folder`/output point to into a file there.

    Returns what did not come, and why. Raises Retriable, and Refused when we are not let in (401, or no
    token): what is there by then is kept.
    """
    part, whole = folder / "output" / "Binary-texts.part", folder / "output" / "Binary-texts.ndjson"
    lost = folder / "error" / "texts.ndjson"
    if whole.exists():  # a file may have come since
        whole.rename(part)
    done = _told(part) | _told(lost)
    denied = 0
    with part.open("ab", 0) as kept, lost.open("ab", 0) as said:
        for identity in _wanted(folder / "output", base_url):
            if identity in done:
                continue
            try:
                kept.write(orjson.dumps(read(identity)) + b"\n")
                denied = 0
            except Permanent as error:
                status = error.status if isinstance(error, Refused) else None
                if status == 401 or isinstance(error, SignInRefused):
                    raise
                denied = denied + 1 if status == 403 else 0
                is_enough = denied == MOST_DENIED
                more = "; the others are not asked for: allow it, and run with --everything"
                reason = f"{error}{more if is_enough else ''}"
                said.write(orjson.dumps({"id": identity, "reason": reason}) + b"\n")
                if is_enough:
                    break
            done.add(identity)
            tell(len(done))
        os.fsync(kept.fileno())
    if part.stat().st_size:
        part.rename(whole)
    else:
        part.unlink()
    return (
        SetAside(whole.name, "Binary", str(row["id"]), str(row["reason"])[:500])
        for _, row in export_files.rows(lost)
    )


def _wanted(output: Path, base_url: str) -> Iterator[str]:
    """Ids of the Binaries of this server that are pointed to and not among the files, in a fixed order."""
    held = {
        found.get("id")
        for path in sorted(output.glob("Binary-[0-9]*.ndjson"))
        for _, found in export_files.rows(path)
        if isinstance(found, dict)
    }
    for kind in ("DocumentReference", "DiagnosticReport"):
        for path in sorted(output.glob(f"{kind}-*.ndjson")):
            for _, resource in export_files.rows(path):
                for url in texts_of(resource) if isinstance(resource, dict) else ():
                    name = name_here(url, base_url, "Binary")
                    if name is not None and name[1] not in held:
                        yield name[1]


def _told(path: Path) -> set[str]:
    """Ids of the texts a file has a line of; what a killed run wrote of another line is cut off."""
    if not path.exists():
        return set()
    size = 0
    with path.open("r+b") as file:
        while part := file.readline(export_files.PIECE):
            if part.endswith(b"\n"):
                size = file.tell()
        file.truncate(size)
    return {str(row["id"]) for _, row in export_files.rows(path) if isinstance(row, dict)}
