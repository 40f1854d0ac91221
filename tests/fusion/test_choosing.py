"""The simplest that wins: few patients get the simple stack's answer, many what was learned (simulated)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion import FusionKind, Modality
from fusion.choosing import standard_errors
from fusion.encoders.linear import SIMPLE, WITHOUT, _parts, fit_linear
from fusion.first_stage import FirstStage
from fusion.fuse import LateFusion
from fusion.model import FusionModel
from fusion.second_stage import Told, fit_fusion
from tests.fusion import simulated

INF = float("inf")
FIRST = np.arange(20)  # the features that the simple recipe has
MODALITIES = (Modality.TABULAR, Modality.TEXT, Modality.IMAGE)


def test_rows_of_one_patient_count_as_one() -> None:
    rng = np.random.default_rng(0)
    simple, other = rng.random(50), rng.random(50) - 0.1
    once = standard_errors(simple, other)
    first, second = (np.repeat(losses, 2) for losses in (simple, other))
    assert standard_errors(first, second, np.repeat(np.arange(50), 2)) == pytest.approx(once)
    assert standard_errors(first, second) == pytest.approx(once * 2**0.5)
    assert standard_errors(other, simple) == pytest.approx(-once)
    assert standard_errors(simple, simple) == 0
    assert standard_errors(simple[:1], other[:1]) == 0, "one patient tells nothing"


def _drawn(count: int, beyond: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """40 features, of different scale; `beyond` is what the last ten tell."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, 40, generator=generator) * torch.linspace(0.5, 2, 40)
    logits = 0.8 * features[:, :4].sum(1) + beyond * features[:, 30:].sum(1)
    labels = (torch.rand(count, generator=generator) < torch.sigmoid(logits)).float()
    return features, labels[:, None]


def _fitted(count: int, beyond: float = 0.4, **more: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features, labels = _drawn(count, beyond)
    return fit_linear(features, labels, torch.zeros(1), np.arange(count) % 4, simple=FIRST, **more)


def test_a_voice_of_few_patients_is_the_simple_stack_s() -> None:
    features, labels = _drawn(30, 0.0)
    weights, offsets, chosen = _fitted(30, 0.0)
    assert tuple(chosen[0].tolist()) == SIMPLE
    assert bool((weights[0, 20:] == 0).all())
    stack = make_pipeline(StandardScaler(), LogisticRegression(C=1, tol=1e-8, max_iter=1000))
    stack.fit(features[:, FIRST].numpy(), labels[:, 0].numpy())
    ours = (features @ weights[0] + offsets).double().numpy()
    assert ours == pytest.approx(stack.decision_function(features[:, FIRST].numpy()), abs=5e-3)


def test_a_voice_of_many_patients_is_learned_and_as_loud() -> None:
    features, _ = _drawn(1000)
    weights, _, chosen = _fitted(1000)
    simple, _, held = _fitted(1000, margin=INF)
    assert tuple(held[0].tolist()) == SIMPLE
    assert float(chosen[0, 0]) > 0
    assert bool((weights[0, 30:] != 0).all())
    loud = [float((features @ w[0]).std()) for w in (weights, simple)]
    assert loud[0] == pytest.approx(loud[1], rel=0.2)


def test_margins_say_how_much_better_another_recipe_must_be() -> None:
    assert float(_fitted(30, margin=-INF)[2][0, 0]) > 0, "never the simplest"
    assert tuple(_fitted(1000, margin=INF)[2][0].tolist()) == SIMPLE, "always the simplest"


def test_of_two_folds_one_is_set_aside_and_the_other_still_chooses() -> None:
    features, labels = _drawn(1000)
    alone = np.ones(1000, np.int64)  # out of fold, this is all that an encoder sees
    _, _, chosen = fit_linear(features, labels, torch.zeros(1), alone, simple=FIRST)
    assert tuple(chosen[0].tolist()) != SIMPLE, "a thousand patients show that the simplest is not enough"
    _, _, chosen = fit_linear(features, labels, torch.zeros(1), alone)
    assert tuple(chosen[0].tolist()) != WITHOUT, "nor is a penalty taken unseen"
    made_up = np.full(1000, -1)
    _, _, chosen = fit_linear(features, labels, torch.zeros(1), made_up, simple=FIRST)
    assert tuple(chosen[0].tolist()) == SIMPLE, "made-up patients judge nobody"


def test_groups_that_are_dealt_anew_stay_whole() -> None:
    groups = np.repeat(np.arange(30), 3)
    parts = _parts(np.where(groups == 29, -1, 1), groups)
    assert set(parts[groups < 29].tolist()) == {0, 1, 2, 3}
    assert (parts[groups == 29] == -1).all()
    assert all(len(set(parts[groups == group])) == 1 for group in range(30))
    given = np.arange(90) % 5
    assert _parts(given, groups).tolist() == (given % 4).tolist()


def _told(count: int, worth: tuple[float, float, float]) -> Told:
    """Evidence of three modalities, as loud as each other; what each is worth."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(count, 3))
    labels = (rng.random(count) < 1 / (1 + np.exp(-(z @ np.array(worth))))).astype(np.float32)
    return (
        torch.from_numpy(z).float()[..., None],
        torch.ones(count, 3, dtype=torch.bool),
        torch.from_numpy(labels)[:, None],
    )


def _fused(told: Told, **extra: float) -> LateFusion:
    torch.manual_seed(0)
    config = simulated.make_config(
        modalities=MODALITIES, outcomes=simulated.OUTCOMES[:1], fusion=FusionKind.LATE, extra=extra
    )
    model = FusionModel(config)
    model.trained.fill_(True)
    fit_fusion(model, *told, None, config, lambda *_: None)
    return cast(LateFusion, model.fusion)


def _is_plain(fusion: LateFusion) -> bool:
    rest = float(fusion.redundancy.detach().abs().sum() + fusion.offset.detach().abs().sum())
    return bool((fusion.weight == 1).all()) and rest == 0


def test_few_patients_are_fused_by_the_plain_sum_and_many_by_learned_weights() -> None:
    worth = (1.4, 0.0, 0.5)  # the second is as loud as the first and says nothing
    assert _is_plain(_fused(_told(50, (1.0, 0.8, 0.9))))
    many = _fused(_told(1500, worth))
    assert not _is_plain(many)
    assert float(many.weight.detach()[0]) > float(many.weight.detach()[1]) + 0.3
    assert _is_plain(_fused(_told(1500, worth), fusion_margin=INF))
    assert not _is_plain(_fused(_told(50, (1.0, 0.8, 0.9)), fusion_margin=-INF))


def test_what_is_trained_beyond_the_optimum_is_heard_where_patients_out_of_fold_show_it() -> None:
    def is_better(count: int, gain: float) -> bool:
        rng = np.random.default_rng(0)
        signal = rng.normal(size=count)
        labels = (rng.random(count) < 1 / (1 + np.exp(-signal))).astype(np.float32)
        first, said = signal + rng.normal(size=count), signal + (1 - gain) * rng.normal(size=count)
        stage = SimpleNamespace(
            data=SimpleNamespace(
                batch=SimpleNamespace(present=torch.ones(count, 1, dtype=torch.bool)),
                labels=torch.from_numpy(labels)[:, None],
            ),
            folds=np.arange(count) % 5,
            groups=np.arange(count),
            model=SimpleNamespace(trained=torch.ones(1, 1, dtype=torch.bool), base_logit=torch.zeros(1)),
            config=SimpleNamespace(extra={}),
        )
        evidence = (torch.from_numpy(each).float()[:, None] for each in (first, said))
        return FirstStage._is_better(cast(FirstStage, stage), 0, *evidence)

    assert is_better(2000, 0.5)
    assert not is_better(2000, 0.0), "another voice, no better"
    assert not is_better(25, 0.1), "better perhaps: too few to tell"
