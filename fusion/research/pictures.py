"""Single pictures of a research set: named in its table, read when they are looked at."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fusion.errors import BadInput
from fusion.inputs import Frames, PixelInput


def listed_picture(folder: Path, name: str, *, table: str, is_colour: bool = False) -> PixelInput:
    """The picture of 8 bits `folder`/`name`, keyed by its SHA-256; is_colour: three channels, else grey.

    table  the file that names it, for the BadInput that is raised where there is no such picture
    """
    path = folder / name
    if not path.is_file():
        raise BadInput(f"{folder.name}/{name} is named in {table} and is not there")
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    return PixelInput(key, partial(_read, path, is_colour), np.zeros(1, np.float32))


def _read(path: Path, is_colour: bool) -> Frames:
    """float32 [1, 3, H, W] or [1, H, W] in [0, 1]."""
    with Image.open(path) as held:
        values = np.asarray(held.convert("RGB" if is_colour else "L"), np.float32) / np.float32(255)
    channels = np.ascontiguousarray(values.transpose(2, 0, 1)) if is_colour else values
    return Frames(channels[None], np.zeros(1, np.float32))
