"""The simulated survival table: its command prints it, and what it says of the three ways is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from benchmarks.study import pages, simulated_survival
from benchmarks.study.__main__ import PARTS


def rows(said: str) -> np.ndarray:
    """float64 [4, 5]: hours, true, survival, counted as alive, left out."""
    found = re.findall(r"^\| (\d+ \|.*) \|$", said, flags=re.MULTILINE)
    return np.array([[float(cell) for cell in row.split(" | ")] for row in found])


def test_survival_recovers_the_curve_and_the_simple_ways_do_not() -> None:
    said = simulated_survival.run(Path("icu_physionet2012"), repeats=1, seed=0, quick=True)
    hours, true, survival, alive, left_out = rows(said).T
    assert hours.tolist() == list(simulated_survival.HOURS)
    assert np.abs(survival - true).max() < 0.03
    assert alive[-1] < true[-1] - 0.2
    assert left_out[-1] > true[-1] + 0.1


def test_the_kept_table_is_the_one_its_command_prints() -> None:
    assert PARTS["icu_physionet2012"]["survival_simulated"] == simulated_survival.__name__
    kept = pages.find("icu_physionet2012_survival_simulated")
    assert kept is not None
    assert "--part survival_simulated --seed 0" in kept
    followed = simulated_survival.follow_ups(simulated_survival.PATIENTS, 0)
    _, true, _, alive, left_out = rows(kept).T
    for shown, found in (
        (true, [simulated_survival.true_risk(h) for h in simulated_survival.HOURS]),
        (alive, simulated_survival.counted_alive(followed, simulated_survival.HOURS)),
        (left_out, simulated_survival.left_out(followed, simulated_survival.HOURS)),
    ):
        assert np.abs(shown - found).max() < 0.0006
