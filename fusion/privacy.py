"""Training that hides whether any one patient was in it: DP-SGD (Abadi 2016), with its ε stated.

    ε, δ   for any one training patient, whatever is computed from the weights later: the chance of any
    outcome
           of the training changes by a factor of at most e^ε with or without that patient, but for a chance δ

What is trained is smaller than usual, so that one guarantee covers all of it: every encoder's linear part and
the fusion (their sum) are one logistic model, trained once. There are no folds, no early stopping and no
guard, each of which would look at patients again. Each patient gives one row, so ε is per *patient*; batches
are Poisson samples; a patient's gradient is cut at `dp_clip` and Gaussian noise of `dp_noise` × `dp_clip` is
added to the sum. The event rates are counted once with the same noise. opacus clips, adds the noise and
accounts for all of it together (Rényi; Mironov 2017).

Statistics (standardisation, projections, the directions trained), calibration and the interval are fitted on
the *tuning* patients without noise: the guarantee does not cover them. Use public data, or people who
agreed. The report is not covered either. Noise and batches come from the machine's own entropy, never from
the seed, which a bundle tells: two private trainings therefore differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.batch import Batch, collate
from fusion.bundle import Bundle, describe
from fusion.config import FusionConfig, FusionKind
from fusion.embedding import Embedder
from fusion.errors import BadInput, NotEnoughData, UnknownEncoder
from fusion.examples import Example, labels_of
from fusion.fuse import LateFusion
from fusion.model import FusionModel
from fusion.second_stage import calibrate_bundle
from fusion.telling import Progress, Teller

LEAST_TUNING = 20
RATE, MOMENTUM = 0.25, 0.9
DIRECTIONS, LENGTH = (
    64,
    4.0,
)  # kept of the features, and the root mean square length of a tuning patient's in them
SHARE = 1 / 8  # of the training patients in an average batch, or `batch_size` of them where that is more

COVERS = "weights and event rates, for any one training patient"
NOT_COVERED = (
    "tuning patients: standardisation, projections, directions, calibration and the interval are fitted on "
    "them "
    "without noise",
    "held-out patients: the report is computed on them without noise",
    "the number of training patients, which the metadata tell",
    "other trainings on the same patients: their ε adds up",
)


@dataclass(frozen=True, slots=True)
class Course:
    """How a private training goes: decided by the number of patients, never by what they hold."""

    sample_rate: float
    steps: int

    @classmethod
    def of(cls, config: FusionConfig, patients: int) -> Course:
        """For that many patients, one row each."""
        rate = min(1.0, max(SHARE, config.batch_size / max(1, patients)))
        return cls(rate, math.ceil(config.epochs / rate))


def epsilon_of(course: Course, noise: float, delta: float) -> float:
    """ε of a whole training with that noise: the noisy counts and every step; infinite without noise."""
    if noise <= 0:
        return math.inf
    accountant = _opacus().accountants.RDPAccountant()
    accountant.history = [(noise, 1.0, 1), (noise, course.sample_rate, course.steps)]
    return float(accountant.get_epsilon(delta=delta))


def noise_for(epsilon: float, config: FusionConfig, patients: int) -> float:
    """The least `dp_noise` that keeps a training of that many patients within ε at `config.dp_delta`.

    Raises BadInput for an ε that no reasonable noise gives.
    """
    course, low, high = Course.of(config, patients), 0.1, 1000.0
    if epsilon <= 0 or epsilon_of(course, high, config.dp_delta) > epsilon:
        raise BadInput(
            f"ε must be above 0 and within reach, not {epsilon:g}: train fewer epochs or take more patients"
        )
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (
            (low, middle) if epsilon_of(course, middle, config.dp_delta) <= epsilon else (middle, high)
        )
    return high


def train_private(
    train: Sequence[Example], tuning: Sequence[Example], config: FusionConfig, teller: Teller
) -> Bundle:
    """Examples → Bundle whose `metadata["privacy"]` states ε; called by `fusion.train` where `dp_noise` is
    set.

    Raises BadInput for settings that would need training patients again, NotEnoughData with fewer than 20
    tuning examples, UnknownEncoder without opacus.
    """
    _check(config, len(tuning))
    kept = one_row_each([e.group for e in train], config.seed)
    rows = [train[i] for i in kept]
    embedder = Embedder(config)
    teller.step("reading inputs")
    batch, labels = collate([e.inputs for e in rows], config, embedder), labels_of(rows, config)
    held, held_labels = collate([e.inputs for e in tuning], config, embedder), labels_of(tuning, config)
    course, draw = Course.of(config, len(rows)), torch.Generator()
    draw.seed()
    model = FusionModel(config)
    model.eval()
    model.trained.fill_(True)
    model.base_logit.copy_(noisy_base_logit(labels, config.dp_noise, draw))
    for modality in config.modalities:
        model.encoder(modality).fit_statistics(held.tokens[modality])
    teller.step("private training")
    basis = public_basis(features_of(model, held))
    weights = private_linear(
        features_of(model, batch) @ basis,
        labels,
        model.base_logit,
        course=course,
        noise=config.dp_noise,
        clip=config.dp_clip,
        draw=draw,
        tell=lambda done: teller.tell(Progress("private training", 0.1 + 0.7 * done)),
    )
    _put(model, weights @ basis.T)
    with torch.no_grad():
        said = model.encode(held)
    teller.step("calibration")
    nobody = (said.logits[:0], said.present[:0], held_labels[:0])
    bundle = calibrate_bundle(model, config, embedder, nobody, (said.logits, said.present, held_labels))
    bundle.calibration = dataclasses.replace(bundle.calibration, fitted_on="tuning split")
    bundle.out_of_fold = None
    base = torch.sigmoid(model.base_logit).tolist()
    names = [spec.name for spec in config.outcomes]
    bundle.metadata.update(
        describe(bundle, train=rows, tuning=tuning, left_out={}, base=dict(zip(names, base, strict=True)))
    )
    cohort = bundle.metadata["cohort"]  # exact counts of training patients would not be covered
    bundle.metadata["cohort"] = {**cohort, "digest": "", "events": {}, "present": {}}
    bundle.metadata["privacy"] = statement(course, config, len(rows))
    bundle.examples = tuple(train)
    teller.tell(Progress("done", 1.0))
    return bundle


def statement(course: Course, config: FusionConfig, patients: int) -> dict[str, Any]:
    """What a private training promises, as plain data; ε None = no promise (no noise)."""
    epsilon = epsilon_of(course, config.dp_noise, config.dp_delta)
    return {
        "mechanism": "DP-SGD on Poisson batches, Gaussian noise on clipped gradients and on event counts",
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": config.dp_delta,
        "unit": "patient: one row of each group is used",
        "patients": patients,
        "noise_multiplier": config.dp_noise,
        "clip": config.dp_clip,
        "sample_rate": course.sample_rate,
        "steps": course.steps,
        "accountant": f"Rényi, opacus {_opacus().__version__}",
        "covers": COVERS,
        "does_not_cover": list(NOT_COVERED),
    }


def one_row_each(groups: Sequence[str], seed: int) -> list[int]:
    """One row of every group, drawn without looking at what rows hold; in their order."""
    order = np.random.default_rng(seed).permutation(len(groups))
    first: dict[str, int] = {}
    for row in order.tolist():
        first.setdefault(groups[row], row)
    return sorted(first.values())


def noisy_base_logit(labels: Tensor, noise: float, draw: torch.Generator) -> Tensor:
    """Logit of each outcome's event rate from counts with Gaussian noise, float32 [R].

    labels  float32 [N, R], one row a patient; NaN = unknown. A patient changes each of the 2R counts by at
    most one, all of them together by √(2R), which the noise is scaled to: one step of the accountant
    """
    known = (~torch.isnan(labels)).sum(0).double()
    counts = torch.stack([torch.nansum(labels, dim=0).double(), known])
    counts = counts + noise * math.sqrt(2 * labels.shape[1]) * torch.randn(
        counts.shape, generator=draw, dtype=torch.double
    )
    known = counts[1].clamp(min=2.0)
    rate = (counts[0] / known).clamp(0.5 / known, 1 - 0.5 / known)
    return torch.log(rate / (1 - rate)).float()


def features_of(model: FusionModel, batch: Batch) -> Tensor:
    """What the linear parts see, modality by modality, then which are present: float32 [B, ΣP + M].

    An absent modality's features are zero.
    """
    prepared = model.prepare(batch)
    with torch.no_grad():
        parts = [
            model.encoder(m).features(prepared[m]) * batch.present[:, place, None]
            for place, m in enumerate(model.modalities)
        ]
    return torch.cat([*parts, batch.present.float()], dim=1)


def public_basis(features: Tensor) -> Tensor:
    """The directions in which the *tuning* patients' features vary most, float32 [P, ≤ 64].

    Noise is added in every direction that is trained, so few are trained, and which must not be told by
    those the guarantee covers (Zhou 2021). Not centred, so that what is linear in them stays linear in the
    features.
    """
    _, values, right = torch.linalg.svd(features.double(), full_matrices=False)
    kept = right[: min(DIRECTIONS, int((values > 1e-6 * values[0]).sum()))].T
    length = float((features.double() @ kept).square().sum(1).mean().sqrt())
    basis: Tensor = (kept * LENGTH / max(length, 1e-9)).float()
    return basis


def private_linear(
    features: Tensor,
    labels: Tensor,
    base: Tensor,
    *,
    course: Course,
    noise: float,
    clip: float,
    draw: torch.Generator,
    tell: Callable[[float], None] = lambda done: None,
) -> Tensor:
    """DP-SGD of a logistic model without intercept beside `base`: weights float32 [R, P].

    features float32 [N, P], one row a patient; labels float32 [N, R], NaN = unknown. The loss of a patient is
    their mean over known outcomes. The mean of the second half of all steps is returned, which costs no
    privacy.
    """
    opacus = _opacus()
    inner = nn.Linear(features.shape[1], labels.shape[1], bias=False)
    nn.init.zeros_(inner.weight)
    linear = opacus.GradSampleModule(inner, loss_reduction="sum")
    optimiser = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(linear.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=1 / len(features)),
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=max(1, round(course.sample_rate * len(features))),
        generator=draw,
        loss_reduction="mean",
    )
    mean, counted = torch.zeros_like(inner.weight), 0
    for step in range(course.steps):
        taken = torch.nonzero(torch.rand(len(features), generator=draw) < course.sample_rate).squeeze(1)
        optimiser.zero_grad()
        if len(taken):
            _summed_loss(base + linear(features[taken]), labels[taken]).backward()
        else:
            inner.weight.grad_sample = inner.weight.new_zeros((0, *inner.weight.shape))  # type: ignore[attr-defined]
        optimiser.step()
        if step >= course.steps // 2:
            mean, counted = mean + inner.weight.detach(), counted + 1
        if step % max(1, course.steps // 20) == 0:
            tell(step / course.steps)
    return (mean / max(1, counted)).detach()


def _summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over patients of each one's mean loss; a patient without a known label gives nothing."""
    known = ~torch.isnan(labels)
    losses = F.binary_cross_entropy_with_logits(logits, torch.where(known, labels, 0.0), reduction="none")
    return ((losses * known).sum(1) / known.sum(1).clamp(min=1)).sum()


def _put(model: FusionModel, weights: Tensor) -> None:
    """The weights as the model's own: linear parts of the encoders, whose evidence the fusion adds up."""
    fusion, at, modalities = model.fusion, 0, model.modalities
    assert isinstance(fusion, LateFusion)
    with torch.no_grad():
        fusion.weight.fill_(1.0)
        fusion.offset.zero_()
        fusion.redundancy.zero_()
        for place, modality in enumerate(modalities):
            trunk = model.encoder(modality).trunk
            width = trunk.linear.in_features
            trunk.linear.weight.copy_(weights[:, at : at + width])
            trunk.linear.bias.copy_(weights[:, place - len(modalities)])
            trunk.head.weight.zero_()
            at += width


def _check(config: FusionConfig, tuning: int) -> None:
    if config.fusion != FusionKind.LATE:
        raise BadInput(f"private training adds evidence up: fusion must be 'late', not '{config.fusion}'")
    if config.finetune != "none":
        raise BadInput("private training leaves backbones as they are: finetune must be 'none'")
    if config.scope_pictures or config.scope_fields or config.summarise:
        raise BadInput(
            "scope_pictures, scope_fields and summarise keep statistics of training patients without noise; "
            "leave them off (0, (), False) in a private training"
        )
    if not 0 < config.dp_delta < 1 or config.dp_clip <= 0 or config.dp_noise < 0:
        raise BadInput("dp_delta must lie between 0 and 1, dp_clip above 0, dp_noise at 0 or above")
    if tuning < LEAST_TUNING:
        raise NotEnoughData(
            f"{tuning} tuning examples; a private training standardises and calibrates on at least "
            f"{LEAST_TUNING}"
        )


def _opacus() -> Any:
    try:
        import opacus
        import opacus.accountants
        import opacus.optimizers
    except ImportError as fault:
        raise UnknownEncoder("dp_noise needs the extra: pip install 'tessera[privacy]'") from fault
    return opacus
