"""Sizes measured in pixels, when they arrive: segmenters of the site, one row a size. Worker only (torch).

A segmenter is a folder under SEGMENTER_STORE: what `fusion.Segmenter.save` writes, and `measures.json`, which
says what it is for:

    {"title": "Chest sizes, trained on simulated radiographs",
     "imaging_modalities": ["CR", "DX"], "body_parts": ["CHEST", ""], "views": ["PA", "AP", ""],
     "moving": false, "sizes": [{"name": "cardiothoracic_ratio", "of": ["heart", "lungs"]}]}

`name` is one of `catalogue.MEASURED`; `of` names the segmenter's structures. Of a structure the largest piece
counts, of lungs the two largest. A size that cannot be known is
stored without a value, and with the reason. A row is never changed: another segmenter makes rows of its own.

A 3D segmenter (kind `unet_3d`) is given all slices of a CT or MR Series at once and gives volumes in mL, by
the true spacing of slices and pixels: {"name": "tumour_volume", "of": ["tumour"]}. `descriptions`, where
given, are words of which one must stand in the Series' description (["FLAIR"]): a network knows one sequence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings

import ehr
import fusion
from cds import catalogue
from cds.errors import Invalid
from cds.features.encoding import LEAST_SLICES
from cds.studies import clips, receiving
from cds.studies.models import Measurement, Outline, Series

logger = logging.getLogger(__name__)
MANIFEST = "measures.json"
MOST_FRAMES = 32  # of a cine; of a volume every slice is looked at
PAIR = "lungs"
Masks = Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]  # structure → bool [T, H, W]


@dataclass(frozen=True, slots=True)
class Method:
    """A registered segmenter. version: 8 hex digits over its weights and settings."""

    name: str
    version: str
    title: str
    imaging_modalities: frozenset[str]
    body_parts: frozenset[str]
    views: frozenset[str]
    descriptions: frozenset[str]
    is_moving: bool
    sizes: tuple[tuple[str, tuple[str, ...]], ...]
    segmenter: fusion.Segmenter

    @property
    def is_3d(self) -> bool:
        """Whether it looks at a whole volume."""
        return self.segmenter.config.is_3d

    def fits(self, series: Series) -> bool:
        """Whether it was made for pictures like these."""
        return (
            bool(series.clip_path)
            and series.imaging_modality in self.imaging_modalities
            and series.body_part.upper() in self.body_parts
            and series.view.upper() in self.views
            and (
                not self.descriptions or any(word in series.description.upper() for word in self.descriptions)
            )
            and (series.is_cine and bool(series.frame_ms)) == self.is_moving
            and (series.frames >= LEAST_SLICES or not self.is_3d)
        )


def methods() -> tuple[Method, ...]:
    """All registered segmenters, by name; loaded once for each state of their folders."""
    folder = Path(settings.SEGMENTER_STORE)
    manifests = sorted(folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    return tuple(_load(path.parent, path.stat().st_mtime_ns) for path in manifests)


@lru_cache(maxsize=8)
def _load(folder: Path, changed: int) -> Method:
    """Raises Invalid, naming the file and what is wrong in it."""
    try:
        about: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        sizes = tuple((str(size["name"]), tuple(size["of"])) for size in about["sizes"])
        segmenter = fusion.Segmenter.load(folder)
        method = Method(
            name=folder.name,
            version=segmenter.digest[:8],
            title=str(about["title"]),
            imaging_modalities=frozenset(about["imaging_modalities"]),
            body_parts=frozenset(part.upper() for part in about["body_parts"]),
            views=frozenset(view.upper() for view in about["views"]),
            descriptions=frozenset(word.upper() for word in about.get("descriptions", ())),
            is_moving=bool(about["moving"]),
            sizes=sizes,
            segmenter=segmenter,
        )
    except (OSError, ValueError, KeyError, TypeError, fusion.FusionError) as fault:
        raise Invalid(f"{folder.name}/{MANIFEST} or its segmenter cannot be used: {fault!r}") from fault
    known = {measured.name for measured in catalogue.MEASURED}
    for name, structures in sizes:
        if name not in known or name not in _SIZES:
            raise Invalid(
                f"{folder.name}/{MANIFEST}: no size {name!r}; there are {', '.join(sorted(_SIZES))}"
            )
        if missing := set(structures) - set(segmenter.config.structures):
            raise Invalid(f"{folder.name}/{MANIFEST}: the segmenter does not draw {', '.join(missing)}")
        if (name in _VOLUMES) != method.is_3d:
            raise Invalid(
                f"{folder.name}/{MANIFEST}: {name} is measured by a segmenter of kind "
                f"{'unet_3d' if name in _VOLUMES else 'unet or attention_unet'}, not {segmenter.config.kind}"
            )
    if method.is_3d and method.is_moving:
        raise Invalid(f"{folder.name}/{MANIFEST}: a 3D segmenter reads volumes, so `moving` must be false")
    return method


def measure(series: Series, *, now: datetime) -> list[str]:
    """Measure a Series with every method made for it; what failed, in words. Twice is as good as once."""
    failures: list[str] = []
    try:
        chosen = [method for method in methods() if method.fits(series)]
    except Invalid as fault:
        return [str(fault)]
    for method in chosen:
        key = {"series": series, "pixels_digest": series.pixels_digest, "method_version": method.version}
        if Outline.objects.filter(**key).exists():
            continue
        try:
            rows, masks, places = _rows(method, series)
        except fusion.FusionError as fault:
            failures.append(f"{method.title}: {fault}")
            continue
        for name, (size, confidence) in rows.items():
            Measurement.objects.get_or_create(
                **key,
                name=name,
                defaults={
                    "value": size.value,
                    "unit": size.unit,
                    "why": size.why[:300],
                    "confidence": confidence,
                    "method": method.title[:200],
                    "made_at": now,
                },
            )
        _keep_outline(method, series, masks, places, now=now)
    return failures


def _keep_outline(
    method: Method, series: Series, masks: Masks, places: Sequence[int], *, now: datetime
) -> None:
    """The masks the sizes came from, so that the archive can be given them (SEG)."""
    folder, name = f"{series.study_id}/{series.pk}", f"{series.pixels_digest}.{method.version}"
    sources = clips.frame_sources(series)
    Outline.objects.get_or_create(
        series=series,
        pixels_digest=series.pixels_digest,
        method_version=method.version,
        defaults={
            "structures": list(masks),
            "frames": [sources[place] for place in places] if sources else [],
            "path": clips.keep_masks(np.stack(list(masks.values()), axis=-1), folder, name),
            "method": method.title[:200],
            "made_at": now,
        },
    )


def _rows(
    method: Method, series: Series
) -> tuple[dict[str, tuple[fusion.Size, float | None]], Masks, list[int]]:
    """Each size by name, with how sure the masks are (mean probability inside them, in [0.5, 1]); the masks
    themselves; and which frames of the Clip they were drawn in."""
    clip = receiving.load_clip(series)
    most = len(clip.frames) if method.is_3d else MOST_FRAMES
    places = np.unique(np.linspace(0, len(clip.frames) - 1, min(most, len(clip.frames))).astype(int))
    structures = method.segmenter.config.structures
    seen = _look(method, clip, places)
    masks = {
        name: _pieces(drawn, 2 if name == PAIR else 1, whole=method.is_3d)
        for name, drawn in zip(structures, seen >= 0.5, strict=True)
    }
    sure = dict(zip(structures, seen, strict=True))
    found: dict[str, tuple[fusion.Size, float | None]] = {}
    for name, of in method.sizes:
        size = _plausible(name, _SIZES[name](masks, of, clip))
        inside = np.concatenate([sure[one][masks[one]] for one in of])
        found[name] = (size, float(inside.mean()) if inside.size and size.value is not None else None)
    return found, masks, [int(place) for place in places]


def _look(
    method: Method, clip: ehr.Clip, places: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Probability of each structure in those frames, float32 [S, T, H, W].

    Slices whose order and spacing are not known are no volume: nothing is drawn in them.
    """
    if not method.is_3d:
        return np.stack([method.segmenter.probabilities(clip.frames[one][None]) for one in places], axis=1)
    if _spacing(clip) is None:
        return np.zeros((len(method.segmenter.config.structures), *clip.frames.shape), np.float32)
    return method.segmenter.probabilities(clip.frames[None])


def _pieces(
    drawn: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], parts: int, *, whole: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The largest pieces of a mask [T, H, W]: of the whole volume, or of each frame."""
    return fusion.largest(drawn, parts) if whole else np.stack([fusion.largest(one, parts) for one in drawn])


def _spacing(clip: ehr.Clip) -> tuple[float, float, float] | None:
    """Between slices, rows and columns, mm; None unless all are known."""
    return (clip.slice_mm, *clip.spacing_mm) if clip.slice_mm and clip.spacing_mm else None


def _plausible(name: str, size: fusion.Size) -> fusion.Size:
    """Without a value where it lies outside what a body can have."""
    measured = next(one for one in catalogue.MEASURED if one.name == name)
    if size.value is None or measured.low <= size.value <= measured.high:
        return size
    why = f"{size.value:.3g} lies outside {measured.low:g} to {measured.high:g}: the masks cannot be right"
    return fusion.Size(size.name, None, size.unit, why)


def _cardiothoracic(masks: Masks, of: Sequence[str], clip: ehr.Clip) -> fusion.Size:
    return fusion.cardiothoracic_ratio(masks[of[0]][0], masks[of[1]][0])


def _lung_area(masks: Masks, of: Sequence[str], clip: ehr.Clip) -> fusion.Size:
    found = fusion.area(masks[of[0]][0], clip.spacing_mm, name="lung area")
    return fusion.Size(found.name, found.value / 100 if found.value is not None else None, "cm2", found.why)


def _ejection(masks: Masks, of: Sequence[str], clip: ehr.Clip) -> fusion.Size:
    return fusion.ejection_fraction(masks[of[0]], spacing_mm=clip.spacing_mm)


def _tumour_volume(masks: Masks, of: Sequence[str], clip: ehr.Clip) -> fusion.Size:
    """Nothing found is not 0 mL: a tumour that a network does not find may be there."""
    found = fusion.volume(masks[of[0]], _spacing(clip), name="tumour volume")
    return found if found.value != 0 else fusion.Size(found.name, None, found.unit, "no tumour was found")


_VOLUMES = frozenset({"tumour_volume"})  # sizes that need a 3D segmenter
_SIZES: dict[str, Callable[[Masks, Sequence[str], ehr.Clip], fusion.Size]] = {
    "cardiothoracic_ratio": _cardiothoracic,
    "lung_area": _lung_area,
    "measured_ejection_fraction": _ejection,
    "tumour_volume": _tumour_volume,
}
