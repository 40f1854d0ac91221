"""Private training: what ε is, what noise does, what one patient can do, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.accountants.analysis import rdp

from fusion import (
    BadInput,
    Bundle,
    FusionKind,
    Modality,
    NotEnoughData,
    UnknownEncoder,
    evaluate,
    predict,
    train,
)
from fusion.batch import collate
from fusion.metrics import auroc
from fusion.predict import risks
from fusion.privacy import (
    MOMENTUM,
    RATE,
    Course,
    epsilon_of,
    features_of,
    noise_for,
    noisy_base_logit,
    one_row_each,
    private_linear,
)
from tests.fusion.simulated import examples, make_config

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook", "ignore:Optimal order is the largest")

COURSE = Course(0.25, 40)


def some(count: int, seed: int, features: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=draw)
    chance = torch.sigmoid(2 * x[:, 0] - x[:, 1])
    return x, (torch.rand(count, generator=draw) < chance).float()[:, None]


def fitted(x: torch.Tensor, y: torch.Tensor, **changes: Any) -> torch.Tensor:
    asked = {"course": COURSE, "noise": 0.0, "clip": 1.0, "draw": torch.Generator().manual_seed(1), **changes}
    return private_linear(x, y, torch.zeros(y.shape[1]), **asked)


def test_epsilon_is_that_of_the_renyi_bound_over_all_that_was_released() -> None:
    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    spent = rdp.compute_rdp(q=0.01, noise_multiplier=1.1, steps=10_000, orders=orders)
    once = rdp.compute_rdp(q=1.0, noise_multiplier=1.1, steps=1, orders=orders)
    wanted, _ = rdp.get_privacy_spent(orders=orders, rdp=np.array(spent) + np.array(once), delta=1e-5)
    assert epsilon_of(Course(0.01, 10_000), 1.1, 1e-5) == pytest.approx(wanted, rel=1e-6)
    assert (
        epsilon_of(Course(0.01, 10_000), 1.1, 1e-5) > 5.6
    )  # published for the steps alone (TF privacy, ~5.67)


def test_one_gaussian_release_costs_what_the_formula_says() -> None:
    """RDP of the Gaussian mechanism is α / 2σ²; two of them at σ, turned into (ε, δ) by the best α."""
    sigma, delta = 4.0, 1e-5
    alphas = np.linspace(1.01, 200, 200_000)
    plain = (2 * alphas / (2 * sigma**2)) + np.log1p(-1 / alphas) - np.log(delta * alphas) / (alphas - 1)
    assert epsilon_of(Course(1.0, 1), sigma, delta) == pytest.approx(float(plain.min()), rel=0.01)


def test_more_noise_fewer_steps_and_larger_delta_cost_less() -> None:
    noises = [epsilon_of(COURSE, noise, 1e-5) for noise in (0.5, 1.0, 2.0, 8.0)]
    assert noises == sorted(noises, reverse=True)
    assert epsilon_of(Course(0.25, 400), 1.0, 1e-5) > noises[1]
    assert epsilon_of(COURSE, 1.0, 1e-3) < noises[1]
    assert epsilon_of(COURSE, 0.0, 1e-5) == math.inf


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_noise_for_an_epsilon_keeps_within_it(epsilon: float) -> None:
    config = make_config(epochs=20)
    noise = noise_for(epsilon, config, 2000)
    reached = epsilon_of(Course.of(config, 2000), noise, config.dp_delta)
    assert 0.97 * epsilon < reached <= epsilon
    with pytest.raises(BadInput, match="within reach"):
        noise_for(0.0, config, 2000)


def test_without_noise_it_is_ordinary_clipped_training() -> None:
    x, y = some(60, 0)
    draw, weight, velocity = torch.Generator().manual_seed(1), torch.zeros(1, 5), None
    kept = []
    for step in range(COURSE.steps):
        taken = torch.nonzero(torch.rand(60, generator=draw) < COURSE.sample_rate).squeeze(1)
        each = (torch.sigmoid(x[taken] @ weight.T) - y[taken]) * x[taken]
        each = each * (1.0 / each.norm(dim=1).clamp(min=1e-9)).clamp(max=1.0)[:, None]
        gradient = each.sum(0, keepdim=True) / 15 + weight / 60
        velocity = gradient if velocity is None else MOMENTUM * velocity + gradient
        weight = weight - RATE * velocity
        if step >= COURSE.steps // 2:
            kept.append(weight)
    torch.testing.assert_close(fitted(x, y), torch.stack(kept).mean(0), atol=1e-4, rtol=1e-3)


def test_no_patient_moves_a_step_by_more_than_the_clip() -> None:
    """However far out a patient is, one step without momentum's past differs by at most rate × clip /
    batch."""
    x, y = some(40, 0)
    wild = torch.cat([x, torch.full((1, 5), 1e4)])
    course = Course(1.0, 1)
    without = fitted(x, y, course=course, clip=0.5)
    same_batch = fitted(wild, torch.cat([y, torch.ones(1, 1)]), course=course, clip=0.5)
    moved = (same_batch * 41 - without * 40).norm()  # expected batch sizes are 41 and 40
    assert float(moved) <= RATE * 0.5 + 1e-4


def test_noise_is_as_large_as_stated() -> None:
    """With features of zero only noise is left: after one step, rate × noise × clip / batch."""
    x, y = torch.zeros(100, 2000), torch.zeros(100, 1)
    moved = fitted(x, y, course=Course(1.0, 1), noise=3.0, clip=2.0)
    assert float(moved.std()) == pytest.approx(RATE * 3.0 * 2.0 / 100, rel=0.1)
    counts = torch.stack(
        [noisy_base_logit(torch.ones(400, 1), 1.0, torch.Generator().manual_seed(s)) for s in range(50)]
    )
    assert float(counts.std()) > 0
    exact = noisy_base_logit(torch.tensor([[1.0], [0.0], [0.0], [torch.nan]]), 0.0, torch.Generator())
    assert float(torch.sigmoid(exact)[0]) == pytest.approx(1 / 3)


def test_a_batch_of_nobody_is_a_step_of_noise_alone() -> None:
    x, y = some(3, 0)
    assert torch.isfinite(fitted(x, y, course=Course(0.01, 20), noise=1.0)).all()


def test_labels_that_are_unknown_teach_nothing() -> None:
    x, y = some(50, 0)
    unknown = torch.cat([y, torch.full((50, 1), torch.nan)], dim=1)
    both = fitted(x, unknown)
    torch.testing.assert_close(both[0], fitted(x, y)[0])
    assert both[1].abs().max() == 0


def test_one_row_of_each_patient_is_used() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    kept = one_row_each(groups, 0)
    assert sorted(groups[i] for i in kept) == ["a", "b", "c"]
    assert kept == sorted(kept)
    chosen = {one_row_each(groups, seed)[0] for seed in range(20)}
    assert len(chosen) > 1


PRIVATE = {"epochs": 20, "dp_noise": 1.0, "dp_clip": 1.0}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return train(examples(160, 1), examples(60, 2), make_config(**PRIVATE))


def test_a_private_bundle_states_its_epsilon(bundle: Bundle, tmp_path: Path) -> None:
    said = bundle.metadata["privacy"]
    assert said["epsilon"] == pytest.approx(epsilon_of(Course.of(bundle.config, 160), 1.0, 1e-5))
    assert (said["patients"], said["delta"], said["noise_multiplier"]) == (160, 1e-5, 1.0)
    assert any("tuning patients" in line for line in said["does_not_cover"])
    assert bundle.metadata["cohort"]["events"] == {}
    bundle.save(tmp_path)
    assert Bundle.load(tmp_path).metadata["privacy"] == json.loads(json.dumps(said))
    assert evaluate(bundle, examples(40, 3), comparison=False).privacy == said


def test_what_was_trained_is_what_the_model_says(bundle: Bundle) -> None:
    """Every modality's evidence is linear in its features, and the fusion adds it up."""
    batch = collate([e.inputs for e in examples(12, 5)], bundle.config, bundle.embedder)
    features = features_of(bundle.model, batch)
    linear = [bundle.model.encoder(m).trunk.linear for m in bundle.config.modalities]
    weights = torch.cat(
        [*(one.weight for one in linear), torch.stack([one.bias for one in linear], 1)], dim=1
    )
    with torch.no_grad():
        torch.testing.assert_close(bundle.model(batch), bundle.model.base_logit + features @ weights.T)


def test_any_subset_still_yields_a_risk(bundle: Bundle) -> None:
    one = examples(1, 9, missing=0.0)[0]
    assert 0 <= predict(bundle, [one.inputs])[0].outcomes[0].risk <= 1
    batch = collate([one.inputs], bundle.config, bundle.embedder)
    for modality in bundle.config.modalities:
        assert 0 <= risks(bundle, batch, only=(modality,))[0, 0] <= 1
    nothing = replace(one.inputs, fields={}, genomics={}, series=(), notes=(), images=(), cines=())
    assert 0 <= risks(bundle, collate([nothing], bundle.config, bundle.embedder))[0, 0] <= 1


def test_it_learns_and_less_under_much_noise() -> None:
    config = make_config(
        modalities=(Modality.TABULAR, Modality.IMAGE), epochs=30, outcomes=make_config().outcomes[:1]
    )
    taught, tuned, held = (
        examples(500, 1, missing=0.0),
        examples(80, 2, missing=0.0),
        examples(300, 3, missing=0.0),
    )
    labels = np.array([e.labels["icu"] for e in held], float)
    scores = []
    for noise in (0.5, 400.0):
        bundle = train(taught, tuned, replace(config, dp_noise=noise))
        scores.append(
            auroc(risks(bundle, collate([e.inputs for e in held], config, bundle.embedder))[:, 0], labels)
            or 0
        )
    assert scores[0] > 0.68
    assert scores[1] < scores[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fusion": FusionKind.GATED}, "must be 'late'"),
        ({"finetune": "head"}, "finetune must be 'none'"),
        ({"summarise": True}, "summarise"),
        ({"scope_pictures": 10}, "scope_pictures"),
        ({"dp_delta": 0.0}, "dp_delta"),
        ({"dp_clip": 0.0}, "dp_clip"),
    ],
)
def test_what_would_look_at_patients_again_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        train(examples(40, 1), examples(30, 2), make_config(**{**PRIVATE, **change}))


def test_it_needs_tuning_patients_and_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**PRIVATE, modalities=(Modality.TABULAR,))
    with pytest.raises(NotEnoughData, match="standardises and calibrates"):
        train(examples(60, 1), examples(5, 2), config)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(UnknownEncoder, match=r"tessera\[privacy\]"):
        train(examples(60, 1), examples(30, 2), config)
