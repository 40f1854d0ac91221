"""Masks against brute force and against shapes whose size is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import BadInput
from fusion.imaging.overlap import dice, surface_distances, volume_error
from fusion.imaging.quantify import (
    Size,
    area,
    cardiothoracic_ratio,
    change,
    ejection_fraction,
    volume,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_dice_as_counted_by_hand(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((6, 7)) < share, rng.random((6, 7)) < share
    both = sum(1 for x, y in zip(a.flat, b.flat, strict=True) if x and y)
    size = sum(map(int, a.flat)) + sum(map(int, b.flat))
    assert dice(a, b) == pytest.approx(2 * both / size if size else 1.0)
    assert dice(a, b) == dice(b, a)
    assert dice(a, a) == 1.0


def test_surface_distances_against_every_pair_of_points() -> None:
    rng = np.random.default_rng(0)
    said, true = np.zeros((12, 9), bool), np.zeros((12, 9), bool)
    said[2:7, 1:6], true[3:10, 2:8] = True, True
    said[4, 3] = bool(rng.random() < 2)
    spacing = (2.0, 0.5)

    def edge(mask: np.ndarray) -> list[tuple[float, float]]:
        padded = np.pad(mask, 1)
        return [
            (r * spacing[0], c * spacing[1])
            for r, c in np.argwhere(mask)
            if not (padded[r, c + 1] and padded[r + 2, c + 1] and padded[r + 1, c] and padded[r + 1, c + 2])
        ]

    first, second = edge(said), edge(true)
    far = [min(math.dist(p, q) for q in second) for p in first] + [
        min(math.dist(p, q) for q in first) for p in second
    ]
    mean, worst = surface_distances(said, true, spacing)
    assert mean == pytest.approx(np.mean(far))
    assert worst == pytest.approx(np.percentile(far, 95))
    assert surface_distances(true, true, spacing) == (0.0, 0.0)
    assert all(math.isnan(d) for d in surface_distances(said, np.zeros_like(said), spacing))
    assert volume_error(said, true) == pytest.approx((25 - 42) / 42)


def test_areas_and_volumes_of_known_shapes_whatever_the_spacing() -> None:
    y, x = np.mgrid[0:200, 0:300]
    for spacing in ((0.5, 0.5), (1.0, 0.4)):
        circle = ((y - 100) * spacing[0]) ** 2 + ((x - 150) * spacing[1]) ** 2 <= 30**2
        assert area(circle, spacing).value == pytest.approx(math.pi * 30**2, rel=0.01)
    z, y, x = np.mgrid[0:40, 0:80, 0:80]
    spacing3 = (2.0, 1.0, 0.5)
    ball = ((z - 20) * 2) ** 2 + (y - 40) ** 2 + ((x - 40) * 0.5) ** 2 <= 15**2
    assert volume(ball, spacing3).value == pytest.approx(4 / 3 * math.pi * 15**3 / 1000, rel=0.02)
    assert volume(ball, spacing3).unit == "mL"


def test_what_cannot_be_known_is_not_guessed() -> None:
    found = area(np.ones((4, 4), bool), None)
    assert found.value is None
    assert "spacing" in found.why
    empty = np.zeros((8, 8), bool)
    assert cardiothoracic_ratio(empty, empty).value is None
    assert ejection_fraction(np.zeros((5, 8, 8), bool)).value is None
    with pytest.raises(BadInput, match="positive"):
        area(np.ones((4, 4), bool), (0.0, 1.0))
    with pytest.raises(BadInput, match="bool"):
        area(np.ones((4, 4)), (1.0, 1.0))  # type: ignore[arg-type]


def test_cardiothoracic_ratio_of_drawn_rectangles() -> None:
    lungs, heart = np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    lungs[10:90, 20:80], lungs[10:90, 120:180] = True, True
    heart[50:80, 70:150] = True
    assert cardiothoracic_ratio(heart, lungs).value == pytest.approx(80 / 160)
    with pytest.raises(BadInput, match="one picture"):
        cardiothoracic_ratio(heart[:50], lungs)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.65])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.0)])
def test_ejection_fraction_of_a_shrinking_ellipse(share: float, spacing: tuple[float, float]) -> None:
    """An ellipse that keeps its form: volume goes with the cube of its size."""
    y, x = np.mgrid[0:240, 0:240]
    frames = []
    for left in np.linspace(1, 1 - share, 6):
        scale = left ** (1 / 3)
        inside = ((y - 120) * spacing[0] / (100 * spacing[0] * scale)) ** 2 + ((x - 120) / (30 * scale)) ** 2
        frames.append(inside <= 1)
    found = ejection_fraction(np.stack(frames), spacing_mm=spacing)
    assert found.value == pytest.approx(100 * share, abs=2.0)


def test_change_between_two_dates() -> None:
    assert change(Size("volume", 10.0, "mL"), Size("volume", 12.5, "mL")).value == pytest.approx(25)
    assert change(Size("volume", None, "mL"), Size("volume", 12.5, "mL")).value is None
    with pytest.raises(BadInput, match="cannot be compared"):
        change(Size("volume", 10.0, "mL"), Size("area", 1.0, "mm2"))
