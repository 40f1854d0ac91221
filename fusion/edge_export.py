"""A bundle → a folder that `fusion.edge` runs without torch: checked ONNX files and their description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.backbones import ImageBackbone, TextBackbone
from fusion.batch import Batch, Tokens, collate
from fusion.bundle import Bundle
from fusion.config_json import config_to_json
from fusion.edge_int8 import CheckPictures, quantise_encoder
from fusion.edge_model import DESCRIPTION, FORMAT
from fusion.errors import BadInput
from fusion.export import LEAST_PICTURES, export_backbone, export_head, export_text
from fusion.inputs import FloatArray, Frames, Modality, NoteInput, PatientInputs, PixelInput, SeriesPoint
from fusion.sentences import HashingText


def export_bundle(bundle: Bundle, folder: Path, *, int8: CheckPictures | None = None) -> dict[str, float]:
    """Write everything `fusion.edge` needs; the largest difference from the original found per file.

    int8  pictures to make int8 copies of the image and cine encoders with: they take the place of the float32
          files where their check passes, and `edge.json` says under "int8" what was found
    Raises ExportMismatch (and leaves no edge.json) when a copy answers differently, BadInput.
    """
    if Modality.VOLUME in bundle.config.modalities:
        raise BadInput(
            "a model that reads volumes cannot be exported to a small machine: train one without the "
            f"modality {Modality.VOLUME.value!r}, or ask the workers"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    differences = {"encode.onnx, fuse.onnx": export_head(bundle.model, folder, _trial(bundle))}
    backbones: dict[str, Any] = {}
    for modality in bundle.config.modalities:
        if modality in bundle.versions:
            backbones[modality.value] = _export_backbone(bundle, modality, folder, differences)
    told = _quantise(bundle, backbones, folder, int8) if int8 is not None else []
    if bundle.scope is not None:
        arrays: dict[str, Any] = dict(bundle.scope.arrays())
        np.savez(folder / "scope.npz", **arrays)
    about = {
        "format": FORMAT,
        "config": config_to_json(bundle.config),
        "calibration": bundle.calibration.to_json(),
        "intervals": [interval.to_json() for interval in bundle.intervals],
        "scope": bundle.scope.to_json() if bundle.scope is not None else {},
        "backbones": backbones,
        "differences": differences,
        "int8": told,
        "weights_sha256": bundle.metadata.get("weights_sha256", ""),
        "intended_use": bundle.metadata.get("intended_use", ""),
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())
            if path.is_file()
        },
    }
    (folder / DESCRIPTION).write_text(json.dumps(about, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return differences


def _export_backbone(
    bundle: Bundle, modality: Modality, folder: Path, differences: dict[str, float]
) -> dict[str, Any]:
    if modality == Modality.TEXT:
        return _export_text(bundle.embedder.text_backbone, folder, differences)
    is_image = modality == Modality.IMAGE
    backbone = bundle.embedder.image_backbone if is_image else bundle.embedder.cine_backbone
    size = bundle.config.image_size if is_image else bundle.config.cine_size
    files = {}
    for channels in (1, 3) if is_image else (1,):
        name = f"{modality.value}-{channels}.onnx"
        frames = backbone.prepare(_picture(channels, size), size)
        differences[name] = export_backbone(backbone, folder / name, frames)
        files[str(channels)] = {"file": name, **_constants(backbone, channels)}
    return {"version": backbone.version, "files": files}


def _quantise(
    bundle: Bundle, backbones: dict[str, Any], folder: Path, pictures: CheckPictures
) -> list[dict[str, Any]]:
    """int8 copies where they pass; BadInput where there was nothing to try."""
    told: list[dict[str, Any]] = []
    config, embedder = bundle.config, bundle.embedder
    if Modality.IMAGE.value in backbones:
        files, backbone = backbones[Modality.IMAGE.value]["files"], embedder.image_backbone
        told += quantise_encoder(folder, files, backbone, config.image_size, pictures)
    if Modality.CINE.value in backbones:
        files, backbone = backbones[Modality.CINE.value]["files"], embedder.cine_backbone
        told += quantise_encoder(folder, files, backbone, config.cine_size, pictures, is_cine=True)
    if not told:
        raise BadInput("the model reads neither pictures nor clips: there is nothing to make int8")
    if not any("cosine" in one for one in told):
        raise BadInput(
            f"int8 needs {2 * LEAST_PICTURES} pictures or more of one kind, half to calibrate and half to "
            "check; " + "; ".join(one["said"] for one in told)
        )
    return told


def _constants(backbone: ImageBackbone, channels: int) -> dict[str, list[float]]:
    """Mean and scale of `prepare`, read off its answers to black and to white."""
    black, white = (
        backbone.prepare(np.full((1, channels, 8, 8), level, np.float32), 8)[0, :, 4, 4].double()
        for level in (0.0, 1.0)
    )
    scale = 1 / (white - black)
    return {"mean": (-black * scale).tolist(), "scale": scale.tolist()}


def _export_text(backbone: TextBackbone, folder: Path, differences: dict[str, float]) -> dict[str, Any]:
    if backbone.name == HashingText.name:
        return {"version": backbone.version}
    differences["text.onnx"], about = export_text(backbone, folder)
    return {"version": backbone.version, "width": backbone.width, "file": "text.onnx", **about}


def _trial(bundle: Bundle) -> Batch:
    """Two made-up patients with everything there is: to trace the model with, and to check the copy on."""
    batch = collate([_made_up(bundle, seed) for seed in (0, 1)], bundle.config, bundle.embedder)
    tokens = {
        modality: held if bool(held.known.any()) else _noisy(held, bundle.model.encoder(modality).is_fixed)
        for modality, held in batch.tokens.items()
    }
    return replace(batch, tokens=tokens)


def _noisy(tokens: Tokens, is_fixed: bool) -> Tokens:
    """Noise for a modality that `_made_up` has nothing of, such as one that was added; every token known."""
    patients, count, width = tokens.values.shape
    count = count if is_fixed else max(3, count)
    rng = np.random.default_rng(0)
    values = np.stack([_noise(rng, count, width) for _ in range(patients)])
    times = None if tokens.times_ms is None else torch.arange(count).float().expand(patients, -1)
    return Tokens(torch.from_numpy(values), torch.ones(patients, count, dtype=torch.bool), times)


def _made_up(bundle: Bundle, seed: int) -> PatientInputs:
    rng = np.random.default_rng(seed)
    config, versions = bundle.config, bundle.versions

    def pixels(modality: Modality, count: int, width: int) -> PixelInput:
        times = np.arange(count, dtype=np.float32) * 40
        return PixelInput(
            f"{modality}{seed}", _nothing, times, {versions[modality]: _noise(rng, count, width)}
        )

    def middle(specs: Sequence[Any]) -> dict[str, float | None]:
        return {spec.name: 0.0 if spec.low is None else float(spec.low) for spec in specs}

    has = set(config.modalities)
    return PatientInputs(
        key=str(seed),
        fields=middle(config.fields),
        genomics=middle(config.genomics),
        series=tuple(
            SeriesPoint(spec.name, hours, 0.0 if spec.low is None else float(spec.low))
            for spec in config.channels
            for hours in (1.0, 7.5)
        ),
        notes=tuple(
            NoteInput(
                f"{seed}",
                "",
                {
                    versions[Modality.TEXT]: rng.normal(size=(3, bundle.embedder.text_width)).astype(
                        np.float32
                    )
                },
            )
            for _ in range(Modality.TEXT in has)
        ),
        images=tuple(
            pixels(Modality.IMAGE, 1, bundle.embedder.image_width)
            for _ in range(2 if Modality.IMAGE in has else 0)
        ),
        cines=tuple(
            pixels(Modality.CINE, 5, bundle.embedder.cine_width) for _ in range(Modality.CINE in has)
        ),
    )


def _noise(rng: np.random.Generator, rows: int, width: int) -> FloatArray:
    return rng.normal(size=(rows, width)).astype(np.float32)


def _picture(channels: int, size: int) -> FloatArray:
    return np.random.default_rng(0).random((2, channels, size, size), dtype=np.float32)


def _nothing() -> Frames:
    raise BadInput("made-up patients have no pixels")
