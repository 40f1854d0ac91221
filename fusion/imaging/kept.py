"""A trained network as a folder: its weights (safetensors) and metadata.json, checked by digest on load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fusion.errors import BundleMismatch

METADATA = "metadata.json"


def write(folder: Path, weights_name: str, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Write the folder; SHA-256 of its metadata, which holds that of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: value.contiguous().clone() for name, value in state.items()})
    said = {**about, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(said, indent=1, sort_keys=True) + "\n"
    (folder / weights_name).write_bytes(weights)
    (folder / METADATA).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def read(
    folder: Path, weights_name: str, *, what: str, form: int, digest: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its metadata and its weights.

    what    the network is called, for people
    form    the format that the caller understands
    digest  what `write` answered, to refuse any other folder
    raises  BundleMismatch for files that are missing, changed, or of another format
    """
    try:
        text, weights = (folder / METADATA).read_bytes(), (folder / weights_name).read_bytes()
        about: dict[str, Any] = json.loads(text)
        kept_as, wanted = about["format"], about["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BundleMismatch(
            f"{folder.name} is no {what}: {METADATA} and {weights_name} are needed"
        ) from fault
    if kept_as != form:
        raise BundleMismatch(f"{folder.name} is a {what} of format {kept_as!r}; this version reads {form}")
    if digest and hashlib.sha256(text).hexdigest() != digest:
        raise BundleMismatch(
            f"{METADATA} of {folder.name} is not the one that was registered (SHA-256 differs)"
        )
    if hashlib.sha256(weights).hexdigest() != wanted:
        raise BundleMismatch(f"{weights_name} of {folder.name} is not the file that {METADATA} describes")
    try:
        return about, load_tensors(weights)
    except SafetensorError as fault:
        raise BundleMismatch(f"{weights_name} of {folder.name} holds no weights") from fault
