"""A model's files, checked without loading them: what is promoted is what was evaluated."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cds.errors import Conflict
from cds.registry import queries
from cds.registry.models import ModelVersion


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle, by its path within the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_unchanged(version: ModelVersion) -> None:
    """Raises Conflict when the files are not those that were registered."""
    if file_digests(queries.bundle_folder(version)) != version.metadata.get("files"):
        raise Conflict(f"the files of {version.label} are not those that were evaluated; it cannot be used")
