"""int8 copies of an edge folder's image encoders, from the site's own pictures, kept only where they pass.

Some networks lose everything when quantised, so nothing is kept unseen: half of the pictures calibrate, the
other half checks (`fusion.export.quantise`). What was not checked, and why a copy was refused, is said.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.backbones import ImageBackbone
from fusion.edge_inputs import PICTURES, read_inputs
from fusion.errors import BadInput
from fusion.export import LEAST_COSINE, LEAST_PICTURES, MOST_AUROC_LOST, quantise
from fusion.inputs import FloatArray, Modality, PixelInput
from fusion.preparing import check_pixels

FRAMES_A_CLIP = 4
CHANNELS = {"1": "grey", "3": "colour"}


@dataclass(frozen=True, slots=True)
class CheckPictures:
    """Pictures and clips that int8 copies are calibrated and checked on.

    labels  0 or 1 of each image, in their order; empty where they are not known
    """

    images: tuple[PixelInput, ...] = ()
    cines: tuple[PixelInput, ...] = ()
    labels: tuple[int, ...] = ()


def read_check_pictures(files: Sequence[Path], labels: Path | None = None) -> CheckPictures:
    """Pictures and clips in the forms of `fusion.edge`; of a folder, every one in it.

    labels  CSV with the columns `picture` (a file's name) and `label` (0 or 1): one line a picture
    Raises BadInput.
    """
    found = [
        one
        for file in files
        for one in (
            sorted(p for p in file.iterdir() if p.suffix.lower() in PICTURES | {".npz"})
            if file.is_dir()
            else [file]
        )
    ]
    read = [read_inputs([file]) for file in found]
    images = tuple(image for one in read for image in one.images)
    known = _read_labels(labels) if labels is not None else {}
    if labels is not None and (unknown := [one.key for one in images if one.key not in known]):
        raise BadInput(f"{labels.name} has no label of {', '.join(unknown[:3])}")
    cines = tuple(clip for one in read for clip in one.cines)
    return CheckPictures(images, cines, tuple(known[one.key] for one in images if known))


def quantise_encoder(
    folder: Path,
    files: dict[str, Any],
    backbone: ImageBackbone,
    size: int,
    pictures: CheckPictures,
    *,
    is_cine: bool = False,
) -> list[dict[str, Any]]:
    """Put int8 copies in the place of an encoder's ONNX files where they pass; what became of each.

    files  of `edge.json`: channels → its file and constants; the file is changed where a copy is kept
    """
    told = []
    for channels, kept in files.items():
        name = str(kept["file"])
        frames, labels = _frames(backbone, size, pictures, int(channels), is_cine=is_cine)
        if len(frames) < 2 * LEAST_PICTURES:
            what = "frames of clips" if is_cine else f"{CHANNELS[channels]} pictures"
            why = f"{len(frames)} {what} can be used, and {2 * LEAST_PICTURES} are needed"
            told.append({"file": name, "kept": False, "said": f"{name}: stays float32, {why}"})
            continue
        small = name.replace(".onnx", ".int8.onnx")
        check = quantise(folder / name, folder / small, frames, labels=labels)
        found = f"smallest cosine {check.cosine:.4f} over {check.pictures} pictures (at least {LEAST_COSINE})"
        if check.auroc_lost is None:
            found += ", AUROC not checked: no labels"
        else:
            found += f", AUROC lost {max(0.0, check.auroc_lost):.4f} (at most {MOST_AUROC_LOST})"
        if check.passed:
            kept["file"] = small
            (folder / name).unlink()
        verdict = "int8" if check.passed else "stays float32, int8 refused"
        told.append(
            {
                "file": kept["file"],
                "kept": check.passed,
                "said": f"{name}: {verdict}; {found}",
                **check.to_json(),
            }
        )
    return told


def _frames(
    backbone: ImageBackbone, size: int, pictures: CheckPictures, channels: int, *, is_cine: bool
) -> tuple[FloatArray, list[int]]:
    """Prepared frames float32 [N, C, S, S] of that many channels, and the labels of the half that checks.

    Every other picture checks (files are often sorted by what they show), and no clip is in both halves.
    """
    halves: tuple[list[tuple[FloatArray, int | None]], list[tuple[FloatArray, int | None]]] = ([], [])
    seen = 0
    for place, pixels in enumerate(pictures.cines if is_cine else pictures.images):
        values = pixels.read().values
        check_pixels(values, Modality.CINE if is_cine else Modality.IMAGE, pixels.key)
        if (1 if values.ndim == 3 else values.shape[1]) != channels:
            continue
        taken = np.unique(np.linspace(0, len(values) - 1, FRAMES_A_CLIP if is_cine else 1).astype(int))
        label = pictures.labels[place] if pictures.labels and not is_cine else None
        halves[seen % 2].extend((one, label) for one in backbone.prepare(values[taken], size).numpy())
        seen += 1
    count = min(map(len, halves))
    chosen = [one for half in halves for one in half[:count]]
    frames = (
        np.stack([one for one, _ in chosen]) if chosen else np.zeros((0, channels, size, size), np.float32)
    )
    return frames, [label for _, label in chosen[count:] if label is not None]


def _read_labels(path: Path) -> dict[str, int]:
    try:
        with path.open(newline="") as file:
            known = {row["picture"]: int(row["label"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BadInput(f"{path.name} must be a CSV with the columns picture and label (0 or 1)") from fault
    if not known or set(known.values()) - {0, 1}:
        raise BadInput(f"{path.name}: labels must be 0 or 1")
    return known
