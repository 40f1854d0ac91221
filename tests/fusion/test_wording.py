"""The paragraph in plain words says the prediction's own numbers, names what is missing, and no cause."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion
from fusion import Contribution, Driver, Modality
from fusion.wording import NAMES, horizon_words, left_out_words, summarise_risk
from tests.fusion import simulated

CAUSAL = ("because", "caus", "due to", "leads to", "results in", "therefore", "treat", "should", "prevent")
NUMBER = re.compile(r"(?<![\w*])[−+-]?\d+(?:\.\d+)?")

shares = st.floats(0.001, 0.999)
points = st.floats(-0.6, 0.6)


def percents(value: float) -> set[str]:
    """How a share may be written."""
    return {f"{100 * value:.0f}", "1" if value < 0.005 else "", "99" if value >= 0.995 else ""}


def figure(value: float) -> str:
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 else f"{value:.0f}"


def signed(value: float) -> str:
    return f"{round(100 * value):+d}".replace("-", "−")


@settings(max_examples=60, deadline=None)
@given(
    risk=shares,
    low=shares,
    high=shares,
    base=shares,
    hours=st.sampled_from([24.0, 48.0, 336.0, 720.0]),
    added=st.lists(points, min_size=0, max_size=8),
    values=st.lists(st.tuples(points, st.floats(-500, 500)), max_size=6),
)
def test_every_number_is_one_of_the_predictions(
    risk: float,
    low: float,
    high: float,
    base: float,
    hours: float,
    added: list[float],
    values: list[tuple[float, float]],
) -> None:
    contributions = [Contribution(m, p, p) for m, p in zip(Modality, added, strict=False)]
    drivers = [Driver(Modality.TABULAR, f"f{i}", "Sodium", p, v, "mmol/L") for i, (p, v) in enumerate(values)]
    said = summarise_risk(
        label="Death", horizon_hours=hours, risk=risk, low=low, high=high, level=0.9, base_rate=base,
        contributions=contributions, drivers=drivers, missing=[], pending=[],
    )  # fmt: skip
    allowed = {"90", f"{hours:g}", f"{hours / 24:g}"}
    for share in (risk, low, high, base):
        allowed |= percents(share)
    allowed |= {signed(p) for p in added} | {signed(p) for p, _ in values} | {figure(v) for _, v in values}
    assert not re.search(r"\de[+-]?\d", said), "no powers of ten"
    assert set(NUMBER.findall(said)) <= allowed
    assert not any(word in said.lower() for word in CAUSAL)


def test_a_models_own_paragraphs_hold_only_its_own_numbers(bundle: fusion.Bundle) -> None:
    """The same through `predict`, where nothing but the prediction could have given a number."""
    for prediction in fusion.predict(bundle, [e.inputs for e in simulated.examples(6, 31)]):
        for o in prediction.outcomes:
            allowed = {"90", f"{o.horizon_hours:g}", f"{o.horizon_hours / 24:g}"}
            for share in (o.risk, o.low, o.high, o.base_rate):
                allowed |= percents(share)
            allowed |= {signed(c.points) for c in o.contributions} | {signed(d.points) for d in o.drivers}
            allowed |= {figure(d.value) for d in o.drivers if d.value is not None}
            assert set(NUMBER.findall(o.summary)) <= allowed
            for modality in prediction.missing:
                assert NAMES[modality] in o.summary


@pytest.mark.parametrize("missing", [[Modality.IMAGE], [Modality.TEXT, Modality.CINE], list(Modality)])
def test_what_is_missing_is_named(missing: list[Modality]) -> None:
    said = summarise_risk(
        label="Death", horizon_hours=24, risk=0.1, low=0.0, high=0.2, level=0.9, base_rate=0.1,
        contributions=[], drivers=[], missing=missing, pending=[],
    )  # fmt: skip
    assert said.rpartition("Not available: ")[2]
    assert all(NAMES[modality] in said for modality in missing)
    assert "this is the average alone" in said


def test_a_chance_is_never_rounded_to_certainty() -> None:
    said = summarise_risk(
        label="Death", horizon_hours=24, risk=0.001, low=0.0, high=0.999, level=0.9, base_rate=0.1,
        contributions=[], drivers=[], missing=[], pending=[],
    )  # fmt: skip
    assert "estimated at under 1 %" in said
    assert "0 % to over 99 %" in said


def test_pictures_that_were_left_out_are_told_with_the_reason() -> None:
    assert left_out_words([]) == ""
    assert left_out_words(["it seems to be upside-down"]) == (
        "A picture was left out: it seems to be upside-down."
    )
    assert left_out_words(["b", "a", "a"]) == "Pictures were left out: a and b."


def test_horizons_are_said_as_people_do() -> None:
    assert [horizon_words(h) for h in (24, 48, 336, 6)] == ["24 hours", "2 days", "14 days", "6 hours"]


def test_the_horizon_is_said_once_and_units_as_people_print_them() -> None:
    """A clinic's label may hold the horizon already; a driver's unit is UCUM."""
    drivers = [
        Driver(Modality.SERIES, "temperature", "Body temperature", 0.07, 38.0, "Cel"),
        Driver(Modality.SERIES, "diastolic_bp", "Diastolic blood pressure", 0.06, 37.0, "mm[Hg]"),
    ]
    told = {
        "horizon_hours": 336, "risk": 0.1, "low": 0.0, "high": 0.2, "level": 0.9, "base_rate": 0.1,
        "contributions": [], "drivers": drivers, "missing": [], "pending": [],
    }  # fmt: skip
    said = summarise_risk(label="Admission to intensive care within 14 days", **told)  # type: ignore[arg-type]
    assert said.startswith("Admission to intensive care within 14 days: estimated at 10 %.")
    assert "Body temperature 38 °C (+7 points) and Diastolic blood pressure 37 mmHg (+6 points)" in said
    step = summarise_risk(label="Death within 30 days: by 3.5 days", **{**told, "horizon_hours": 84})  # type: ignore[arg-type]
    assert step.startswith("Death within 30 days: by 3.5 days: estimated at 10 %.")
    said = summarise_risk(label="Admission to intensive care", **told)  # type: ignore[arg-type]
    assert said.startswith("Admission to intensive care within 14 days: estimated at 10 %.")
