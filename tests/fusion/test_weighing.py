"""How loud the trees are beside the linear part: learned from patients that neither was fitted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion.batch import Tokens
from fusion.encoders.record import RecordEncoder
from fusion.weighing import Judge, weigh

ROWS, FOLDS = 1600, 2


def drawn(kind: str) -> tuple[Tokens, torch.Tensor]:
    """Three fields; the outcome follows one of them in a line, or the sign of two of them together."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(ROWS, 3, generator=generator)
    logits = 1.5 * values[:, 0] if kind == "line" else 2.5 * (values[:, 0] * values[:, 1]).sign()
    labels = (torch.rand(ROWS, generator=generator) < torch.sigmoid(logits)).float()
    return Tokens(values[..., None], torch.ones(ROWS, 3, dtype=torch.bool)), labels[:, None]


def judged(tokens: Tokens, labels: torch.Tensor) -> tuple[list[Judge], torch.Tensor, torch.Tensor]:
    """Encoders of two folds, the base logit, and what they say of whom they have not seen."""
    base = torch.logit(labels.mean()).reshape(1)
    judges: list[Judge] = []
    said = torch.zeros(ROWS, 1)
    for fold in range(FOLDS):
        out = torch.arange(ROWS) % FOLDS == fold
        seen, asked = (torch.nonzero(each).squeeze(1) for each in (~out, out))
        torch.manual_seed(0)
        encoder = RecordEncoder(3, 1, 8, 1)
        encoder.fit_statistics(tokens.rows(seen))
        prepared = encoder.prepare(tokens.rows(seen))
        encoder.fit_first(prepared, labels[seen], base, np.arange(len(seen)) % 4, seed=0)
        encoder.eval()
        with torch.no_grad():
            said[asked] = encoder(encoder.prepare(tokens.rows(asked))).logits
        judges.append((encoder, asked))
    return judges, base, said


@pytest.mark.parametrize(("kind", "low", "high"), [("line", 0.0, 0.4), ("together", 0.9, 1.0)])
def test_the_voice_that_tells_more_of_unseen_patients_is_the_louder(
    kind: str, low: float, high: float
) -> None:
    tokens, labels = drawn(kind)
    judges, base, said = judged(tokens, labels)
    share = weigh(judges, tokens, labels, base, said.clone(), said.clone())
    assert low <= float(share) <= high
    assert all(torch.equal(encoder.trees.share, share) for encoder, _ in judges)


def test_evidence_out_of_fold_is_what_the_encoders_now_say() -> None:
    tokens, labels = drawn("together")
    judges, base, said = judged(tokens, labels)
    first, after = said.clone(), said.clone()
    weigh(judges, tokens, labels, base, first, after)
    assert not torch.allclose(after, said)
    with torch.no_grad():
        for encoder, rows in judges:
            expected = encoder(encoder.prepare(tokens.rows(rows))).logits
            torch.testing.assert_close(after[rows], expected)
            torch.testing.assert_close(first[rows], expected)  # nothing was trained beyond it


def test_of_an_outcome_without_trees_nothing_changes() -> None:
    tokens, labels = drawn("line")
    judges, base, _ = judged(tokens, labels)
    for encoder, _ in judges:
        encoder.trees.is_fitted.fill_(False)
    first, after = torch.full((ROWS, 1), 7.0), torch.full((ROWS, 1), 7.0)
    share = weigh(judges, tokens, labels, base, first, after)
    assert float(share) == 0.5
    with torch.no_grad():
        for encoder, rows in judges:
            torch.testing.assert_close(after[rows], encoder(encoder.prepare(tokens.rows(rows))).logits)
