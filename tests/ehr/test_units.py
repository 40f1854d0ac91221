# ruff: noqa: E501 - tables are read by row
"""One canonical unit per quantity: a table a laboratory can read, and laws that hold for all of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr import BadUnit, EhrError, canonical_unit, conversions, same_quantity, to_canonical
from ehr.quantities import BY_LOINC, QUANTITIES, find_quantity, molar_mass
from ehr.units import VENDOR_UNITS, _pint_unit, _registry, by_library, without_annotations

# LOINC, sent value and unit → expected in the canonical unit. Checked against the usual conversion tables
# (AMA Manual of Style, SI conversion; NGSP master equation).
CONVERSIONS = [
    ("2160-0", 100, "umol/L", 1.1312, "mg/dL"),  # creatinine, 88.4 umol/L per mg/dL
    ("38483-4", 1.2, "mg/dL", 1.2, "mg/dL"),
    ("59826-8", 0.1, "mmol/L", 1.1312, "mg/dL"),
    ("2345-7", 5.55, "mmol/L", 99.986, "mg/dL"),  # glucose, 18.016
    ("3094-0", 5, "mmol/L", 14.007, "mg/dL"),  # urea as its nitrogen, 2.8
    ("1975-2", 17.1, "umol/L", 0.99977, "mg/dL"),  # bilirubin
    ("2093-3", 5, "mmol/L", 193.33, "mg/dL"),  # cholesterol, 38.67
    ("2085-9", 1.5, "mmol/L", 58.0, "mg/dL"),  # a mass code sent in moles
    ("33914-3", 90, "mL/min", 90, "mL/min/{1.73_m2}"),  # the code says what it is divided by
    ("2571-8", 1, "mmol/L", 88.545, "mg/dL"),  # triglyceride as triolein
    ("17861-6", 2.5, "mmol/L", 10.0195, "mg/dL"),  # calcium
    ("17861-6", 5, "meq/L", 10.0195, "mg/dL"),  # two charges
    ("2823-3", 4, "meq/L", 4, "mmol/L"),  # one charge
    ("2524-7", 18.016, "mg/dL", 2, "mmol/L"),  # lactate, mass to moles
    ("718-7", 135, "g/L", 13.5, "g/dL"),
    ("718-7", 8.5, "mmol/L", 13.697, "g/dL"),  # haemoglobin monomer
    ("4544-3", 0.42, "L/L", 42, "%"),
    ("4548-4", 48, "mmol/mol", 6.543, "%"),  # IFCC to NGSP, not a ratio
    ("59261-8", 53, "mmol/mol", 7.0, "%"),
    ("8310-5", 98.6, "[degF]", 37, "Cel"),  # affine
    ("8331-1", 310.15, "K", 37, "Cel"),
    ("2703-7", 12, "kPa", 90.007, "mm[Hg]"),
    ("3150-6", 0.4, "1", 40, "%"),
    ("29463-7", 150, "[lb_av]", 68.039, "kg"),
    ("8302-2", 70, "[in_i]", 177.8, "cm"),
    ("1988-5", 1.2, "mg/dL", 12, "mg/L"),
    ("1920-8", 40, "[IU]/L", 40, "U/L"),
    ("1920-8", 0.5, "ukat/L", 30, "U/L"),
    ("10839-9", 30, "ng/L", 0.03, "ng/mL"),
    ("48065-7", 0.5, "ug/mL{FEU}", 500, "ng/mL{FEU}"),
    ("6690-2", 7500, "{cells}/uL", 7.5, "10*3/uL"),
    ("6690-2", 7.5, "10*9/L", 7.5, "10*3/uL"),
    ("8867-4", 70, "{beats}/min", 70, "/min"),
    ("14959-1", 3, "mg/mmol", 26.52, "mg/g"),  # albumin per creatinine
    ("3016-3", 2, "u[IU]/mL", 2, "m[IU]/L"),
    ("2744-1", 7.4, "", 7.4, "[pH]"),
    ("9269-2", 15, "", 15, "{score}"),
    ("creatinine", 1, "mg/dL", 1, "mg/dL"),  # by our key
]

# What vendors print instead of UCUM (docs/oddities.md).
SPELLINGS = [
    ("6690-2", 7.5, "K/uL", 7.5), ("6690-2", 7.5, "x10^9/L", 7.5), ("6690-2", 7.5, "10^3/µL", 7.5),
    ("6690-2", 7.5, "10E3/uL", 7.5), ("6690-2", 7.5, "x10*9/L", 7.5), ("789-8", 4.5, "M/uL", 4.5),
    ("8480-6", 120, "mmHg", 120), ("8480-6", 120, "mm Hg", 120), ("8867-4", 70, "bpm", 70),
    ("9279-1", 16, "breaths/minute", 16), ("8310-5", 37, "degC", 37), ("8310-5", 37, "°C", 37),
    ("8310-5", 37, "C", 37), ("8310-5", 98.6, "F", 37), ("2160-0", 1, "MG/DL", 1), ("2160-0", 1, "mg%", 1),
    ("2951-2", 140, "mEq/L", 140), ("2951-2", 140, "MMOL/L", 140), ("2744-1", 7.4, "pH", 7.4),
    ("29463-7", 150, "lbs", 68.0388555), ("33914-3", 90, "mL/min/1.73m2", 90), ("3016-3", 2, "mU/L", 2),
    ("1988-5", 5, "MG/L", 5), ("1920-8", 40, "IU/L", 40), ("5902-2", 12, "sec", 12), ("4537-7", 10, "mm/hr", 10),
]  # fmt: skip

# Never silently used.
REFUSED = [
    ("2160-0", 1.0, "", "missing"),
    ("2160-0", 1.0, "kg", "cannot be converted"),
    ("2160-0", 1.0, "meq/L", "charge"),
    ("2160-0", 1.0, "nonsense", "cannot be converted"),
    ("6690-2", 7.5, "K", "cannot be converted"),  # kelvin
    ("1751-7", 40.0, "mmol/L", "cannot be converted"),  # albumin: no molar mass agreed
    ("48065-7", 1.0, "ng/mL{DDU}", "does not belong"),
    ("6301-6", 100.0, "%", "plain number"),  # Quick's per cent is not an INR
    ("8310-5", 98.6, "Cel", "outside"),  # Fahrenheit under the wrong name
    ("3150-6", 0.4, "%", "outside"),  # a fraction under the wrong name
    ("2708-6", 97.0, "1", "outside"),
    ("2160-0", -1.0, "mg/dL", "outside"),
    ("2160-0", math.nan, "mg/dL", "finite"),
    ("2160-0", math.inf, "mg/dL", "finite"),
    ("4548-4", 48.0, "mg/dL", "neither"),
    ("8867-4", 1.0, "10*999999999/min", "UCUM"),
    ("8867-4", 1.0, "x" * 61, "60 characters"),
]


@pytest.mark.parametrize(("loinc", "value", "unit", "expected", "canonical"), CONVERSIONS)
def test_conversion(loinc: str, value: float, unit: str, expected: float, canonical: str) -> None:
    got, in_unit = to_canonical(loinc, value, unit)
    assert in_unit == canonical == canonical_unit(loinc)
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("loinc", "value", "unit", "expected"), SPELLINGS)
def test_spellings_of_vendors(loinc: str, value: float, unit: str, expected: float) -> None:
    assert to_canonical(loinc, value, unit)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("loinc", "value", "unit", "reason"), REFUSED)
def test_what_does_not_fit_is_refused(loinc: str, value: float, unit: str, reason: str) -> None:
    with pytest.raises(BadUnit, match=reason):
        to_canonical(loinc, value, unit)


def test_an_unknown_quantity_is_kept_as_sent() -> None:
    assert to_canonical("99999-9", 1.5, "furlong") == (1.5, "furlong")
    assert canonical_unit("99999-9") is None
    assert same_quantity("99999-9") == ("99999-9",)


def test_a_refusal_names_the_quantity_and_never_the_value() -> None:
    with pytest.raises(BadUnit) as caught:
        to_canonical("8310-5", 98.625, "Cel")
    assert "temperature" in str(caught.value)
    assert "98.6" not in str(caught.value)


def test_fahrenheit_comes_out_round() -> None:
    assert to_canonical("8310-5", 98.6, "[degF]") == (37.0, "Cel")


def test_codes_of_one_quantity_belong_together() -> None:
    assert set(same_quantity("59408-5")) >= {"2708-6", "59408-5"}
    assert "2703-7" not in same_quantity("2705-2")  # arterial and venous oxygen are not the same
    assert len(BY_LOINC) == sum(len(quantity.loincs) for quantity in QUANTITIES.values()), (
        "a code in two rows"
    )


@pytest.mark.parametrize(
    "loinc", sorted(set(BY_LOINC) - {"3150-6"})
)  # the one irregular code, as US Core has it
def test_every_loinc_code_has_its_check_digit(loinc: str) -> None:
    """LOINC's check digit is mod 10 (Luhn): a mistyped code in the table cannot pass."""
    digits, check = loinc.split("-")
    doubled = "".join(str(int(d) * 2) if i % 2 == 0 else d for i, d in enumerate(reversed(digits)))
    assert (10 - sum(map(int, doubled)) % 10) % 10 == int(check)


def test_molar_masses_are_those_of_the_books() -> None:
    assert molar_mass("C4H7N3O") == pytest.approx(113.12, abs=0.01)
    assert molar_mass("C6H12O6") == pytest.approx(180.156, abs=0.01)
    assert molar_mass("C63H88CoN14O14P") == pytest.approx(1355.4, abs=0.2)


@pytest.mark.parametrize("key", sorted(QUANTITIES))
def test_every_canonical_unit_is_one_that_ucum_knows(key: str) -> None:
    unit = without_annotations(QUANTITIES[key].unit)
    if unit not in ("1", "[pH]"):  # [pH] is UCUM; the library has no definition of it
        _pint_unit(_registry(), unit)


@given(st.sampled_from(sorted(QUANTITIES)), st.floats(0.001, 1.0))
def test_canonical_values_stay_as_they_are(key: str, share: float) -> None:
    quantity = find_quantity(key)
    assert quantity
    low, high = quantity.low or 0.0, quantity.high or 1000.0
    value = low + (high - low) * share
    assert to_canonical(key, value, quantity.unit) == (value, quantity.unit)


@given(
    st.floats(0.01, 5000), st.sampled_from([("creatinine", 11.312, "umol/L"), ("glucose", 0.0555, "mmol/L")])
)
def test_conversion_is_linear(value: float, case: tuple[str, float, str]) -> None:
    key, _, unit = case
    one = to_canonical(key, 1.0, unit)[0]
    assert to_canonical(key, value, unit)[0] == pytest.approx(value * one, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(QUANTITIES)), st.floats(), st.text(max_size=30))
def test_only_ehr_errors_escape(key: str, value: float, unit: str) -> None:
    try:
        got, canonical = to_canonical(key, value, unit)
    except EhrError:
        return
    assert math.isfinite(got)
    assert canonical == canonical_unit(key)


# -- the table of conversions that were worked out beforehand -------------------------------------------
def test_the_table_says_what_the_library_says() -> None:
    some: dict[tuple[str, bool], tuple[str, str, str]] = {}  # two units a quantity, one of them in moles
    for row in conversions.conversions():
        assert row[2] == without_annotations(QUANTITIES[row[0]].unit), f"{row}: write the table anew"
        some[row[0], "mol" in row[1] or "eq" in row[1]] = row
    assert len(some) > 140
    for key, unit, target in some.values():
        ends = by_library(QUANTITIES[key], unit, target, unit)
        assert ends == pytest.approx(conversions.conversions()[key, unit, target], rel=1e-12, abs=1e-12), key


def test_the_table_holds_what_hospitals_send() -> None:
    known = conversions.conversions()
    assert ("creatinine", "umol/L", "mg/dL") in known
    assert ("temperature", "[degF]", "Cel") in known
    assert ("potassium", "meq/L", "mmol/L") in known
    units = {unit for _, unit, _ in known}
    targets = {without_annotations(one.unit) for one in QUANTITIES.values()}
    assert {without_annotations(unit) for unit in VENDOR_UNITS.values()} <= units | targets


def test_what_is_not_in_the_table_is_asked_of_the_library() -> None:
    assert ("glucose", "kg/m3", "mg/dL") not in conversions.conversions()
    assert to_canonical("glucose", 1.0, "kg/m3") == (100.0, "mg/dL")
