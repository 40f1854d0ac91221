"""Memory under load is judged by the second half of the run."""

from __future__ import annotations

import itertools
import threading

import pytest

from benchmarks.hooks import memory


@pytest.mark.parametrize(
    ("samples", "risen"),
    [
        ([380, 430, 470, 480, 481, 482, 481, 483], 2),  # caches fill, then it stays
        ([380, 390, 400, 410, 420, 430, 440, 450], 30),  # as much at the end as at the beginning: a leak
        ([380, 500, 490, 480, 470, 460], 0),
        ([400, 400, 400, 400, 420, 400], 20),  # a peak counts
        ([400], 0),
        ([], 0),
    ],
)
def test_what_rises_in_the_second_half_counts(samples: list[int], risen: int) -> None:
    assert memory.rise(samples) == risen
    assert ("Flat (≤ 10 MiB): yes." in memory.in_words(samples)) is (risen <= memory.GOAL_MIB)


def test_samples_are_taken_from_the_beginning_to_the_end() -> None:
    counted, enough = itertools.count(100), threading.Event()

    def measure() -> int:
        at = next(counted)
        if at == 103:
            enough.set()
        return at

    with memory.Watch(measure, seconds=0.1) as watch:
        assert enough.wait(60)
    assert watch.samples == list(range(100, 100 + len(watch.samples)))
    assert len(watch.samples) >= 5
