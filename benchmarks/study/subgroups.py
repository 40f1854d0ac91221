"""Sex and age: how well an arm ranks, how right its risks are and how often its intervals hold, by group.

As in every report (`fusion.fairness`, `fusion.conformal`), but on out-of-fold risks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from benchmarks.study import comparing
from benchmarks.study.folds import Floats, Heard, labels_of
from fusion import Bundle, Example
from fusion.batch import Batch
from fusion.conformal import covered
from fusion.fairness import Limits, compare_groups
from fusion.patterns import named

ATTRIBUTES = ("sex", "age")
HEAD = (
    "| group | rows / events | AUROC | observed − expected | coverage of 90 % intervals |",
    "| --- | --- | --- | --- | --- |",
)


def coverage(
    bundle: Bundle, batch: Batch, risks: Floats, examples: Sequence[Example]
) -> dict[tuple[str, str], tuple[int, int]]:
    """("sex", "female") → (groups scored alike whose event rate lay in their interval, groups).

    risks  float64 [B], of the first outcome; examples the same patients, none of them trained on
    """
    labels = labels_of(examples, bundle.config.outcomes[0].name)
    modalities = [m.value for m in bundle.config.modalities]
    patterns = np.array([named(row, modalities) for row in bundle.model.usable(batch.present).tolist()])
    attributes = [e.attributes for e in examples]
    found = {}
    for name in ATTRIBUTES:
        values = np.array([a.get(name, "") for a in attributes])
        for value in np.unique(values[values != ""]):
            here = np.flatnonzero(values == value)
            found[name, str(value)] = covered(
                bundle.intervals[0],
                risks[here],
                labels[here],
                patterns=patterns[here],
                attributes=[attributes[i] for i in here],
            )
    return found


def table(examples: Sequence[Example], heard: Heard, arm: str, seed: int) -> list[str]:
    """Markdown of one task, with an empty line after it; nothing where no group is known."""
    known = [name for name in ATTRIBUTES if len({e.attributes.get(name) for e in examples}) > 1]
    if not known:
        return []
    told = compare_groups(
        heard.risks[arm][0],
        heard.labels,
        heard.groups,
        {name: [e.attributes.get(name, "unknown") for e in examples] for name in known},
        threshold=float(heard.labels.mean()),
        limits=Limits(),
        seed=seed,
        draws=comparing.DRAWS,
    )
    lines = [
        f"By sex and age, *{arm}*, first repeat (95 % bootstrap over groups; coverage: Wilson; gaps as in "
        "`fusion.fairness`):",
        "",
        *HEAD,
    ]
    for row in told["groups"]:
        inside = heard.subgroups[arm].get((row["attribute"], row["value"]), (0, 0))
        lines.append(
            f"| {row['attribute']}: {row['value']} | {row['n']} / {row['events']} | "
            f"{_figure(row['auroc'], '.3f') if row['auroc'] else row['note']} | "
            f"{_figure(row['calibration'], '+.3f') if row['calibration'] else row['note']} | "
            f"{_share(*inside)} |"
        )
    within = [gap["said"] for gap in told["gaps"] if not gap["over"]]
    said = [
        f"Gaps over their limit and clear of chance: {'; '.join(told['reasons']) or 'none'}.",
        f"Widest others: {'; '.join(within) or 'none'}.",
    ]
    return [*lines, "", " ".join(said), ""]


def _figure(found: Mapping[str, float | None], how: str) -> str:
    value, low, high = (found[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{value:{how}} [{low:{how}}, {high:{how}}]"


def _share(inside: int, groups: int) -> str:
    if not groups:
        return "-"
    interval = binomtest(inside, groups).proportion_ci(method="wilson")
    return f"{inside / groups:.2f} [{interval.low:.2f}, {interval.high:.2f}] of {groups} groups"
