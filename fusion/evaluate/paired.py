"""Two bundles asked about the same patients: how far apart they are, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion import metrics
from fusion.batch import collate
from fusion.bundle import Bundle
from fusion.errors import BadInput, NotEnoughData
from fusion.examples import Example, labels_of
from fusion.predict import risks as predict_risks
from fusion.survival import by_horizon, curves_of
from fusion.train import settled

Array = NDArray[np.float64]
SCORES: dict[str, Callable[[Array, Array, Array | None], float | None]] = {
    "auroc": metrics.auroc,
    "brier": metrics.brier,
}


def evaluate_beside(
    one: Bundle, held_out: Sequence[Example], other: Bundle, as_other_reads: Sequence[Example]
) -> dict[str, dict[str, Any]]:
    """Outcome that both predict, by the same horizon → {"n", "patients", "events", "auroc", "brier"}, the
    two scores as `one` minus `other`: {"value", "low", "high"}, 95 % by drawing patient groups.

    held_out        patients neither has learned from, with the embeddings that `one` reads
    as_other_reads  the same patients in the same order, with those that `other` reads
    Raises NotEnoughData without a patient, BadInput when the two lists are not of the same patients, or hold
    one that a bundle which was just trained has learned from.
    """
    if not held_out:
        raise NotEnoughData("no held-out examples")
    if [e.inputs.key for e in held_out] != [e.inputs.key for e in as_other_reads]:
        raise BadInput("held_out and as_other_reads must be the same patients in the same order")
    groups = [e.group for e in held_out]
    for bundle in (one, other):
        if shared := set(groups) & {e.group for e in bundle.examples}:
            raise BadInput(f"{len(shared)} patient groups are in both the training and the held-out split")
    labels, weights = by_horizon(
        labels_of(held_out, one.config).double().numpy(), curves_of(one.config.outcomes)
    )
    ours, theirs = _risks(one, held_out), _risks(other, as_other_reads)
    return {
        name: _apart(
            np.stack([ours[name, hours], theirs[name, hours]], axis=1),
            labels[:, r],
            weights[:, r],
            groups,
            one,
        )
        for r, (name, hours) in enumerate(ours)
        if (name, hours) in theirs
    }


def _risks(bundle: Bundle, examples: Sequence[Example]) -> dict[tuple[str, float], Array]:
    """Outcome and its horizon, in the config's order → risks float64 [N]."""
    with settled(bundle.config):
        batch = collate([e.inputs for e in examples], bundle.config, bundle.embedder)
    risks = predict_risks(bundle, batch)
    return {(spec.name, spec.horizon_hours): risks[:, r] for r, spec in enumerate(bundle.config.outcomes)}


def _apart(pairs: Array, labels: Array, weights: Array, groups: Sequence[str], one: Bundle) -> dict[str, Any]:
    known = ~np.isnan(labels)
    whose = [group for group, is_known in zip(groups, known, strict=True) if is_known]

    def difference(name: str) -> dict[str, float | None]:
        return metrics.bootstrap(
            partial(_difference, SCORES[name]),
            pairs[known],
            labels[known],
            whose,
            seed=one.config.seed,
            weights=weights[known],
        )

    return {
        "n": int(known.sum()),
        "patients": len(set(whose)),
        "events": int(labels[known].sum()),
        **{name: difference(name) for name in SCORES},
    }


def _difference(
    score: Callable[[Array, Array, Array | None], float | None],
    pairs: Array,
    labels: Array,
    weights: Array | None,
) -> float | None:
    ours, theirs = (score(pairs[:, side], labels, weights) for side in (0, 1))
    return None if ours is None or theirs is None else ours - theirs
