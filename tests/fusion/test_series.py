"""Irregular labs and vitals: the order of points tells nothing, their times do, and units do not matter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import fusion
from fusion import FieldSpec, FusionConfig, Modality, OutcomeSpec, PatientInputs, SeriesPoint
from fusion.batch import Batch, Tokens, collate
from fusion.embedding import Embedder
from fusion.encoders.series import SeriesEncoder, _carried
from fusion.rows import GRID, SUMMARY
from tests.fusion import simulated

CONFIG = FusionConfig(
    outcomes=(OutcomeSpec("death", "Death", 720.0),),
    channels=(
        FieldSpec("lactate", "Lactate", "mmol/L", low=0.1, high=35),
        FieldSpec("hr", "Heart rate", "/min", low=15, high=300),
    ),
    modalities=(Modality.SERIES,),
    series_hours=48.0,
)


def built(*series: tuple[SeriesPoint, ...], config: FusionConfig = CONFIG) -> Batch:
    people = [PatientInputs(key=str(i), series=points) for i, points in enumerate(series)]
    return collate(people, config, Embedder(config))


def tokens(*series: tuple[SeriesPoint, ...], config: FusionConfig = CONFIG) -> Tokens:
    return built(*series, config=config).tokens[Modality.SERIES]


def stay(rng: np.random.Generator) -> tuple[SeriesPoint, ...]:
    """Some twenty values of two channels, at uneven times."""
    return tuple(
        SeriesPoint(channel, float(rng.uniform(0, 48)), float(middle * np.exp(0.2 * rng.normal())))
        for channel, middle, count in (("lactate", 2.0, 6), ("hr", 90.0, 14))
        for _ in range(count)
    )


def trained(count: int = 60, *, speaks: bool = True) -> SeriesEncoder:
    """Statistics of some stays; every learned number drawn at random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    encoder = SeriesEncoder(2, 8, 1).eval()
    rng = np.random.default_rng(0)
    encoder.fit_statistics(tokens(*(stay(rng) for _ in range(count))))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    encoder.end_training(helped=speaks)
    return encoder


def said(encoder: SeriesEncoder, held: Tokens) -> torch.Tensor:
    with torch.no_grad():
        return encoder(encoder.prepare(held)).logits[:, 0]


@pytest.mark.parametrize("speaks", [True, False])
@pytest.mark.parametrize("first", [48.0, 20.0], ids=["from the first step on", "late"])
def test_a_stay_with_channels_hidden_says_what_it_says_without_them(speaks: bool, first: float) -> None:
    encoder = trained(speaks=speaks)
    points = (
        SeriesPoint("hr", first, 130.0),
        SeriesPoint("lactate", 5.0, 9.0),
        *(p for p in stay(np.random.default_rng(4)) if p.hours_before < first),
    )
    with torch.no_grad():
        prepared = encoder.prepare(tokens(points))
        shown = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
        alike = prepared.rows(torch.zeros(4, dtype=torch.long)).hiding(shown)
        found = encoder.shown(prepared, shown)
        torch.testing.assert_close(found, encoder(alike).logits)
        assert len({round(float(one), 4) for one in found}) == 4


def test_the_order_of_points_never_matters() -> None:
    rng = np.random.default_rng(1)
    points = stay(rng)
    points = (*points, SeriesPoint("hr", 3.0, 80.0), SeriesPoint("hr", 3.0, 120.0))  # two at one moment
    shuffled = [tuple(points[i] for i in rng.permutation(len(points))) for _ in range(5)]
    held = tokens(points, *shuffled)
    assert bool((held.values == held.values[:1]).all())
    assert bool((held.known == held.known[:1]).all())


def test_when_a_value_was_taken_matters() -> None:
    encoder = trained()
    rising = tuple(SeriesPoint("lactate", 48.0 - 4 * i, 1.0 + i) for i in range(10))
    falling = tuple(SeriesPoint("lactate", 48.0 - 4 * i, 10.0 - i) for i in range(10))
    one, two = said(encoder, tokens(rising, falling))
    assert abs(float(one - two)) > 1e-3
    recent, old = (SeriesPoint("hr", 1.0, 130.0),), (SeriesPoint("hr", 40.0, 130.0),)
    one, two = said(encoder, tokens(recent, old))
    assert abs(float(one - two)) > 1e-3, "a value fades as it ages"


def test_summaries_counted_by_hand() -> None:
    points = (
        SeriesPoint("lactate", 30.0, 2.0),
        SeriesPoint("lactate", 18.0, 4.0),
        SeriesPoint("lactate", 6.0, 9.0),
    )
    row = dict(zip(SUMMARY, tokens(points).values[0, 0, : len(SUMMARY)].tolist(), strict=True))
    assert (row["last"], row["first"], row["hours_since"]) == (9.0, 2.0, 6.0)
    assert (row["mean_all"], row["lowest_all"], row["highest_all"]) == (5.0, 2.0, 9.0)
    assert row["spread_all"] == pytest.approx(np.std([2, 4, 9]), rel=1e-5)
    assert row["change_per_day_all"] == pytest.approx(7.0)  # 7 mmol/L in a day
    assert row["log_count_all"] == pytest.approx(math.log(4))
    assert (row["mean_half"], row["lowest_half"]) == (6.5, 4.0)  # within 24 h
    assert (row["mean_sixth"], row["highest_sixth"]) == (9.0, 9.0)  # within 8 h


def test_a_window_without_a_value_holds_the_last_one_and_no_change() -> None:
    row = dict(
        zip(
            SUMMARY,
            tokens((SeriesPoint("hr", 40.0, 90.0), SeriesPoint("hr", 30.0, 70.0))).values[0, 1].tolist(),
            strict=False,
        )
    )
    assert row["mean_sixth"] == row["lowest_sixth"] == row["highest_sixth"] == 70.0
    assert row["spread_sixth"] == row["change_per_day_sixth"] == row["log_count_sixth"] == 0.0


def test_the_grid_runs_from_oldest_to_newest_and_says_where_a_value_was() -> None:
    held = tokens(
        (SeriesPoint("hr", 48.0, 60.0), SeriesPoint("hr", 0.0, 100.0), SeriesPoint("hr", 1.0, 80.0))
    )
    grid, seen = held.values[0, 1, len(SUMMARY) :].split(GRID)
    assert seen.tolist() == [1.0, *[0.0] * (GRID - 2), 1.0]
    assert (float(grid[0]), float(grid[-1])) == (60.0, 90.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 4000.0, -1.0])
def test_a_value_out_of_range_or_no_number_is_refused_by_name_and_changes_nothing(value: float) -> None:
    points = stay(np.random.default_rng(2))
    plain, wild = built(points), built((*points, SeriesPoint("lactate", 2.0, value)))
    assert plain.refused == [()]
    assert wild.refused == [("lactate",)]
    assert torch.equal(plain.tokens[Modality.SERIES].values, wild.tokens[Modality.SERIES].values)
    alone = built((SeriesPoint("lactate", 2.0, value),))
    assert not bool(alone.present.any()), "a refused value is a missing one"


def test_what_lies_outside_the_hours_that_are_read_changes_nothing() -> None:
    points = stay(np.random.default_rng(3))
    outside = (SeriesPoint("hr", 48.5, 250.0), SeriesPoint("hr", -0.5, 250.0), SeriesPoint("other", 1.0, 1.0))
    assert torch.equal(tokens(points).values, tokens((*points, *outside)).values)


@pytest.mark.parametrize("held", [torch.nan, torch.inf, 1e9])
def test_what_stands_in_an_unknown_channel_never_matters(held: float) -> None:
    encoder = trained()
    one = tokens(tuple(p for p in stay(np.random.default_rng(4)) if p.channel == "hr"))
    assert one.known.tolist() == [[False, True]]
    other = Tokens(torch.where(one.known[..., None], one.values, torch.tensor(held)), one.known)
    torch.testing.assert_close(said(encoder, other), said(encoder, one), rtol=0, atol=0)
    prepared = encoder.prepare(one)
    hidden = Tokens(torch.where(one.known[..., None], prepared.values, torch.tensor(held)), one.known)
    with torch.no_grad():
        torch.testing.assert_close(encoder(hidden).logits, encoder(prepared).logits, rtol=0, atol=0)


def test_the_unit_of_a_channel_does_not_matter() -> None:
    """Lactate in mg/dL instead of mmol/L, statistics fitted in the same unit: the same answer."""
    factor = 9.008
    in_mg = dataclasses.replace(
        CONFIG, channels=(FieldSpec("lactate", "Lactate", "mg/dL", low=0.9, high=315), CONFIG.channels[1])
    )
    rng = np.random.default_rng(5)
    stays = [stay(rng) for _ in range(60)]
    other = [
        tuple(dataclasses.replace(p, value=p.value * factor) if p.channel == "lactate" else p for p in points)
        for points in stays
    ]
    first, second = trained(), trained()
    ours, theirs = tokens(*stays), tokens(*other, config=in_mg)
    first.fit_statistics(ours)
    second.fit_statistics(theirs)
    torch.testing.assert_close(said(first, ours), said(second, theirs), rtol=1e-3, atol=1e-3)


def test_a_network_that_did_not_help_is_not_heard() -> None:
    silent = trained(speaks=False)
    held = tokens(*(stay(np.random.default_rng(seed)) for seed in range(4)))
    before = said(silent, held)
    torch.nn.init.normal_(silent.said.weight, std=9.0)
    torch.testing.assert_close(said(silent, held), before, rtol=0, atol=0)
    silent.end_training(helped=True)
    assert not torch.allclose(said(silent, held), before)


def test_attributions_of_channels_sum_to_what_the_series_adds(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    (prediction,) = fusion.predict(bundle, [patient])
    for outcome in prediction.outcomes:
        whole = next(c.points for c in outcome.contributions if c.modality == Modality.SERIES)
        parts = [d for d in outcome.drivers if d.modality == Modality.SERIES]
        assert {d.name for d in parts} == {spec.name for spec in simulated.CHANNELS}
        assert sum(d.points for d in parts) == pytest.approx(whole, abs=1e-6)


def test_values_are_carried_on_as_step_by_step() -> None:
    """The doublings of the grid against the plain loop over its steps."""
    rng = np.random.default_rng(5)
    values = torch.from_numpy(rng.normal(size=(6, 4, GRID)).astype(np.float32))
    seen = torch.from_numpy((rng.random((6, 4, GRID)) < rng.random((6, 4, 1)) ** 2).astype(np.float32))
    seen[0], seen[1] = 0, 1
    last, age = _carried(values, seen)
    held, old = torch.zeros(6, 4), torch.ones(6, 4)
    for step in range(GRID):
        here = seen[..., step] > 0
        held = torch.where(here, values[..., step], held)
        old = torch.where(here, torch.zeros(()), old + 1 / GRID)
        torch.testing.assert_close(last[..., step], held, rtol=0, atol=0)
        torch.testing.assert_close(age[..., step], old, rtol=0, atol=1e-6)
