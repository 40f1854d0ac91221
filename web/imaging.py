"""Pictures, cines and measured sizes, as the panel draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cds.risk.seen import ImageView, MeasurementView
from web import charts, words

ALIKE = 0.01  # of the largest weight: frames that differ by less are not told apart
AREAS = ("insertion", "deletion", "random_insertion", "random_deletion")


@dataclass(frozen=True, slots=True)
class StripView:
    """Attention over the frames a cine model kept."""

    bars: tuple[charts.Bar, ...]
    rows: tuple[tuple[int, str], ...]  # frame number from 1, share
    kept: str  # indices joined by commas
    peak: int | None  # index of the frame with the largest weight; None where all weigh alike


@dataclass(frozen=True, slots=True)
class PictureView:
    """A Series in the viewer or the player."""

    image: ImageView
    title: str
    label: str
    facts: tuple[str, ...]
    sanity: str
    strip: StripView | None
    scale_mm: float | None  # millimetres across the picture's width


@dataclass(frozen=True, slots=True)
class MeasurementRow:
    """A size measured in a picture, in words.

    usual    the usual range; "" where none is known
    outside  "above" or "below" it, or ""
    """

    seen: MeasurementView
    value: str
    usual: str
    outside: str
    confidence: str
    change: str


def pictures(
    images: Sequence[ImageView], series_id: str
) -> tuple[PictureView | None, tuple[PictureView, ...]]:
    """The Series asked for, or else the newest that was used; and the others."""
    if not images:
        return None, ()
    by_use = sorted(images, key=lambda image: not image.used)  # stable: newest first within each
    chosen = next((image for image in images if image.series_id == series_id), by_use[0])
    return _picture(chosen), tuple(_picture(image) for image in by_use if image is not chosen)


def measurement(one: MeasurementView) -> MeasurementRow:
    """The size, its usual range, and its change since the earlier one."""
    unit = words.unit(one.unit)
    low, high = one.reference
    usual, outside = "", ""
    if low is not None and high is not None:
        usual = f"{words.figure(low)} to {words.figure(high)}"
    elif high is not None:
        usual = f"up to {words.figure(high)}"
    elif low is not None:
        usual = f"from {words.figure(low)}"
    if one.value is not None:
        is_above, is_below = high is not None and one.value > high, low is not None and one.value < low
        outside = "above" if is_above else "below" if is_below else ""
    change = ""
    if one.value is not None and one.earlier:
        change = f"{words.signed_percent(100 * (one.value - one.earlier) / one.earlier)} since"
    return MeasurementRow(
        seen=one,
        value=f"{words.size(one.value, one.unit)} {unit}".strip() if one.value is not None else "not known",
        usual=usual,
        outside=outside,
        confidence=words.percent(one.confidence) if one.confidence is not None else "",
        change=change,
    )


def _picture(image: ImageView) -> PictureView:
    kind = {"CR": "Radiograph", "DX": "Radiograph", "US": "Ultrasound", "CT": "CT", "MR": "MR"}.get(
        image.imaging_modality, image.imaging_modality or "Image"
    )
    title = " · ".join(part for part in (kind, image.body_part.capitalize(), image.view) if part)
    facts = [
        f"{image.columns} × {image.rows} pixels",
        f"laterality {image.laterality}" if image.laterality else "",
        f"{image.spacing_row_mm:.3g} mm a pixel" if image.spacing_row_mm else "pixel size unknown",
        *image.remarks,
        "" if image.used else f"not used for this score{f': {image.left_out}' if image.left_out else ''}",
    ]
    moving = f", cine of {image.frames} frames" if image.is_cine else ""
    return PictureView(
        image=image,
        title=title,
        label=f"{title}{moving}",
        facts=tuple(fact for fact in facts if fact),
        sanity=_sanity(image),
        strip=_strip(image),
        scale_mm=image.spacing_row_mm * image.columns if image.spacing_row_mm else None,
    )


def _sanity(image: ImageView) -> str:
    """What the map was asked, in a sentence: whether to rely on it, then the figures behind that."""
    held = image.heat_map
    if held is None or held.passed is None:
        return "Not checked against a random model."
    if not held.passed:
        why = str(held.sanity.get("why") or "it looks like that of a random model")
        said = f"Do not rely on this map: {why}."
    else:
        said = "It differs from that of a random model, as it should."
    if "insertion" not in held.sanity:
        return said
    shown = {name: float(str(held.sanity[name])) for name in AREAS}
    if held.passed:
        said += " The places it marks matter more than places drawn at random."
    return (
        f"{said} It shows where the picture {held.sanity.get('direction', 'raises')} the estimate. "
        f"Mean estimate with its places given back first {shown['insertion']:.2f} "
        f"(random places {shown['random_insertion']:.2f}), taken away first {shown['deletion']:.2f} "
        f"(random places {shown['random_deletion']:.2f})."
    )


def _strip(image: ImageView) -> StripView | None:
    if not image.weights:
        return None
    weights = [weight for _, weight in image.weights]
    are_alike = max(weights) - min(weights) < ALIKE * max(weights)
    peak = None if are_alike else max(image.weights, key=lambda pair: pair[1])[0]
    return StripView(
        bars=charts.strip(weights, has_peak=not are_alike),
        rows=tuple((index + 1, f"{weight * 100:.1f} %") for index, weight in image.weights),
        kept=",".join(str(index) for index, _ in image.weights),
        peak=peak,
    )
