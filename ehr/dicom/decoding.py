"""The body of the decoding process: asked over stdin, answers over stdout, never trusted with more memory
than its limit. Started and watched by `ehr.dicom.child`.

Request   4 bytes length, JSON {"op", "paths", "bytes", …}, then `bytes` bytes of a file given in memory
Answer    4 bytes length, JSON {"ok", "error", "result", "bytes"}, then `bytes` bytes: frames as uint16 LE,
          or the de-identified file
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import select
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ehr.dicom import dataset, guard, pixels, selecting
from ehr.errors import BadInstance, Permanent
from ehr.records import InstanceHeader

FULL = 65535
HEADER_FIELDS = dataclasses.fields(InstanceHeader)
Frames = NDArray[np.uint16] | NDArray[np.uint8]


def main() -> None:
    """Serve requests until stdin ends, the parent is gone, or nothing was asked for a while."""
    limits = guard.Limits(**json.loads(sys.argv[1]))
    idle_s, parent = float(sys.argv[2]), os.getppid()
    _limit_memory(limits)
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # codecs print: keep them off our answers and out of any log
        os.dup2(quiet, descriptor)
    waited = 0.0
    while waited < idle_s and os.getppid() == parent:
        if not select.select([requests], [], [], 1.0)[0]:
            waited += 1.0
            continue
        waited = 0.0
        head = _exactly(requests, 4)
        if head is None:
            return
        asked = json.loads(_exactly(requests, struct.unpack("<I", head)[0]) or b"{}")
        data = _exactly(requests, asked["bytes"]) if asked.get("bytes") else None
        _answer(answers, *_serve(asked, data, limits))


def _serve(
    asked: dict[str, Any], data: bytes | None, limits: guard.Limits
) -> tuple[dict[str, Any], Frames | None]:
    try:
        sources: list[Path | bytes] = [data] if data is not None else [Path(path) for path in asked["paths"]]
        for source in sources:
            if isinstance(source, Path):
                guard.check_file(source, limits)
        if asked["op"] == "clip":
            result, frames = read_clip(sources, int(asked["max_side"]), int(asked["max_frames"]), limits)
            return {"ok": True, "result": result}, frames
        if asked["op"] == "deidentify":
            # Its tables take half a second: not for every process.
            from ehr.dicom.deidentify import deidentify

            said, content = deidentify(sources[0], asked, limits)
            return {"ok": True, "result": said}, np.frombuffer(content, np.uint8)
        return {"ok": True, "result": OPS[asked["op"]](sources[0], asked, limits)}, None
    except Permanent as error:
        return {"ok": False, "error": type(error).__name__, "message": str(error)}, None
    except MemoryError:
        words = f"decoding needs more than {limits.memory_bytes // guard.MIB:,} MiB of memory"
        return {"ok": False, "error": "TooLarge", "message": words}, None
    except Exception as error:
        # The process must outlive any file. The kind of fault is told; its message may quote values.
        words = f"the file cannot be read ({type(error).__name__})"
        return {"ok": False, "error": "BadInstance", "message": words}, None


def _header(source: Path | bytes, asked: dict[str, Any], limits: guard.Limits) -> dict[str, Any]:
    opened = dataset.open_dataset(source, limits, pixels=False)
    try:
        return _plain(opened, asked)
    finally:
        opened.close()


def _plain(opened: dataset.Opened, asked: dict[str, Any]) -> dict[str, Any]:
    found = dataset.read_header(opened, ZoneInfo(asked["tz"]))
    header = {one.name: getattr(found, one.name) for one in HEADER_FIELDS}
    started_at = header["started_at"]
    return {**header, "started_at": started_at.isoformat() if started_at else None}


def _inspect(source: Path | bytes, asked: dict[str, Any], limits: guard.Limits) -> dict[str, Any]:
    assert isinstance(source, Path)
    with source.open("rb") as stream:
        sha256, size = hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
    opened = dataset.open_dataset(source, limits, pixels=False)
    try:
        header = _plain(opened, asked)
        digest = dataset.digest_pixels(opened) if header["has_pixels"] else ""
    finally:
        opened.close()
    return {"header": header, "pixels": digest, "sha256": sha256, "bytes": size}


def _pixel_digest(source: Path | bytes, _: dict[str, Any], limits: guard.Limits) -> str:
    opened = dataset.open_dataset(source, limits, pixels=False)
    try:
        return dataset.digest_pixels(opened)
    finally:
        opened.close()


def _value_digest(source: Path | bytes, _: dict[str, Any], limits: guard.Limits) -> str:
    opened = dataset.open_dataset(source, limits, pixels=True)
    try:
        dataset.check_promises(opened, limits)
        return pixels.digest_values(opened)
    finally:
        opened.close()


def _source(source: Path | bytes, _: dict[str, Any], limits: guard.Limits) -> dict[str, Any]:
    opened = dataset.open_dataset(source, limits, pixels=False)
    try:
        return {
            "attributes": selecting.repeated(opened.dataset),
            "transfer_syntax_uid": opened.transfer_syntax,
        }
    finally:
        opened.close()


OPS: dict[str, Callable[[Path | bytes, dict[str, Any], guard.Limits], Any]] = {
    "inspect": _inspect,
    "header": _header,
    "pixel_digest": _pixel_digest,
    "value_digest": _value_digest,
    "source": _source,
}


def _check(source: Path | bytes, limits: guard.Limits) -> Dataset:
    """The header of one instance whose pixels are within the limits."""
    opened = dataset.open_dataset(source, limits, pixels=False)
    try:
        dataset.check_promises(opened, limits)
        return opened.dataset
    finally:
        opened.close()


def read_clip(
    sources: list[Path | bytes], max_side: int, max_frames: int, limits: guard.Limits
) -> tuple[dict[str, Any], Frames]:
    """Decode the instances of one Series to the frames of one Clip, uint16 [T, H, W] over [0, 1]."""
    headers, readable, refused = [], [], []
    for source in sources:
        try:
            headers.append(_check(source, limits))
            readable.append(source)
        except Permanent as error:
            refused.append(error)
    if not headers:
        raise refused[0]
    chosen = selecting.choose(headers)
    first = headers[chosen.order[0]]
    notes = [*chosen.notes]
    inside = max(1, dataset.whole(first, "NumberOfFrames") or 1)
    total = inside if len(chosen.order) == 1 else len(chosen.order)
    rows, columns = dataset.whole(first, "Rows") or 1, dataset.whole(first, "Columns") or 1
    height, width = pixels.fitted(rows, columns, max_side)
    keep = max(1, min(total, max_frames, limits.clip_pixels // (height * width)))
    places = [round(place * (total - 1) / max(1, keep - 1)) for place in range(keep)]
    if keep < total:
        notes.append(f"{keep} of {total} frames kept, evenly spaced")

    if len(chosen.order) == 1:
        times, source_of_times = selecting.times_of(first, inside)
        if inside > 1 and times is None:
            notes.append("no frame timing in the file")
        if times is None:
            frames_of = selecting.order_frames(first, inside)
        else:
            frames_of = selecting.Chosen(list(range(inside)))
        notes += frames_of.notes
        inner = [frames_of.order[place] for place in places]
        rendered = _render(readable[chosen.order[0]], inner, max_side, limits, notes)
    else:
        times, source_of_times = chosen.times_ms, "TriggerTime"
        rendered, kept = [], []
        for place in places:
            try:
                rendered += _render(readable[chosen.order[place]], [0], max_side, limits, notes)
                kept.append(place)
            except Permanent as error:
                refused.append(error)
        if not rendered:
            raise refused[-1]
        places = kept
    slice_mm = chosen.slice_mm
    if len(chosen.order) == 1 and inside > 1 and not times:
        slice_mm = frames_of.slice_mm
        if slice_mm is None and not frames_of.notes:
            slice_mm = selecting.slice_step_of(first)
    if slice_mm is not None and len(places) > 1:
        steps = {after - before for before, after in pairwise(places)}
        if max(steps) - min(steps) > 1 or (refused and len(steps) > 1):
            notes.append("slices left out between others: no volume")
            slice_mm = None
        else:
            slice_mm *= (places[-1] - places[0]) / (len(places) - 1)
    if refused:
        notes.append(f"{len(refused)} of {len(sources)} instances left out: {refused[0]}")
    if len({one.values.shape for one in rendered}) > 1:
        raise BadInstance("the frames differ in size: send those of another size as a Series of their own")
    frames = quantise(rendered)
    made_of = [
        (chosen.order[0], frames_of.order[place]) if len(chosen.order) == 1 else (chosen.order[place], 0)
        for place in places
    ]
    spacing, spacing_source = selecting.spacing_of(first)
    if spacing is not None:
        spacing = (spacing[0] * rows / frames.shape[1], spacing[1] * columns / frames.shape[2])
    at = (
        [times[place] - times[places[0]] for place in places]
        if times and len(times) == total
        else [0.0] * len(places)
    )
    notes += [remark for remark in selecting.remarks_of(first) if remark not in notes]
    return {
        "shape": frames.shape,
        "times_ms": at,
        "times_source": source_of_times if any(at) else "",
        "spacing_mm": spacing,
        "slice_mm": slice_mm if len(places) > 1 else None,
        "spacing_source": spacing_source,
        "notes": notes,
        "sources": [[dataset.text(headers[which], "SOPInstanceUID"), inner + 1] for which, inner in made_of],
    }, frames


def _render(
    source: Path | bytes, indices: list[int], max_side: int, limits: guard.Limits, notes: list[str]
) -> list[pixels.Rendered]:
    opened = dataset.open_dataset(source, limits, pixels=True)
    try:
        renderer = pixels.Renderer(opened.dataset, max_side)
        rendered = list(renderer.frames(indices))
    finally:
        opened.close()
    notes += [remark for remark in renderer.notes if remark not in notes]
    return rendered


def quantise(rendered: list[pixels.Rendered]) -> Frames:
    """Frames as uint16 over [0, 1]. Those without a window share one range and stay comparable."""
    free = [one for one in rendered if not one.windowed]
    low = min((one.low for one in free), default=0.0)
    span = max((one.high for one in free), default=1.0) - low
    frames = np.empty((len(rendered), *rendered[0].values.shape), dtype="<u2")
    scaled = np.empty(rendered[0].values.shape, dtype=np.float32)
    for place, one in enumerate(rendered):
        if one.windowed:
            np.multiply(one.values, np.float32(FULL), out=scaled)
        elif span > 0:
            np.subtract(one.values, np.float32(low), out=scaled)
            scaled *= np.float32(FULL / span)
        else:
            scaled[...] = 0
        if np.isnan(scaled.min()):  # of pixels in floating point
            np.nan_to_num(scaled, copy=False)
        np.clip(scaled, 0, FULL, out=scaled)
        frames[place] = np.rint(scaled, out=scaled)
    return frames


def _limit_memory(limits: guard.Limits) -> None:
    wanted = {"RLIMIT_AS": limits.memory_bytes, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue  # not every system can limit the address space; the sizes above still hold


def _exactly(stream: Any, count: int) -> bytes | None:
    held = bytearray()
    while len(held) < count:
        piece = stream.read(min(count - len(held), 1 << 20))
        if not piece:
            return None
        held += piece
    return bytes(held)


def _answer(stream: BinaryIO, answer: dict[str, Any], frames: Frames | None) -> None:
    answer["bytes"] = frames.nbytes if frames is not None else 0
    head = json.dumps(answer).encode()
    stream.write(struct.pack("<I", len(head)) + head)
    if frames is not None:
        stream.write(np.ascontiguousarray(frames).data.cast("B"))
    stream.flush()
