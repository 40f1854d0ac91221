"""Files of a research copy: written whole and durable under their last name, or not there at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cds.errors import Invalid

MANIFEST = "manifest.json"
PART = ".part-"  # what a killed run leaves behind begins so


def write(path: Path, pieces: Iterable[bytes | bytearray]) -> tuple[str, int]:
    """Write, sync, rename, sync the folder; (SHA-256 hex, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest.hexdigest(), size


def check_empty(folder: Path) -> None:
    """Nothing of anybody else may lie where a copy goes. Raises Invalid."""
    if folder.exists() and not folder.is_dir():
        raise Invalid(f"{folder} is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise Invalid(f"{folder} is not empty: name a folder that is new or empty")


def remove_strays(folder: Path, wanted: set[str]) -> int:
    """Remove what a killed run left half written, and files no part names; returns how many."""
    gone = 0
    for path in [*folder.rglob("*")]:
        if path.is_file() and (
            path.name.startswith(PART) or path.relative_to(folder).as_posix() not in wanted
        ):
            path.unlink()
            gone += 1
    return gone
