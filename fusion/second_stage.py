"""The second stage of training: the fusion on out-of-fold evidence, its guard, then calibration and interval.

Throughout, `Told` is (evidence [B, M, R], present [B, M], labels [B, R], NaN = unknown) of patients whose
encoders have not seen them.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.bundle import Bundle
from fusion.calibrate import Calibration, fit_calibration, sigmoid
from fusion.choosing import MARGIN, standard_errors
from fusion.config import FusionConfig, FusionKind
from fusion.conformal import fit_interval
from fusion.embedding import Embedder
from fusion.examples import assign_folds
from fusion.fitting import Fit, fit
from fusion.fuse import Fusion, LateFusion, build_fusion
from fusion.losses import masked_bce, weighed_bce
from fusion.model import FusionModel
from fusion.monotone import fit_affine
from fusion.patterns import all_subsets, named, sub_patterns
from fusion.plain_sum import Rows, is_plain, make_plain
from fusion.subgroup_shifts import Attributes
from fusion.survival import by_horizon, curves_of

BELIEF = 1.0  # in the weights that would be chosen without data, as so much log-likelihood
LEAST_TUNING = 20  # tuning patients before early stopping looks at them
SMALL_TUNING = 1000  # labelled tuning patients below which out-of-fold evidence helps to calibrate
LEAST_GUARDED, MOST_GUARDED = 60, 5000  # patients with all of a pattern on whom the guard judges it
WORSE = 1.0  # standard error by which hearing less must be better, were there one way to hear less
PARTS = 5  # that the calibration is fitted without, in turn, to measure the interval
MOST_PER_PATTERN = 1000  # patients that a pattern is calibrated on

Told = tuple[Tensor, Tensor, Tensor]
Tell = Callable[[int, int, float, float | None], None]
Array = NDArray[np.float64]


def fit_fusion(
    model: FusionModel,
    evidence: Tensor,
    present: Tensor,
    labels: Tensor,
    tuning: Told | None,
    config: FusionConfig,
    tell: Tell,
    *,
    groups: NDArray[np.int64] | None = None,
) -> None:
    """Fit the fusion on out-of-fold evidence over every sub-pattern of what patients have; guard it.

    The kinds that are convex stop by themselves, and learn from the tuning patients as well. The bent ones
    are stopped, and guarded, by the tuning patients; without enough of these by a part of the others, from
    whom they then do not learn. Of late fusion the plain sum stays, outcome by outcome, where what was
    learned is not clearly better (see `fusion.plain_sum`).

    groups  int [B], of one patient group the same number; None: every row is a patient by itself
    """
    is_convex = config.fusion in (FusionKind.LATE, FusionKind.STACKING)
    if groups is None:
        groups = np.arange(len(evidence))
    if is_convex and tuning is not None and len(tuning[0]):
        evidence, present, labels = _joined((evidence, present, labels), tuning)
        groups = np.append(groups, groups.max(initial=-1) + 1 + np.arange(len(tuning[0])))
    watched_groups = None
    if not is_convex and (tuning is None or len(tuning[0]) < LEAST_TUNING):
        watched = _watched(groups, labels, config.seed)
        tuning = (evidence[watched], present[watched], labels[watched]) if bool(watched.any()) else None
        watched_groups = groups[watched.numpy()]
        evidence, present, labels = evidence[~watched], present[~watched], labels[~watched]
        groups = groups[~watched.numpy()]
    patients, masks, weights = sub_patterns(present, config.modality_dropout, seed=config.seed)
    rows = evidence[patients], masks, labels[patients], weights
    margin = config.extra.get("fusion_margin", MARGIN)

    def tuning_loss() -> float | None:
        if is_convex or tuning is None:
            return None
        return float(masked_bce(model.fuse(tuning[0], tuning[1]), tuning[2]))

    if len(patients):
        _learn(model.fusion, model.base_logit, rows, patients, config, tuning_loss, tell)
    if isinstance(model.fusion, LateFusion) and len(patients) and margin > -np.inf:

        def learn(seen: Tensor) -> Fusion:
            fusion = build_fusion(config.fusion, present.shape[1], labels.shape[1])
            said, asked, known, weight = (each[seen] for each in rows)
            some = said, asked, known, weight
            _learn(fusion, model.base_logit, some, patients[seen], config, lambda: None, _silent)
            return fusion

        stays = is_plain(rows, patients, groups, model.base_logit, learn, margin=margin, seed=config.seed)
        make_plain(model.fusion, stays)
    model.eval()
    if not is_convex and tuning is not None:
        (evidence, present, labels), groups = tuning, watched_groups  # they flatter what they were fitted on
    guard(model, (evidence, present, labels), groups)


def _watched(groups: NDArray[np.int64], labels: Tensor, seed: int) -> Tensor:
    """bool [B]: patients to watch instead of learning from them, a third to a fifth, so that the guard can
    judge them where that is enough; nobody where a third is fewer than `LEAST_TUNING`."""
    if min(len(groups) // 3, len(np.unique(groups))) < LEAST_TUNING:
        return torch.zeros(len(groups), dtype=torch.bool)
    folds = min(PARTS, max(3, len(groups) // LEAST_GUARDED))
    return torch.from_numpy(assign_folds(groups.astype(str).tolist(), labels.numpy(), folds, seed) == 0)


def _learn(
    fusion: Fusion,
    base: Tensor,
    rows: Rows,
    patients: Tensor,
    config: FusionConfig,
    tuning_loss: Callable[[], float | None],
    tell: Tell,
) -> None:
    """Fit a fusion to rows of the given patients (sub-patterns of theirs)."""
    evidence, masks, labels, weights = rows
    is_convex = config.fusion in (FusionKind.LATE, FusionKind.STACKING)
    strength = (BELIEF if is_convex else 10 * config.weight_decay) / max(1, len(torch.unique(patients)))

    def loss(index: Tensor) -> tuple[Tensor, Tensor]:
        logits = base + fusion(evidence[index], masks[index])
        told, weight = weighed_bce(logits, labels[index], weight=weights[index])
        return told + strength * fusion.penalty(), weight

    how = Fit(epochs=200, patience=20, batch_size=max(1, len(patients)), learning_rate=0.02, seed=config.seed)
    fit(fusion, loss, tuning_loss, rows=len(patients), how=how, tell=tell)
    fusion.eval()


def _silent(epoch: int, epochs: int, training: float, tuning: float | None) -> None:
    """Nobody listens to what is fitted on parts."""


def guard(model: FusionModel, told: Told, groups: NDArray[np.int64] | None = None) -> None:
    """Set `model.heard`: where a pattern's outcome is told better without a modality, leave that one out.

    From the smallest pattern to the largest, each is compared with what its sub-patterns (one modality less,
    and each modality alone) already hear, on the same patients, by log loss: the best of these takes its
    place where it is better by more than `margin_of` so many ways, in standard errors of the paired
    difference. So no pattern is left significantly worse than the best modality in it, as far as out-of-fold
    patients can tell. One slope for all patterns comes first: a plain sum is surer of itself than it may be,
    and the more so the more it adds.
    """
    evidence, present, labels = told
    subsets = all_subsets(present.shape[1])
    with torch.no_grad():
        slope = _slopes(model.fuse(evidence, present), present, labels, model.base_logit)
        for pattern in sorted(range(len(subsets)), key=lambda p: int(subsets[p].sum())):
            inside = torch.nonzero(subsets[pattern]).squeeze(1).tolist()
            rows = torch.nonzero(present[:, inside].all(dim=1)).squeeze(1)
            if len(inside) < 2 or len(rows) < LEAST_GUARDED:
                continue
            if len(rows) > MOST_GUARDED:
                rows = rows[torch.linspace(0, len(rows) - 1, MOST_GUARDED).long()]
            some = None if groups is None else groups[rows.numpy()]
            lesser = sorted({pattern - 2**m for m in inside} | {2**m for m in inside})
            asked = [pattern, *lesser]
            fused = [model.fuse(evidence[rows], subsets[p].expand(len(rows), -1)) for p in asked]
            logits = [model.base_logit + slope * (said - model.base_logit) for said in fused]
            losses = [_losses(said, labels[rows]) for said in logits]
            for r in range(labels.shape[1]):
                gains = [_gain(losses[0][:, r], less[:, r], some) for less in losses[1:]]
                best = max(range(len(lesser)), key=lambda i: gains[i])
                if gains[best] > margin_of(len(lesser)):
                    model.heard[pattern, :, r] = model.heard[lesser[best], :, r]


def margin_of(ways: int) -> float:
    """Standard errors by which the best of several ways must be better: chance alone passes it no more often
    than it passes `WORSE` where there is one way (Bonferroni, whatever the ways have in common).

    The best of eight ways is better by one standard error most of the time, with nothing to choose between.
    """
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-WORSE) / ways)


def calibrate_bundle(
    model: FusionModel,
    config: FusionConfig,
    embedder: Embedder,
    out_of_fold: Told,
    tuning: Told | None,
    *,
    subgroups: tuple[Attributes, Attributes] = ((), ()),
    groups: NDArray[np.int64] | None = None,
) -> Bundle:
    """The bundle of a trained model: calibration and interval from the tuning split, and where that is small
    from out-of-fold training evidence as well.

    subgroups  attributes of the out-of-fold and of the tuning patients, by which the interval may differ
    groups     of the out-of-fold patients (see `fit_fusion`)
    """
    if groups is None:
        groups = np.arange(len(out_of_fold[0]))
    labelled = 0 if tuning is None else int((~torch.isnan(tuning[2])).sum(0).min())
    source, told, attributes = "tuning split", tuning, list(subgroups[1])
    if told is None or not len(told[0]):
        source, told, attributes = "out-of-fold training patients", out_of_fold, list(subgroups[0])
    elif labelled < SMALL_TUNING:
        groups = np.append(np.arange(len(told[0])), len(told[0]) + groups)
        source, told = "tuning split and out-of-fold training patients", _joined(told, out_of_fold)
        attributes += subgroups[0]
    else:
        groups = np.arange(len(told[0]))
    _, member = np.unique(groups, return_inverse=True)
    names, curves = [m.value for m in config.modalities], curves_of(config.outcomes)
    with torch.no_grad():
        fused = model.fuse(told[0], told[1]).double().numpy()
        more, masks = _hidden_down(told, config.seed)
        further = model.fuse(told[0][more], masks).double().numpy()
    present, labels = told[1].numpy(), told[2].double().numpy()

    def calibrated_on(rows: NDArray[np.bool_]) -> Calibration:
        also = rows[more.numpy()]
        return fit_calibration(
            np.concatenate([fused[rows], further[also]]),
            np.concatenate([labels[rows], labels[more.numpy()][also]]),
            np.concatenate([present[rows], masks.numpy()[also]]),
            base=model.base_logit.double().numpy(),
            modalities=names,
            fitted_on=source,
            real=int(rows.sum()),
            curves=curves,
            groups=np.append(member[rows], member[more.numpy()][also]),
        )

    # The interval is measured on patients their calibration has not seen: otherwise it would be too narrow.
    part = (np.random.default_rng(config.seed).permutation(len(member)) % PARTS)[member]
    risks = np.empty(fused.shape)
    for held in range(PARTS):
        rows = part == held
        risks[rows] = sigmoid(calibrated_on(~rows).logits(fused[rows], present[rows], names))
    calibration = calibrated_on(np.ones(len(fused), bool))
    happened, weights = by_horizon(labels, curves)
    patterns = [named(row, names) for row in present]
    intervals = tuple(
        fit_interval(
            risks[:, r],
            happened[:, r],
            level=config.interval_level,
            weights=weights[:, r],
            patterns=patterns,
            attributes=attributes if len(attributes) == len(patterns) else None,
        )
        for r in range(len(config.outcomes))
    )
    bundle = Bundle(config, model, calibration, intervals, dict(embedder.versions), embedder=embedder)
    bundle.out_of_fold = out_of_fold
    return bundle


def _hidden_down(told: Told, seed: int) -> tuple[Tensor, Tensor]:
    """Patients with some of their modalities hidden, so that each pattern is calibrated: (row of `told` [N],
    mask bool [N, M])."""
    present = told[1]
    rows, masks = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, present.shape[1], dtype=torch.bool)]
    generator = torch.Generator().manual_seed(seed)
    for subset in all_subsets(present.shape[1])[1:]:
        held = torch.nonzero((present | ~subset).all(dim=1) & (present != subset).any(dim=1)).squeeze(1)
        held = held[torch.randperm(len(held), generator=generator)[:MOST_PER_PATTERN]]
        rows.append(held)
        masks.append(subset.expand(len(held), -1))
    return torch.cat(rows), torch.cat(masks)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Log loss [B, R]; NaN where the label is."""
    return torch.nn.functional.softplus(logits) - labels * logits


def _gain(whole: Tensor, less: Tensor, groups: NDArray[np.int64] | None) -> float:
    """By how many standard errors `less` loses less than `whole`; 0 for too few patients."""
    known = ~torch.isnan(whole)
    if int(known.sum()) < LEAST_GUARDED:
        return 0.0
    more, fewer = (each[known].double().numpy() for each in (whole, less))
    return standard_errors(more, fewer, None if groups is None else groups[known.numpy()])


def _slopes(fused: Tensor, present: Tensor, labels: Tensor, base: Tensor) -> Tensor:
    """float32 [R]: what each outcome's fused evidence is best multiplied with; 1 where nobody can tell."""
    slopes = torch.ones(labels.shape[1])
    for r in range(labels.shape[1]):
        rows = present.any(dim=1) & ~torch.isnan(labels[:, r])
        if bool(rows.any()):
            said, known = (part[rows, r].double().numpy() for part in (fused, labels))
            slopes[r], _ = fit_affine(said - float(base[r]), known, float(base[r]), is_shifted=False)
    return slopes


def _joined(first: Told, second: Told) -> Told:
    evidence, present, labels = (torch.cat(pair) for pair in zip(first, second, strict=True))
    return evidence, present, labels
