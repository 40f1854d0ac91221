"""A tumour's size as a field: known boxes, and nobody measured by a network that saw their outline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.study import measured
from fusion import Drawn, Example, PatientInputs
from fusion.imaging.segment import SegmenterConfig
from fusion.research.brain_lgg import HEIGHT_MM, PIXEL_MM


def box(mark: int, columns: int = 30) -> Drawn:
    """Ten slices of 256 pixels a side; the tumour is a box of 4 x 20 x columns, with a speck apart."""
    mask = np.zeros((1, 10, 256, 256), bool)
    mask[0, 3:7, 100:120, 50 : 50 + columns] = True
    mask[0, 0, 0, 0] = True
    return Drawn(np.full((3, 10, 256, 256), mark / 100, np.float32), mask)


def test_a_box_has_the_volume_of_a_box_and_fills_it() -> None:
    sizes = measured.sizes_of(box(0).masks[0])
    assert sizes["tumour_volume"] == pytest.approx(4 * 20 * 30 * PIXEL_MM**2 * HEIGHT_MM / 9 / 1000)
    assert sizes["tumour_filling"] == 1
    assert set(measured.sizes_of(np.zeros((5, 8, 8), bool)).values()) == {None}
    assert {spec.name for spec in measured.FIELDS} == set(sizes)


def test_nobody_is_measured_by_a_network_that_saw_their_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    class Network:
        def __init__(self, seen: Sequence[Drawn]) -> None:
            self.seen = {round(100 * float(d.values[0, 0, 0, 0])) for d in seen}

        def probabilities(self, values: np.ndarray) -> np.ndarray:
            mark = round(100 * float(values[0, 0, 0, 0]))
            assert mark not in self.seen
            asked.append(mark)
            return np.where(box(0, 30 + mark).masks, 0.9, 0.1)

    def train(fit: Sequence[Drawn], watched: Sequence[Drawn], config: SegmenterConfig) -> Network:
        assert config.is_3d
        assert len(fit) > len(watched) > 0
        return Network([*fit, *watched])

    monkeypatch.setattr(measured, "train_segmenter", train)
    found = measured.measure([(f"P{n}", box(n, 30 + n)) for n in range(10)], seed=0, quick=False)
    assert sorted(asked) == list(range(10)), "everybody once"
    assert found.by_network == found.by_people
    assert set(found.agreement.values()) == {1.0}
    assert "median error of the volume 0 %, rank correlation 1.00" in measured._agreement(found)


def test_sizes_join_the_fields_or_stand_alone() -> None:
    patient = Example(PatientInputs(key="P1", fields={"age": 40.0}), {"death": 1}, "P1")
    sizes = {"P1": {"tumour_volume": 12.0}}
    (both,), (alone,) = (measured.with_sizes([patient], sizes, alone=is_alone) for is_alone in (False, True))
    assert both.inputs.fields == {"age": 40.0, "tumour_volume": 12.0}
    assert alone.inputs.fields == {"tumour_volume": 12.0}
    (unknown,) = measured.with_sizes([patient], {})
    assert unknown.inputs.fields == {"age": 40.0}
