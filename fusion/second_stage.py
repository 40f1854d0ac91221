"""The second stage of training: the fusion on out-of-fold evidence, then calibration and interval."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fusion.bundle import Bundle
from fusion.calibrate import fit_calibration, sigmoid
from fusion.config import FusionConfig, FusionKind
from fusion.conformal import fit_interval
from fusion.embedding import Embedder
from fusion.fitting import Fit, fit
from fusion.losses import masked_bce
from fusion.model import FusionModel
from fusion.patterns import sub_patterns

LEAST_TUNING = 20  # tuning patients before early stopping looks at them
SMALL_TUNING = 150  # labelled tuning patients below which out-of-fold evidence helps to calibrate

Tell = Callable[[int, int, float, float | None], None]


def fit_fusion(
    model: FusionModel,
    evidence: Tensor,
    present: Tensor,
    labels: Tensor,
    tuning: tuple[Tensor, Tensor, Tensor] | None,
    config: FusionConfig,
    tell: Tell,
) -> None:
    """Fit the fusion on out-of-fold evidence over every sub-pattern of what each patient has."""
    rows, masks, weights = sub_patterns(present, config.modality_dropout, seed=config.seed)
    is_late = config.fusion == FusionKind.LATE
    strength = (1.0 if is_late else 10 * config.weight_decay) / max(1, int(present.any(dim=1).sum()))
    said, known, weighed = evidence[rows], labels[rows], weights

    def loss(index: Tensor) -> Tensor:
        logits = model.fuse(said[index], masks[index])
        return masked_bce(logits, known[index], weight=weighed[index]) + strength * model.fusion.penalty()

    def tuning_loss() -> float | None:
        if is_late or tuning is None or len(tuning[0]) < LEAST_TUNING:
            return None
        return float(masked_bce(model.fuse(tuning[0], tuning[1]), tuning[2]))

    how = Fit(epochs=200, patience=20, batch_size=max(1, len(rows)), learning_rate=0.02, seed=config.seed)
    if len(rows):
        fit(model.fusion, loss, tuning_loss, rows=len(rows), how=how, tell=tell)
    model.eval()


def calibrate_bundle(
    model: FusionModel,
    config: FusionConfig,
    embedder: Embedder,
    out_of_fold: tuple[Tensor, Tensor, Tensor],
    tuning: tuple[Tensor, Tensor, Tensor] | None,
) -> Bundle:
    """The bundle of a trained model: calibration and interval from the tuning split, and where that is small
    from out-of-fold training evidence as well. Both: (evidence [B, M, R], present [B, M], labels [B, R])."""
    parts, source = [], "tuning split"
    if tuning is not None and len(tuning[0]):
        parts.append(tuning)
    labelled = 0 if tuning is None else int((~torch.isnan(tuning[2])).sum(0).min())
    if labelled < SMALL_TUNING:
        parts.append(out_of_fold)
        source = (
            "tuning split and out-of-fold training patients"
            if len(parts) > 1
            else "out-of-fold training patients"
        )
    with torch.no_grad():
        fused = torch.cat([model.fuse(evidence, present) for evidence, present, _ in parts]).double().numpy()
    present = torch.cat([part[1] for part in parts]).numpy()
    labels = torch.cat([part[2] for part in parts]).double().numpy()
    names = [m.value for m in config.modalities]
    base = model.base_logit.double().numpy()
    calibration = fit_calibration(fused, labels, present, base=base, modalities=names, fitted_on=source)
    risks = sigmoid(calibration.logits(fused, present, names))
    intervals = tuple(
        fit_interval(risks[:, r], labels[:, r], level=config.interval_level)
        for r in range(len(config.outcomes))
    )
    return Bundle(config, model, calibration, intervals, dict(embedder.versions), embedder=embedder)
