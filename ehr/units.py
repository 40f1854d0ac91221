# ruff: noqa: E501 - the table of spellings is read by column
"""One canonical UCUM unit per quantity; a value in any other unit is converted, or refused, never guessed.

Sources: UCUM 2.1 as defined by `ucumvert` on `pint`; molar masses and ranges in `ehr.quantities`; glycated
haemoglobin IFCC ↔ NGSP by the master equation NGSP[%] = 0.09148 · IFCC[mmol/mol] + 2.152 (NGSP/IFCC 2010).
A conversion is affine, y = slope · x + offset (temperature has an offset), found once per pair of units.
"""

from __future__ import annotations

import math
import re
import threading
from functools import cache, lru_cache
from typing import Any

from ehr import conversions
from ehr.errors import BadUnit
from ehr.quantities import Quantity, find_quantity, molar_mass

# Spellings that vendors send instead of UCUM (docs/oddities.md). Whole strings only, compared without case
# and without spaces, because inside a unit case matters ("K" is kelvin, "M" mega).
VENDOR_UNITS = {
    "k/ul": "10*3/uL", "k/mm3": "10*3/uL", "k/cumm": "10*3/uL", "thou/ul": "10*3/uL", "thou/mm3": "10*3/uL",
    "th/ul": "10*3/uL", "x10e3/ul": "10*3/uL", "x10(3)/mcl": "10*3/uL", "10^3/mcl": "10*3/uL", "giga/l": "10*9/L",
    "g/l(10^9)": "10*9/L", "gpt/l": "10*9/L", "tpt/l": "10*12/L", "m/ul": "10*6/uL", "mil/ul": "10*6/uL",
    "million/ul": "10*6/uL", "mill/mcl": "10*6/uL", "x10e6/ul": "10*6/uL", "cells/ul": "/uL", "cells/mcl": "/uL",
    "/cumm": "/uL", "/mm3": "/uL", "cells/mm3": "/uL",
    "mmhg": "mm[Hg]", "torr": "mm[Hg]", "cmh2o": "cm[H2O]", "kpa": "kPa",
    "bpm": "/min", "beats/min": "/min", "beats/minute": "/min", "breaths/min": "/min", "breaths/minute": "/min",
    "breathsperminute": "/min", "br/min": "/min", "rpm": "/min", "1/min": "/min",
    "degc": "Cel", "°c": "Cel", "degreesc": "Cel", "celsius": "Cel", "degreescelsius": "Cel",
    "degf": "[degF]", "°f": "[degF]", "degreesf": "[degF]", "fahrenheit": "[degF]", "degreesfahrenheit": "[degF]",
    "lb": "[lb_av]", "lbs": "[lb_av]", "pounds": "[lb_av]", "oz": "[oz_av]", "in": "[in_i]", "inch": "[in_i]",
    "inches": "[in_i]", "ft": "[ft_i]", "kgs": "kg", "cms": "cm",
    "percent": "%", "pct": "%", "fraction": "1", "ratio": "1", "score": "1", "points": "1", "(score)": "1",
    "inr": "1", "ph": "[pH]", "phunits": "[pH]", "units": "1",
    "mg%": "mg/dL", "g%": "g/dL", "gm/dl": "g/dL", "g/dl": "g/dL", "mg/dl": "mg/dL", "mcg/dl": "ug/dL",
    "mcg/l": "ug/L", "mcg/ml": "ug/mL", "ng/ml": "ng/mL", "pg/ml": "pg/mL", "ng/dl": "ng/dL", "ng/l": "ng/L",
    "mmol/l": "mmol/L", "umol/l": "umol/L", "nmol/l": "nmol/L", "pmol/l": "pmol/L", "meq/l": "meq/L", "mg/l": "mg/L",
    "iu/l": "[IU]/L", "u/l": "U/L", "units/l": "U/L", "iu/ml": "[IU]/mL", "miu/l": "m[IU]/L", "uiu/ml": "u[IU]/mL",
    "ukat/l": "ukat/L", "mosm/kg": "mosm/kg", "mosmol/kg": "mosm/kg", "mm/hr": "mm/h",
    "lpm": "L/min", "l/min": "L/min", "liters/min": "L/min", "litres/min": "L/min", "fl": "fL", "cc": "mL",
    "sec": "s", "seconds": "s", "secs": "s", "msec": "ms", "ml/min/1.73m2": "mL/min/{1.73_m2}",
    "ml/min/1.73m^2": "mL/min/{1.73_m2}", "ml/min/1.73": "mL/min/{1.73_m2}", "ng/mlfeu": "ng/mL{FEU}",
    "ug/mlfeu": "ug/mL{FEU}", "mcg/mlfeu": "ug/mL{FEU}", "mg/lfeu": "mg/L{FEU}", "ng/mlddu": "ng/mL{DDU}",
}  # fmt: skip

# The same letters mean something else in UCUM (coulomb, farad) than next to a thermometer.
# Hormones are reported in "mU" that are WHO international units, not enzyme units.
_ONLY_FOR = {"temperature": {"c": "Cel", "f": "[degF]"}, "tsh": {"mu/l": "m[IU]/L", "uu/ml": "u[IU]/mL"}}
_SPECIAL = {
    ("haemoglobin-a1c", "mmol/mol"): (0.09148, 2.152),
    ("albumin-creatinine-ratio", "mg/mmol"): (1000 / molar_mass("C4H7N3O"), 0.0),  # per mmol of creatinine
}
PLAIN_NUMBERS = ("1", "[pH]")
_CONDITIONS = ("FEU", "DDU")  # annotations that change the meaning of a value
_REGISTRY_LOCK = threading.Lock()


def canonical_unit(loinc_or_key: str) -> str | None:
    """The canonical UCUM unit of a LOINC code or quantity key; None when Tessera does not know the quantity."""
    quantity = find_quantity(loinc_or_key)
    return quantity.unit if quantity else None


def same_quantity(loinc_or_key: str) -> tuple[str, ...]:
    """Every LOINC code that means the same quantity, the preferred one first; the code itself if unknown."""
    quantity = find_quantity(loinc_or_key)
    return quantity.loincs if quantity else (loinc_or_key,)


def to_canonical(loinc_or_key: str, value: float, unit: str) -> tuple[float, str]:
    """`value` in the canonical unit of its quantity, and that unit.

    unit     as sent, UCUM or one of the spellings in `VENDOR_UNITS`; "" only for numbers without dimension
    returns  the pair as sent when the quantity is unknown to us
    raises   BadUnit: not a finite number; unit missing, unknown or of another kind; value impossible in it
    """
    if not math.isfinite(value):
        raise BadUnit("the value is not a finite number")
    quantity = find_quantity(loinc_or_key)
    if quantity is None:
        return value, unit
    slope, offset = _conversion(quantity.key, unit)
    if (slope, offset) != (1.0, 0.0):
        value = float(
            f"{value * slope + offset:.12g}"
        )  # 12 digits: 98.6 [degF] is 37 Cel, not 37.00000000000001
    if not math.isfinite(value):
        raise BadUnit(f"the value is not a finite number in {quantity.unit}")
    if (quantity.low is not None and value < quantity.low) or (
        quantity.high is not None and value > quantity.high
    ):
        low, high = ("?" if bound is None else f"{bound:g}" for bound in (quantity.low, quantity.high))
        raise BadUnit(
            f"{quantity.key} sent in {unit!r} is outside what is possible ({low} to {high} {quantity.unit})"
        )
    return value, quantity.unit


@lru_cache(maxsize=4096)
def _conversion(key: str, unit: str) -> tuple[float, float]:
    """(slope, offset) from `unit` to the canonical unit of the quantity `key`. Raises BadUnit."""
    quantity = find_quantity(key)
    assert quantity is not None
    sent = _ucum_spelling(quantity, unit)
    for condition in _CONDITIONS:  # a D-dimer in FEU is about twice the one in DDU: never mix
        if condition in sent and condition not in quantity.unit:
            raise BadUnit(f"unit {unit!r} does not belong to {quantity.key} ({quantity.unit})")
    plain, target = without_annotations(sent), without_annotations(quantity.unit)
    if plain == target:
        return 1.0, 0.0
    if target in PLAIN_NUMBERS:
        if plain == "1":
            return 1.0, 0.0
        raise BadUnit(f"{quantity.key} is a plain number, not in {unit!r}")
    if not sent:
        raise BadUnit(f"the unit is missing; {quantity.key} needs one such as {quantity.unit}")
    if (key, plain) in _SPECIAL:
        return _SPECIAL[key, plain]
    if key == "haemoglobin-a1c" and plain != "1":
        raise BadUnit(f"unit {unit!r} is neither % (NGSP) nor mmol/mol (IFCC), the units of {quantity.key}")
    known = conversions.conversions().get((key, plain, target))
    return known or by_library(quantity, plain, target, unit)


def _ucum_spelling(quantity: Quantity, unit: str) -> str:
    """The UCUM code that a vendor's spelling stands for."""
    if len(unit) > 60:
        raise BadUnit("the unit is longer than 60 characters")
    sent = unit.strip().replace("µ", "u").replace("μ", "u").replace("²", "2").replace("³", "3")
    folded = re.sub(r"\s+", "", sent).casefold()
    alias = _ONLY_FOR.get(quantity.key, {}).get(folded) or VENDOR_UNITS.get(folded)
    if alias:
        sent = alias
    sent = re.sub(r"^[xX×]?\s*10\s*[\^E](\d+)", r"10*\1", sent)  # x10^9/L, 10E3/uL
    sent = re.sub(r"^[xX×]\s*10\*", "10*", sent)
    if quantity.unit == "U/L":  # clinical chemistry writes [IU]/L for the enzyme unit U/L
        sent = re.sub(r"\[[iI]U\]", "U", sent)
    return sent


def without_annotations(unit: str) -> str:
    """UCUM without its {annotations}, which carry no dimension (UCUM §6); "1" when nothing is left."""
    return re.sub(r"(?<![\w\])])\{[^}]*\}|[/.]?\{[^}]*\}", "", unit) or "1"


def by_library(quantity: Quantity, plain: str, target: str, unit: str) -> tuple[float, float]:
    """(slope, offset) from `plain` to `target`, sent as `unit`. Raises BadUnit."""
    registry = _registry()
    if re.search(r"\d{4}", plain) or not plain.isascii():
        raise BadUnit(f"unit {unit!r} is not UCUM")
    scale = 1.0
    if re.search(r"eq\b", plain):
        if not quantity.valence:
            raise BadUnit(f"unit {unit!r} needs a charge, which {quantity.key} has not")
        plain, scale = re.sub(r"eq\b", "mol", plain), 1.0 / quantity.valence
    try:
        source = _pint_unit(registry, plain)
        goal = _pint_unit(registry, target)
        amount, mass = "[substance]", "[mass]"
        molar = registry.Quantity(quantity.molar_mass or 1.0, "gram/mole")
        ends = []
        for number in (0.0, 1.0):
            value = registry.Quantity(number, source)
            if quantity.molar_mass and value.dimensionality != goal.dimensionality:
                if amount in value.dimensionality and mass in goal.dimensionality:
                    value = value * molar
                elif mass in value.dimensionality and amount in goal.dimensionality:
                    value = value / molar
            ends.append(float(value.to(goal).magnitude))
    except Exception as error:  # pint, ucumvert and lark raise trees of their own on text they cannot read
        raise BadUnit(f"unit {unit!r} cannot be converted to {quantity.unit} ({quantity.key})") from error
    slope, offset = (ends[1] - ends[0]) * scale, ends[0]
    if not (math.isfinite(slope) and math.isfinite(offset)) or slope == 0.0:
        raise BadUnit(f"unit {unit!r} cannot be converted to {quantity.unit} ({quantity.key})")
    return slope, offset


def _pint_unit(registry: Any, ucum: str) -> Any:
    parsed = registry.from_ucum(ucum)
    if getattr(parsed, "magnitude", 1) != 1:  # "10*3/uL" parses as a number times a unit
        raise ValueError(f"{ucum} carries a number")
    return parsed.units if hasattr(parsed, "units") else parsed


@cache
def _load_registry() -> Any:
    from ucumvert import PintUcumRegistry  # a second to load, so only when a conversion is needed

    return PintUcumRegistry()


def _registry() -> Any:
    with _REGISTRY_LOCK:
        return _load_registry()
