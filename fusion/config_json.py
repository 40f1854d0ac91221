"""FusionConfig ↔ JSON, and what a bundle declares of its inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.config import (
    Augment,
    CinePooling,
    FieldKind,
    FieldSpec,
    FusionConfig,
    FusionKind,
    Imbalance,
    OutcomeSpec,
    VolumeKind,
)
from fusion.inputs import Modality
from fusion.rows import GRID, SUMMARY
from fusion.widths import folder_name, volume_width, width_of


def config_to_json(config: FusionConfig) -> dict[str, Any]:
    """Plain data; every field of the config."""
    data = dataclasses.asdict(config)
    data["modalities"] = [m.value for m in config.modalities]
    data["fusion"] = FusionKind(config.fusion).value
    data["cine_pooling"] = CinePooling(config.cine_pooling).value
    data["volume_kind"] = VolumeKind(config.volume_kind).value
    data["imbalance"] = Imbalance(config.imbalance).value
    data["augment"] = Augment(config.augment).value
    data["image_weights"] = Path(config.image_weights).name  # where it lies is the machine's affair
    data["text_backbone"] = folder_name(config.text_backbone)  # the same
    for name in ("outcomes", "fields", "genomics", "channels"):
        data[name] = [dict(spec) for spec in data[name]]
    for name in ("fields", "genomics", "channels"):
        for spec in data[name]:
            spec["kind"] = FieldKind(spec["kind"]).value
    return data


def config_from_json(data: Mapping[str, Any]) -> FusionConfig:
    """The inverse. Raises TypeError, KeyError or ValueError for what is not a config."""
    settled = dict(data)
    settled["outcomes"] = tuple(OutcomeSpec(**spec) for spec in data["outcomes"])
    for name in ("fields", "genomics", "channels"):
        settled[name] = tuple(FieldSpec(**{**spec, "kind": FieldKind(spec["kind"])}) for spec in data[name])
    settled["modalities"] = tuple(Modality(name) for name in data["modalities"])
    settled["fusion"] = FusionKind(data["fusion"])
    settled["imbalance"] = Imbalance(data.get("imbalance", Imbalance.CLASS_WEIGHTS))
    settled["augment"] = Augment(data.get("augment", Augment.NONE))
    settled["cine_pooling"] = CinePooling(data.get("cine_pooling", CinePooling.GRU))
    settled["volume_kind"] = VolumeKind(data.get("volume_kind", VolumeKind.SLICES))
    settled["scope_fields"] = tuple(data.get("scope_fields", ()))
    settled.setdefault("view_flags", False)  # bundles from before views were told apart
    return FusionConfig(**settled)


def declared_inputs(config: FusionConfig, encoders: Mapping[str, str]) -> list[dict[str, Any]]:
    """Per modality what goes in: shape, dtype, range, unit, code."""
    declared: list[dict[str, Any]] = []
    for modality in config.modalities:
        entry: dict[str, Any] = {"modality": modality.value, "dtype": "float32", "missing": "allowed"}
        if modality in (Modality.TABULAR, Modality.GENOMICS):
            specs = config.fields if modality == Modality.TABULAR else config.genomics
            entry |= {"shape": [len(specs)], "fields": [_spec(spec) for spec in specs]}
        elif modality == Modality.SERIES:
            entry |= {
                "shape": [len(config.channels), len(SUMMARY) + 2 * GRID],
                "summary": list(SUMMARY),
                "grid": GRID,
                "hours": config.series_hours,
                "fields": [_spec(spec) for spec in config.channels],
            }
        elif modality == Modality.TEXT:
            width = width_of(config.text_backbone)
            entry |= {"shape": ["sentences", width], "encoder": encoders.get(modality.value)}
        elif modality == Modality.IMAGE:
            entry |= {
                "shape": [config.max_images, width_of(config.image_backbone)],
                "pixels": {"shape": ["H", "W"], "range": [0, 1], "resized_to": config.image_size},
                "encoder": encoders.get(modality.value),
            }
        elif modality == Modality.VOLUME:
            entry |= {
                "shape": [config.volume_slices, volume_width(config)],
                "pixels": {
                    "shape": ["D", "H", "W"],
                    "range": [0, 1],
                    "spacing": "mm, of slices, rows and columns",
                    "resampled_to": {
                        "size": config.volume_size,
                        "extent_mm": config.volume_extent_mm,
                        "step_mm": config.volume_step_mm,
                        "slices": config.volume_slices,
                    },
                },
                "encoder": encoders.get(modality.value),
            }
        else:
            entry |= {
                "shape": [config.cine_frames, width_of(config.cine_backbone)],
                "pixels": {"shape": ["T", "H", "W"], "range": [0, 1], "resized_to": config.cine_size},
                "encoder": encoders.get(modality.value),
            }
        declared.append(entry)
    return declared


def declared_outputs(config: FusionConfig) -> list[dict[str, Any]]:
    """Per outcome what comes out."""
    return [
        {
            "name": spec.name,
            "label": spec.label,
            "horizon_hours": spec.horizon_hours,
            **({"event": spec.event} if spec.event else {}),
            "quantity": "calibrated probability",
            "range": [0, 1],
            "interval_level": config.interval_level,
        }
        for spec in config.outcomes
    ]


def _spec(spec: FieldSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "label": spec.label,
        "unit": spec.unit,
        "code": spec.code,
        "kind": spec.kind.value,
        "range": [0, 1] if spec.kind == FieldKind.BINARY else [spec.low, spec.high],
    }
