"""DICOM files in: headers, Clips, digests. A child process parses and decodes (`ehr.dicom.child`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ehr.dicom import child, guard
from ehr.errors import BadInstance
from ehr.records import Clip, Inspected, InstanceHeader

FULL = np.float32(65535)


def read_header(
    source: Path | bytes, *, default_tz: str = "UTC", limits: guard.Limits = guard.DEFAULT
) -> InstanceHeader:
    """What one DICOM file says before any pixel is decoded; `has_pixels` tells whether there are any.

    source      a Part 10 file, with or without preamble, or its bytes
    default_tz  IANA name; the zone of times without TimezoneOffsetFromUTC
    raises      BadInstance (not DICOM, truncated, no usable UIDs …), TooLarge
    """
    result, _ = child.ask("header", _sources(source), limits=limits, tz=default_tz)
    return _header(result)


def inspect(path: Path, *, default_tz: str = "UTC", limits: guard.Limits = guard.DEFAULT) -> Inspected:
    """Header and digests of one file, read once. Raises as `read_header` and `pixel_digest`."""
    result, _ = child.ask("inspect", [path], limits=limits, tz=default_tz)
    return Inspected(_header(result["header"]), result["pixels"], result["sha256"], result["bytes"])


def pixel_digest(source: Path | bytes, *, limits: guard.Limits = guard.DEFAULT) -> str:
    """SHA-256 hex of the pixel data as sent. Raises BadInstance when it is absent or cut off."""
    return str(child.ask("pixel_digest", _sources(source), limits=limits)[0])


def value_digest(source: Path | bytes, *, limits: guard.Limits = guard.DEFAULT) -> str:
    """SHA-256 hex of the decoded values: the same for every lossless encoding of one image.

    raises  BadInstance when it cannot be decoded, TooLarge
    """
    return str(child.ask("value_digest", _sources(source), limits=limits)[0])


def read_clip(
    paths: Sequence[Path | str] | bytes,
    *,
    max_side: int = 1024,
    max_frames: int = 256,
    limits: guard.Limits = guard.DEFAULT,
) -> Clip:
    """Decode the instances of one Series to one Clip.

    paths       the files of the Series, in any order (or the bytes of one)
    max_side    longer sides are shrunk to this by area averaging, and the spacing adjusted
    max_frames  of longer clips, evenly spaced frames are kept
    returns     intensities in steps of 1/65535; `notes` says what was ignored, left out or assumed
    raises      BadInstance with the reason in words, TooLarge
    """
    if not isinstance(paths, bytes) and not paths:
        raise BadInstance("a Series without instances has no pixels")
    sources = paths if isinstance(paths, bytes) else [Path(path) for path in paths]
    result, data = child.ask("clip", sources, limits=limits, max_side=max_side, max_frames=max_frames)
    frames = np.frombuffer(data, dtype="<u2").reshape(result["shape"]).astype(np.float32)
    frames /= FULL
    spacing = result["spacing_mm"]
    return Clip(
        frames=frames,
        times_ms=np.asarray(result["times_ms"], dtype=np.float32),
        spacing_mm=(float(spacing[0]), float(spacing[1])) if spacing else None,
        spacing_source=result["spacing_source"],
        slice_mm=result["slice_mm"],
        notes=tuple(result["notes"]),
        sources=tuple((str(uid), int(number)) for uid, number in result["sources"]),
    )


def _header(result: dict[str, Any]) -> InstanceHeader:
    at = result.pop("started_at")
    return InstanceHeader(**result, started_at=datetime.fromisoformat(at) if at else None)


def _sources(source: Path | bytes) -> list[Path] | bytes:
    return source if isinstance(source, bytes) else [Path(source)]
