"""Clips by a network over frames alone: it learns an order that no mean sees, from the rows it was given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from benchmarks.study import cine
from fusion import Bundle, CinePooling, Modality
from fusion.batch import Tokens
from fusion.metrics import auroc
from fusion.model import FusionModel
from tests.fusion import simulated


def clips(count: int, labels: np.ndarray) -> Tokens:
    """A number that rises through the clip, or falls: its mean and its movement are alike."""
    rng = np.random.default_rng(0)
    way = np.where(labels > 0.5, 1.0, -1.0)[:, None, None]
    values = np.zeros((count, 8, cine.COMPONENTS), np.float32)
    values[..., :1] = way * np.linspace(-1, 1, 8)[:, None] + 0.2 * rng.normal(size=(count, 8, 1))
    times = torch.arange(8.0).expand(count, 8) * 40
    return Tokens(torch.from_numpy(values), torch.ones(count, 8, dtype=torch.bool), times)


@pytest.mark.parametrize("pooling", cine.COURSES)
def test_a_course_by_itself_sees_the_order_of_frames(pooling: CinePooling) -> None:
    labels = np.tile([0.0, 1.0], 60)
    tokens, rows = clips(120, labels), np.arange(120)
    network = cine._trained(tokens, labels, rows[:60], rows[60:90], pooling, 0, 40)
    with torch.no_grad():
        said = network(tokens.rows(torch.from_numpy(rows[90:])))[:, 0].numpy()
    assert (auroc(said.astype(float), labels[90:]) or 0) > 0.95


def test_a_course_is_heard_where_it_has_weights() -> None:
    model = FusionModel(simulated.make_config())
    bundle = cast(Bundle, SimpleNamespace(model=model))
    assert not cine.is_heard(bundle), "before it is trained it says nothing"
    weight = model.encoder(Modality.CINE).get_submodule("said").get_parameter("weight")
    torch.nn.init.ones_(weight)
    assert cine.is_heard(bundle)


def test_the_arm_speaks_of_those_held_and_learns_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = list[set[int]]()

    def trained(
        tokens: Tokens, labels: np.ndarray, fitted: np.ndarray, watched: np.ndarray, *_: object
    ) -> cine.Alone:
        learned.append({*fitted.tolist(), *watched.tolist()})
        assert not set(fitted.tolist()) & set(watched.tolist())
        return cine.Alone(CinePooling.GRU, 0.0)

    monkeypatch.setattr(cine, "_trained", trained)
    examples = [e for e in simulated.examples(60, 1, missing=0.0) if e.labels.get("icu") is not None]
    config = simulated.make_config(outcomes=simulated.OUTCOMES[:1])
    arm = cine.by_itself(examples, config, CinePooling.GRU, "alone", epochs=1)
    held, seen = np.arange(10), np.arange(10, len(examples))
    (said,) = arm(seen, held, 0).values()
    assert len(learned) == cine.WATCHED
    assert all(rows == set(seen.tolist()) for rows in learned)
    assert said.risks.shape == (10,)
