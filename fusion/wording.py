"""A paragraph in plain words, from a prediction's numbers alone. Associative, not causal; no identifiers."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.inputs import Modality
from fusion.prediction import Contribution, Driver

NAMES = {
    Modality.TABULAR: "the record",
    Modality.SERIES: "labs and vitals over time",
    Modality.TEXT: "the notes",
    Modality.GENOMICS: "genomic findings",
    Modality.IMAGE: "the image",
    Modality.CINE: "the cine",
    Modality.VOLUME: "the volume",
}
UNITS = {  # UCUM as people print it; any other is said as it is spelled
    "a": "years",
    "mm[Hg]": "mmHg",
    "Cel": "°C",
    "10*3/uL": "×10³/µL",
    "umol/L": "µmol/L",
    "ug/L": "µg/L",
    "kg/m2": "kg/m²",
    "cm2": "cm²",
    "d": "days",
}
WORTH_SAYING = 0.005  # half a point
MOST = 3
STANDS_OUT = 1.5  # times the weight it would have if all were alike


def slice_words(weights: Sequence[float], slices: Sequence[int], depth: int) -> str:
    """ "In the volume, slice 34 of 60 weighed most."; "" where no slice stands out."""
    if not weights or max(weights) < STANDS_OUT / len(weights):
        return ""
    return f"In the volume, slice {slices[list(weights).index(max(weights))] + 1} of {depth} weighed most."


def horizon_words(hours: float) -> str:
    """72 → "3 days"; 24 → "24 hours"."""
    if hours >= 48 and hours % 24 == 0:
        return f"{hours / 24:g} days"
    return f"{hours:g} hours"


def summarise_risk(
    *,
    label: str,
    horizon_hours: float,
    risk: float,
    low: float,
    high: float,
    level: float,
    base_rate: float,
    contributions: Sequence[Contribution],
    drivers: Sequence[Driver],
    missing: Sequence[Modality],
    pending: Sequence[Modality],
) -> str:
    """Sentences for one outcome; numbers in per cent and points (hundredths of risk).

    Every number in it is one of those given: nothing is computed here but rounding.
    """
    when = horizon_words(horizon_hours)
    is_said = label.endswith((f"within {when}", f"by {when}", f"by {horizon_hours / 24:.3g} days"))
    parts = [
        f"{label if is_said else f'{label} within {when}'}: estimated at {_percent(risk)}.",
        f"Among patients scored alike, {_percent(low)} to {_percent(high)} are expected to have it; "
        f"a range made this way holds for {_percent(level)} of groups of such patients.",
        f"The average where the model was trained is {_percent(base_rate)}.",
    ]
    for sign, words in ((1, "Raising the estimate"), (-1, "Lowering it")):
        told = sorted(
            (c for c in contributions if sign * c.points >= WORTH_SAYING), key=lambda c: -abs(c.points)
        )
        if told:
            parts.append(f"{words}: {_joined([f'{NAMES[c.modality]} ({_points(c.points)})' for c in told])}.")
    told_drivers = sorted(
        (d for d in drivers if abs(d.points) >= WORTH_SAYING and not d.text), key=lambda d: -abs(d.points)
    )[:MOST]
    if told_drivers:
        parts.append(f"Most associated with it: {_joined([_driver(d) for d in told_drivers])}.")
    if not contributions:
        parts.append("Nothing the model reads is known, so this is the average alone.")
    if waiting := [NAMES[m] for m in pending]:
        parts.append(f"Still being processed: {_joined(waiting)}.")
    if absent := [NAMES[m] for m in missing if m not in pending]:
        parts.append(f"Not available: {_joined(absent)}.")
    return " ".join(parts)


def left_out_words(reasons: Sequence[str]) -> str:
    """What is said of pictures that were not used; "" without one."""
    if not reasons:
        return ""
    told = _joined(sorted(set(reasons)))
    return f"A picture was left out: {told}." if len(reasons) == 1 else f"Pictures were left out: {told}."


def _driver(driver: Driver) -> str:
    unit = UNITS.get(driver.unit, driver.unit)
    value = "" if driver.value is None or unit in ("", "1") else f" {_figure(driver.value)} {unit}"
    if driver.value in (0.0, 1.0) and driver.unit in ("", "1"):
        value = " yes" if driver.value else " no"
    elif driver.value is not None and driver.unit in ("", "1"):
        value = f" {_figure(driver.value)}"
    return f"{driver.label}{value} ({_points(driver.points)})"


def _percent(value: float) -> str:
    """Whole per cents; a chance is never rounded to certainty."""
    if 0 < value < 0.005:
        return "under 1 %"
    if 0.995 <= value < 1:
        return "over 99 %"
    return f"{100 * value:.0f} %"


def _figure(value: float) -> str:
    """Three figures, as people write them: never in powers of ten."""
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 else f"{value:.0f}"


def _points(value: float) -> str:
    rounded = round(100 * value)
    unit = "point" if abs(rounded) == 1 else "points"
    return f"{rounded:+d} {unit}".replace("-", "−")


def _joined(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
