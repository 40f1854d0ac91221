"""Fields and genomics: missing stays missing, units do not matter, and what each voice is there to see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from fusion import FieldSpec, FusionConfig, Modality, OutcomeSpec, PatientInputs
from fusion.batch import Tokens, collate
from fusion.embedding import Embedder
from fusion.encoders import boosting
from fusion.encoders.linear import fit_linear
from fusion.encoders.record import LEAST_FOR_BINS, RecordEncoder
from fusion.encoders.trees import DEPTH, LEAVES, TREES, Trees
from fusion.metrics import auroc

OUTCOME = OutcomeSpec("death", "Death", 720.0)


def fitted(values: torch.Tensor, known: torch.Tensor, labels: torch.Tensor) -> RecordEncoder:
    """An encoder fitted to its optimum on [N, F] values; nothing is trained by steps."""
    torch.manual_seed(0)
    encoder = RecordEncoder(values.shape[1], 1, 8, 1)
    tokens = Tokens(values[..., None], known)
    encoder.fit_statistics(tokens)
    base = torch.logit(labels.mean()).reshape(1)
    folds = np.arange(len(labels)) % 4
    encoder.fit_first(encoder.prepare(tokens), labels[:, None], base, folds, seed=0)
    return encoder.eval()


def said(encoder: RecordEncoder, values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(encoder.prepare(Tokens(values[..., None], known))).logits[:, 0]


def drawn(count: int, fields: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Standard normal values, a quarter unknown."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, fields, generator=generator)
    return values, torch.rand(count, fields, generator=generator) > 0.25, generator


def happens(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(len(logits), generator=generator) < torch.sigmoid(logits)).float()


@pytest.mark.parametrize("count", [200, 700], ids=["logistic alone", "with bins and trees"])
@pytest.mark.parametrize("held", [torch.nan, torch.inf, -1e9, 0.3])
def test_what_stands_in_an_unknown_place_never_matters(count: int, held: float) -> None:
    values, known, generator = drawn(count)
    labels = happens(1.5 * torch.where(known, values, 0.0)[:, 0], generator)
    plain = torch.where(known, values, 0.0)
    other = torch.where(known, values, torch.tensor(held))
    first, second = fitted(plain, known, labels), fitted(torch.nan_to_num(other, nan=7.0), known, labels)
    assert bool(first.trees.is_fitted.all()) == (count >= 600)
    torch.testing.assert_close(said(first, other, known), said(first, plain, known), rtol=0, atol=0)
    if np.isfinite(held):
        torch.testing.assert_close(said(second, plain, known), said(first, plain, known), atol=1e-4, rtol=0)


def test_the_unit_of_a_field_does_not_matter() -> None:
    """Factors (mmol/L or mg/dL), with bins and trees; factor and offset (Celsius or Fahrenheit), without:
    rounding of the offset may move a value across a split."""
    values, known, generator = drawn(700)
    labels = happens(1.5 * values[:, 0], generator)
    other = values * torch.tensor([1000.0, 0.01, 18.0])
    one = said(fitted(values, known, labels), values, known)
    torch.testing.assert_close(said(fitted(other, known, labels), other, known), one, rtol=1e-4, atol=1e-4)
    celsius, seen, labels = 37 + values[:250], known[:250], labels[:250]
    fahrenheit = 32 + 1.8 * celsius
    one = said(fitted(celsius, seen, labels), celsius, seen)
    two = said(fitted(fahrenheit, seen, labels), fahrenheit, seen)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)


def test_which_values_are_known_tells_by_itself() -> None:
    values, known, generator = drawn(500)
    labels = happens(2.0 * known[:, 1].float() - 1.5, generator)
    score = auroc(said(fitted(values, known, labels), values, known).double().numpy(), labels.numpy())
    assert score is not None
    assert score > 0.65
    unknown, there = known.clone(), known.clone()
    unknown[:, 1], there[:, 1] = False, True
    encoder = fitted(values, known, labels)
    assert bool((said(encoder, values, there) > said(encoder, values, unknown)).all())


def test_a_risk_that_rises_at_both_ends_is_told_once_there_are_values_enough() -> None:
    """Piecewise-linear bins: 500 known values are enough for them, 250 leave one straight line."""
    scores = {}
    for count in (250, 500):
        values, _, generator = drawn(count, fields=1)
        known = torch.ones(count, 1, dtype=torch.bool)
        labels = happens(2.5 * (values[:, 0].abs() - 0.8), generator)
        asked, _, later = drawn(1000, fields=1, seed=1)
        truth = happens(2.5 * (asked[:, 0].abs() - 0.8), later)
        told = said(fitted(values, known, labels), asked, torch.ones(1000, 1, dtype=torch.bool))
        scores[count] = auroc(told.double().numpy(), truth.numpy())
    assert LEAST_FOR_BINS in range(250, 501)
    assert scores[500] > 0.8
    assert scores[250] < 0.65


def test_a_dosage_adds_up_and_an_unread_variant_is_not_the_reference() -> None:
    """Genomics: 0, 1, 2 copies rise in step; `None` is neither of them."""
    rng = np.random.default_rng(0)
    copies = rng.integers(0, 3, 250)
    chances = 1 / (1 + np.exp(-(1.2 * copies - 1.2)))
    labels = torch.from_numpy((rng.random(250) < chances).astype(np.float32))
    config = FusionConfig(
        outcomes=(OUTCOME,),
        genomics=(FieldSpec("rs1", "A variant", "{copies}", low=0, high=2), FieldSpec("prs", "Score")),
        modalities=(Modality.GENOMICS,),
    )

    def tokens(genomes: list[dict[str, float | None]]) -> Tokens:
        people = [PatientInputs(key=str(i), genomics=g) for i, g in enumerate(genomes)]
        return collate(people, config, Embedder(config)).tokens[Modality.GENOMICS]

    learned = tokens(
        [{"rs1": float(c) if i % 5 else None, "prs": rng.normal()} for i, c in enumerate(copies)]
    )
    encoder = fitted(learned.values[..., 0], learned.known, labels)
    asked = tokens([{"rs1": c, "prs": 0.0} for c in (0.0, 1.0, 2.0, None, float("nan"), 3.0)])
    zero, one, two, unread, not_a_number, impossible = said(
        encoder, asked.values[..., 0], asked.known
    ).tolist()
    assert zero < one < two
    assert two - one == pytest.approx(one - zero, rel=1e-3)
    assert unread == not_a_number == impossible
    assert abs(unread - zero) > 0.1 * (two - zero)


def test_the_linear_part_is_the_optimum_that_another_solver_finds() -> None:
    values, _, generator = drawn(300, fields=5)
    labels = happens(values @ torch.tensor([1.0, -0.5, 0.0, 0.3, 0.0]) - 0.7, generator)
    base = torch.logit(labels.mean()).reshape(1)
    weights, offsets, _ = fit_linear(
        values, labels[:, None], base, np.arange(300) % 4, penalty=torch.tensor([[10.0, 1.0]])
    )
    other = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(values.numpy(), labels.numpy())
    assert weights[0].numpy() == pytest.approx(other.coef_[0], abs=2e-3)
    assert float(offsets + base) == pytest.approx(float(other.intercept_[0]), abs=2e-3)


def test_few_rows_do_not_choose_to_say_nothing() -> None:
    """By plain log loss 60 rows of 40 numbers choose the strongest penalty, and say next to nothing."""
    values, _, generator = drawn(2000, fields=40)
    labels = happens(0.9 * values[:, :3].sum(1), generator)
    aurocs = []
    for start in range(0, 600, 60):
        rows = slice(start, start + 60)
        weights, _, chosen = fit_linear(values[rows], labels[rows, None], torch.zeros(1), np.arange(60) % 4)
        assert 0.5 <= float(chosen[0, 1]) <= 1
        assert float((values[1000:] @ weights[0]).std()) > 0.1
        aurocs.append(auroc((values[1000:] @ weights[0]).double().numpy(), labels[1000:].numpy()))
    assert np.mean(aurocs) > 0.65


def test_an_unknown_label_teaches_nothing() -> None:
    values, _, generator = drawn(300, fields=2)
    labels = happens(values[:, 0], generator)[:, None]
    base, folds, penalty = torch.zeros(1), np.arange(300) % 4, torch.tensor([[3.0, 0.7]])
    few = fit_linear(values[:200], labels[:200], base, folds[:200], penalty=penalty)
    labels[200:] = torch.nan
    many = fit_linear(values, labels, base, folds, penalty=penalty)
    torch.testing.assert_close(few, many)


def test_trees_of_all_rows_and_columns_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grower is no public part of it; its estimator is."""
    monkeypatch.setattr(boosting, "ROWS", 1.0)
    monkeypatch.setattr(boosting, "COLUMNS", 1.0)
    values, known, generator = drawn(800, fields=12)
    held = torch.where(known, values, torch.tensor(torch.nan))
    labels = happens(1.5 * torch.where(known, values, 0.0)[:, :3].prod(dim=1) + values[:, 0], generator)
    base = torch.tensor([-0.4])
    trees = Trees(1)
    trees.fit(held, labels[:, None], base, seed=3)
    model = HistGradientBoostingClassifier(
        max_iter=TREES, learning_rate=boosting.LEARNING_RATE, max_leaf_nodes=LEAVES, max_depth=DEPTH,
        min_samples_leaf=20, l2_regularization=5.0, max_bins=boosting.BINS - 1, early_stopping=False,
    ).fit(held.numpy(), labels.numpy().astype(int))  # fmt: skip
    asked, seen, _ = drawn(500, fields=12, seed=9)
    asked = torch.where(seen, asked, torch.tensor(torch.nan))
    gaps = np.abs(trees(asked)[:, 0].numpy() - (model.decision_function(asked.numpy()) - float(base)))
    assert (gaps < 1e-4).mean() >= 0.98  # a tie may fall the other way


def test_trees_as_tensors_answer_as_the_trees_they_were_made_from() -> None:
    """A few columns of twenty to a tree, one of them never known and one always the same."""
    values, known, generator = drawn(800, fields=20)
    known[:, 7], values[:, 8], known[:, 8] = False, 1.0, True
    held = torch.where(known, values, torch.tensor(torch.nan))
    labels = happens(2 * torch.where(known, values, 0.0)[:, 3], generator)
    trees = Trees(1)
    trees.fit(held, labels[:, None], torch.zeros(1), seed=3)
    grown = boosting.boost(held.numpy(), labels.numpy(), seed=3)
    used = {int(n["feature_idx"]) for nodes in grown.trees for n in nodes if not n["is_leaf"]}
    assert used == set(range(20)) - {7, 8}
    expected = [grown.start + sum(walked(nodes, row) for nodes in grown.trees) for row in held[:40].numpy()]
    assert trees(held[:40])[:, 0].numpy() == pytest.approx(expected, abs=1e-4)


def test_trees_grown_several_times_over_say_their_mean() -> None:
    values, known, generator = drawn(800, fields=5)
    held = torch.where(known, values, torch.tensor(torch.nan))
    first = happens(1.5 * torch.where(known, values, 0.0)[:, 0], generator)
    labels, base = torch.stack([first, 1 - first], dim=1), torch.tensor([0.1, -0.1])
    three = Trees(2, bags=3)
    three.fit(held, labels, base, seed=5)
    each = []
    for seed in (5, 6, 7):
        one = Trees(2)
        one.fit(held, labels, base, seed=seed)
        each.append(one(held[:50]))
    assert not torch.allclose(each[0], each[1], atol=0.01)
    torch.testing.assert_close(three(held[:50]), torch.stack(each).mean(dim=0), atol=1e-4, rtol=1e-4)
    shown = torch.rand(20, 5, generator=generator) < 0.5
    asked = torch.where(shown, held[0], torch.tensor(torch.nan))
    said = three.shown(held[0].view(5, 1).numpy(), shown.numpy())
    torch.testing.assert_close(said, three(asked), atol=1e-4, rtol=1e-4)


def walked(nodes: np.ndarray, row: np.ndarray) -> float:
    """The value of the leaf that one row ends in."""
    at = nodes[0]
    while not at["is_leaf"]:
        value = row[at["feature_idx"]]
        goes_left = at["missing_go_to_left"] if np.isnan(value) else value <= at["num_threshold"]
        at = nodes[at["left" if goes_left else "right"]]
    return float(at["value"])


@pytest.mark.parametrize("numbers", [1, 3])
def test_trees_asked_of_one_row_with_parts_hidden_say_what_they_say_of_each(numbers: int) -> None:
    """Also where the row itself lacks something, and after other trees took their place, fitted or loaded."""
    values, known, generator = drawn(800, fields=12)
    held = torch.where(known, values, torch.tensor(torch.nan))
    labels = happens(values[:, 0] + 1.5 * values[:, 1] * values[:, 2], generator)
    trees, others = Trees(2), Trees(2)
    told = torch.stack([labels, held[:, 5].isnan().float()], 1)
    for seed, each in enumerate((trees, others)):
        each.fit(held, told, torch.zeros(2), seed=seed)
    shown = torch.rand(40, 12 // numbers, generator=generator) < 0.6
    is_there = shown.repeat_interleave(numbers, dim=1)
    for row in held[:5]:
        alike = torch.where(is_there, row, torch.tensor(torch.nan))
        found = trees.shown(row.view(-1, numbers).numpy(), shown.numpy())
        torch.testing.assert_close(found, trees(alike))
        for one, said in zip(alike, found, strict=True):  # alone, a row is told by bits
            torch.testing.assert_close(trees(one[None])[0], said)
        assert float(found.std(0).min()) > 1e-3
    trees.fit(held, 1 - told, torch.zeros(2), seed=2)
    torch.testing.assert_close(trees.shown(row.view(-1, numbers).numpy(), shown.numpy()), trees(alike))
    trees.load_state_dict(others.state_dict())
    torch.testing.assert_close(trees.shown(row.view(-1, numbers).numpy(), shown.numpy()), others(alike))


@pytest.mark.parametrize("count", [200, 800], ids=["logistic alone", "with bins and trees"])
def test_a_record_with_fields_hidden_says_what_it_says_without_them(count: int) -> None:
    values, known, generator = drawn(count, fields=7)
    encoder = fitted(values, known, happens(1.5 * torch.where(known, values, 0.0)[:, 0], generator))
    assert bool(encoder.trees.is_fitted.all()) == (count >= 600)
    with torch.no_grad():
        for row in range(5):
            prepared = encoder.prepare(Tokens(values[row : row + 1, :, None], known[row : row + 1]))
            shown = known[row] & (torch.rand(20, 7, generator=generator) < 0.6)
            alike = prepared.rows(torch.zeros(20, dtype=torch.long)).hiding(shown)
            torch.testing.assert_close(encoder.shown(prepared, shown), encoder(alike).logits)


@pytest.mark.parametrize(("count", "events"), [(400, 200), (800, 30)], ids=["few patients", "few events"])
def test_trees_say_nothing_where_they_would_learn_the_noise(count: int, events: int) -> None:
    values, known, _ = drawn(count)
    labels = (torch.arange(count) < events).float()[:, None]
    trees = Trees(1)
    trees.fit(torch.where(known, values, torch.tensor(torch.nan)), labels, torch.zeros(1), seed=0)
    assert not bool(trees.is_fitted.any())
    assert bool((trees(values) == 0).all())


def test_a_record_without_a_single_field_still_gives_finite_numbers() -> None:
    values, known, generator = drawn(700)
    encoder = fitted(values, known, happens(values[:, 0], generator))
    nothing = said(encoder, torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool))
    assert bool(torch.isfinite(nothing).all())
    assert nothing[0] == nothing[1]
