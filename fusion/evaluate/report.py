"""Bundle and held-out patients → Report: scores, calibration, coverage, ablation, baselines, subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion import metrics
from fusion.baselines import compare
from fusion.batch import Batch, collate
from fusion.bundle import Bundle
from fusion.conformal import Interval, covered
from fusion.errors import BadInput, NotEnoughData
from fusion.examples import Example, check_real, labels_of, pixel_keys
from fusion.fairness import Limits, compare_groups
from fusion.patterns import named
from fusion.predict import risks as predict_risks
from fusion.survival import by_horizon, curves_of
from fusion.train import settled

Array = NDArray[np.float64]
FEW_GROUPS = 4  # groups of patients scored alike; a pattern with fewer gets no coverage
FEW_EVENTS = 10  # a subgroup with fewer events, or fewer others, gets no AUROC


@dataclass(frozen=True, slots=True)
class Report:
    """How a bundle did on patients it has never seen. Every list is per outcome name."""

    held_out: dict[str, Any]
    outcomes: dict[str, dict[str, Any]]
    ablation: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    baselines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    subgroups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    fairness: dict[str, dict[str, Any]] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; None where a number cannot be computed, with a note saying why."""
        return {
            "held_out": self.held_out,
            "outcomes": self.outcomes,
            "ablation": self.ablation,
            "baselines": self.baselines,
            "subgroups": self.subgroups,
            "fairness": self.fairness,
            "privacy": self.privacy,
            "notes": list(self.notes),
        }


def evaluate(
    bundle: Bundle,
    held_out: Sequence[Example],
    *,
    comparison: bool = True,
    thresholds: Mapping[str, float] | None = None,
) -> Report:
    """Score a bundle on held-out examples; intervals are 95 % bootstrap over patient groups.

    comparison  also ablation, baselines, subgroups and fairness. Baselines are fitted on the bundle's
                training examples, so only on a bundle that was just trained (a note says when they are left
                out)
    thresholds  outcome → the risk from which somebody acts, for fairness; default: its base rate in training
    Also writes the headline figures to `bundle.metadata["metrics"]`.
    Raises NotEnoughData without a held-out example, BadInput when one of its groups was trained on.
    """
    if not held_out:
        raise NotEnoughData("no held-out examples")
    check_real((key for e in held_out for key in pixel_keys(e)), "held_out")
    config = bundle.config
    groups = [e.group for e in held_out]
    if shared := set(groups) & {e.group for e in bundle.examples}:
        raise BadInput(f"{len(shared)} patient groups are in both the training and the held-out split")
    with settled(config):
        batch = collate([e.inputs for e in held_out], config, bundle.embedder)
    labels, weights = by_horizon(labels_of(held_out, config).double().numpy(), curves_of(config.outcomes))
    names = [m.value for m in config.modalities]
    patterns = np.array([named(row, names) for row in bundle.model.usable(batch.present).tolist()])
    attributes = np.array([e.attributes for e in held_out])
    risks = predict_risks(bundle, batch)
    report = Report(
        held_out={"n": len(held_out), "patients": len(set(groups))},
        outcomes={
            spec.name: _outcome(
                bundle, r, risks[:, r], labels[:, r], groups, weights[:, r], patterns, attributes
            )
            for r, spec in enumerate(config.outcomes)
        },
        ablation=_ablation(bundle, batch, labels, groups) if comparison else {},
        baselines=_baselines(bundle, batch, labels, groups) if comparison else {},
        subgroups=_subgroups(bundle, held_out, risks, labels, weights, patterns, attributes)
        if comparison
        else {},
        fairness=_fairness(bundle, held_out, risks, labels, weights, thresholds or {}) if comparison else {},
        privacy=dict(bundle.metadata.get("privacy", {})),
        notes=("baselines need the training examples; this bundle was loaded, not trained here",)
        if comparison and not bundle.examples
        else (),
    )
    bundle.metadata["metrics"] = {
        name: {
            "n": found["n"],
            "events": found["events"],
            **{score: found[score] for score in ("auroc", "auprc", "brier")},
            "ece": found["calibration"]["ece"],
        }
        for name, found in report.outcomes.items()
    }
    return report


def _outcome(
    bundle: Bundle,
    r: int,
    risks: Array,
    labels: Array,
    groups: Sequence[str],
    weights: Array,
    patterns: NDArray[np.str_],
    attributes: NDArray[np.object_],
) -> dict[str, Any]:
    """Scores of one outcome. Where it is a horizon of an event, `n` counts those not censored before it, and
    everything is weighted so that they stand for those who were."""
    known = ~np.isnan(labels)
    weights, patterns, attributes = weights[known], patterns[known], attributes[known]
    risks, labels, groups = _known(risks, labels, groups)
    events = int(labels.sum())
    score = partial(
        metrics.bootstrap, risks=risks, labels=labels, groups=groups, seed=bundle.config.seed, weights=weights
    )
    note = "" if 0 < events < len(labels) else f"{events} events among {len(labels)}: no AUROC"
    return {
        "n": len(labels),
        "events": events,
        "base_rate": float(np.average(labels, weights=weights)) if len(labels) else None,
        "auroc": score(metrics.auroc),
        "auprc": score(metrics.auprc),
        "brier": score(metrics.brier),
        "calibration": metrics.calibration(risks, labels, weights),
        "roc": metrics.roc_curve(risks, labels),
        "pr": metrics.pr_curve(risks, labels),
        "coverage": _coverage(bundle.intervals[r], risks, labels, weights, patterns, attributes),
        "note": note,
    }


def _coverage(
    interval: Interval,
    risks: Array,
    labels: Array,
    weights: Array,
    patterns: NDArray[np.str_],
    attributes: NDArray[np.object_],
) -> dict[str, Any]:
    """Share of groups scored alike whose event rate lies within the interval of their mean risk; also of
    each pattern of present modalities that fills some groups."""

    def ask(here: NDArray[np.bool_]) -> tuple[int, int]:
        return covered(
            interval,
            risks[here],
            labels[here],
            weights=weights[here],
            patterns=patterns[here],
            attributes=attributes[here].tolist(),
        )

    by_pattern = []
    for name in np.unique(patterns):
        here = patterns == name
        if here.sum() >= FEW_GROUPS * interval.group_size:
            inside, groups = ask(here)
            by_pattern.append({"pattern": str(name), "observed": inside / groups, "groups": groups})
    inside, groups = ask(np.ones(len(risks), bool))
    return {
        "level": interval.level,
        "observed": inside / groups if groups else None,
        "groups": groups,
        "group_size": interval.group_size,
        "patterns": by_pattern,
    }


def _ablation(
    bundle: Bundle, batch: Batch, labels: Array, groups: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """All modalities, each alone (on everybody: without it, the base rate), and all but each."""
    every = bundle.config.modalities
    arms = [("all", every), *((f"{m.value} only", (m,)) for m in every)]
    if len(every) > 2:
        arms += [(f"without {m.value}", tuple(o for o in every if o != m)) for m in every]
    found: dict[str, list[dict[str, Any]]] = {spec.name: [] for spec in bundle.config.outcomes}
    for name, kept in arms:
        risks = predict_risks(bundle, batch, only=kept)
        for r, spec in enumerate(bundle.config.outcomes):
            found[spec.name].append(
                {
                    "name": name,
                    "modalities": [m.value for m in kept],
                    "auroc": _auroc(bundle, risks[:, r], labels[:, r], groups),
                }
            )
    return found


def _baselines(
    bundle: Bundle, batch: Batch, labels: Array, groups: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {spec.name: [] for spec in bundle.config.outcomes}
    if not bundle.examples:
        return found
    config = bundle.config
    with settled(config):
        train = collate([e.inputs for e in bundle.examples], config, bundle.embedder)
        known, _ = by_horizon(labels_of(bundle.examples, config).double().numpy(), curves_of(config.outcomes))
        said = compare(train, known, batch, config, seed=config.seed)
        for r, (spec, by_name) in enumerate(zip(config.outcomes, said, strict=True)):
            for name, risks in by_name.items():
                found[spec.name].append({"name": name, "auroc": _auroc(bundle, risks, labels[:, r], groups)})
    return found


def _subgroups(
    bundle: Bundle,
    held_out: Sequence[Example],
    risks: Array,
    labels: Array,
    weights: Array,
    patterns: NDArray[np.str_],
    attributes: NDArray[np.object_],
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    groups = np.array([e.group for e in held_out])
    for r, spec in enumerate(bundle.config.outcomes):
        known = ~np.isnan(labels[:, r])
        rows = []
        for attribute in sorted({name for e in held_out for name in e.attributes}):
            values = np.array([e.attributes.get(attribute, "unknown") for e in held_out])
            for value in np.unique(values[known]):
                here = known & (values == value)
                said, was = risks[here, r], labels[here, r]
                events = int(was.sum())
                is_few = min(events, len(was) - events) < FEW_EVENTS
                inside, full = covered(
                    bundle.intervals[r],
                    said,
                    was,
                    weights=weights[here, r],
                    patterns=patterns[here],
                    attributes=attributes[here].tolist(),
                )
                rows.append(
                    {
                        "attribute": attribute,
                        "value": str(value),
                        "n": len(was),
                        "events": events,
                        "auroc": None if is_few else _auroc(bundle, said, was, groups[here].tolist()),
                        "mean_risk": float(said.mean()),
                        "observed": float(np.average(was, weights=weights[here, r])),
                        "coverage": {"observed": inside / full if full else None, "groups": full},
                        "note": "too few" if is_few else "",
                    }
                )
        found[spec.name] = rows
    return found


def _fairness(
    bundle: Bundle,
    held_out: Sequence[Example],
    risks: Array,
    labels: Array,
    weights: Array,
    thresholds: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    config, found = bundle.config, {}
    names = sorted({name for e in held_out for name in e.attributes})
    for r, spec in enumerate(config.outcomes):
        known = np.flatnonzero(~np.isnan(labels[:, r])).tolist()
        found[spec.name] = compare_groups(
            risks[known, r],
            labels[known, r],
            [held_out[i].group for i in known],
            {name: [held_out[i].attributes.get(name, "unknown") for i in known] for name in names},
            threshold=thresholds.get(spec.name, bundle.base_rates[r]),
            limits=Limits(config.most_auroc_gap, config.most_calibration_gap),
            seed=config.seed,
            weights=weights[known, r],
        )
    return found


def _auroc(bundle: Bundle, risks: Array, labels: Array, groups: Sequence[str]) -> dict[str, float | None]:
    risks, labels, groups = _known(risks, labels, groups)
    return metrics.bootstrap(metrics.auroc, risks, labels, groups, seed=bundle.config.seed)


def _known(risks: Array, labels: Array, groups: Sequence[str]) -> tuple[Array, Array, list[str]]:
    known = ~np.isnan(labels)
    return risks[known], labels[known], [g for g, k in zip(groups, known, strict=True) if k]
