"""Files under STUDY_STORE: the originals as they came, and each Series' frames, decoded once.

    <study uuid>/<series uuid>/<sha256 of the file>.dcm     an Instance
    <study uuid>/<series uuid>/<digest>.npy                 uint16 [T, H, W] over [0, 1]: read by memory map
    <study uuid>/<series uuid>/<digest>.times.npy           float32 [T], ms
    <study uuid>/<series uuid>/<digest>.<method>.masks.npz  what a method drew in those frames

A file is written whole, made durable and then renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from django.conf import settings
from numpy.typing import NDArray
from PIL import Image

import ehr
from cds.errors import Invalid, NotFound
from cds.studies.models import Series

FULL = 65535
CHUNK = 1024 * 1024


def path_of(relative: str) -> Path:
    """The absolute path of a stored file."""
    return Path(settings.STUDY_STORE) / relative


def keep_file(source: Path, folder: str) -> tuple[str, str, int]:
    """Copy a file durably to `folder` under its SHA-256: (relative path, sha256 hex, bytes)."""
    digest, size = hashlib.sha256(), 0

    def copy(target: IO[bytes]) -> None:
        nonlocal size
        with source.open("rb") as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
                size += len(piece)
                target.write(piece)

    relative = _write(folder, copy, lambda: f"{digest.hexdigest()}.dcm")
    return relative, digest.hexdigest(), size


def place(inbox: Path, relative: str) -> None:
    """Move a durable file from an inbox of this file system to its place."""
    target = path_of(relative)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(inbox, target)


def keep_clip(clip: ehr.Clip, folder: str, name: str) -> str:
    """Store a Clip's frames and times durably; returns the relative path of the frames."""

    def save(target: IO[bytes]) -> None:
        """As numpy.save would, but a frame at a time: a volume is not held twice more."""
        shape = {"descr": "<u2", "fortran_order": False, "shape": clip.frames.shape}
        np.lib.format.write_array_header_1_0(target, shape)
        for frame in clip.frames:
            target.write(np.rint(np.clip(frame, 0, 1) * FULL).astype("<u2").tobytes())

    _write(folder, lambda target: np.save(target, clip.times_ms), lambda: f"{name}.times.npy")
    return _write(folder, save, lambda: f"{name}.npy")


def keep_masks(masks: NDArray[np.bool_], folder: str, name: str) -> str:
    """Store bool [T, H, W, S] durably, eight in a byte and compressed; returns the relative path."""
    bits, shape = np.packbits(masks), np.array(masks.shape)
    return _write(
        folder,
        lambda target: np.savez_compressed(target, bits=bits, shape=shape),
        lambda: f"{name}.masks.npz",
    )


def load_masks(relative: str) -> NDArray[np.bool_]:
    """bool [T, H, W, S] as `keep_masks` took them. Raises NotFound when they are not in the store."""
    try:
        with np.load(path_of(relative), allow_pickle=False) as held:
            shape = tuple(int(side) for side in held["shape"])
            bits = np.unpackbits(held["bits"], count=int(np.prod(shape)))
    except FileNotFoundError:
        raise NotFound(f"the masks {relative} are not in the store") from None
    return bits.reshape(shape).astype(bool)


def frame_sources(series: Series) -> list[list[str | int]]:
    """Where each frame of the Clip came from: [SOP Instance UID, number in it]; [] when that is not known."""
    if series.sources:
        return list(series.sources)
    uids = list(series.instances.values_list("sop_uid", flat=True)[:2])
    return [[uids[0], 1]] if len(uids) == 1 and series.frames == 1 else []


def remove(relative: str) -> None:
    """Drop a stored file that no row names any more; one that is gone already is fine."""
    path = path_of(relative)
    path.unlink(missing_ok=True)
    if path.suffix == ".npy":
        path.with_suffix(".times.npy").unlink(missing_ok=True)


def load_clip(series: Series) -> ehr.Clip:
    """The frames of a Series as `ehr.read_clip` gave them. Raises NotFound when it has none."""
    stored = _frames(series)
    frames = stored.astype(np.float32)
    frames /= np.float32(FULL)
    times = np.load(path_of(series.clip_path).with_suffix(".times.npy"), allow_pickle=False)
    spacing = None
    if series.spacing_row_mm is not None and series.spacing_column_mm is not None:
        spacing = (series.spacing_row_mm, series.spacing_column_mm)
    return ehr.Clip(
        frames=frames,
        times_ms=times,
        spacing_mm=spacing,
        slice_mm=series.slice_mm,
        notes=tuple(series.remarks),
    )


def times_ms(series: Series) -> NDArray[np.float32]:
    """When each frame was taken, in ms from the first."""
    _frames(series)
    times = np.load(path_of(series.clip_path).with_suffix(".times.npy"), allow_pickle=False)
    return np.asarray(times, dtype=np.float32)


def frame(series: Series, index: int) -> NDArray[np.uint8]:
    """One frame, uint8 [H, W]; only that frame is read from disk.

    raises  NotFound without stored frames, Invalid when there is no such frame
    """
    stored = _frames(series)
    if not 0 <= index < len(stored):
        raise Invalid(f"the Series has frames 0 to {len(stored) - 1}")
    return np.asarray((stored[index].astype(np.uint32) * 255 + FULL // 2) // FULL, dtype=np.uint8)


def png(series: Series, index: int, *, max_side: int | None = None) -> bytes:
    """One frame as an 8-bit grey PNG for the browser, shrunk to `max_side` when given. Raises as `frame`."""
    picture = Image.fromarray(frame(series, index))
    if max_side is not None:
        picture.thumbnail((max_side, max_side), Image.Resampling.BOX)
    held = io.BytesIO()
    picture.save(held, "PNG", compress_level=1)
    return held.getvalue()


def _frames(series: Series) -> NDArray[np.uint16]:
    if not series.clip_path:
        raise NotFound(f"Series {series.pk} has no frames: {series.failure or 'not decoded yet'}")
    try:
        stored: NDArray[np.uint16] = np.load(path_of(series.clip_path), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise NotFound(f"the frames of Series {series.pk} are not in the store") from None
    return stored


def _write(folder: str, fill: Callable[[IO[bytes]], object], name: Callable[[], str]) -> str:
    """Write under a temporary name, sync, rename, sync the folder: whole and durable, or not there."""
    target = path_of(folder)
    target.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target / name())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(target)
    return f"{folder}/{name()}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
