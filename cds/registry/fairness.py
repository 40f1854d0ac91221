"""What a version's report says of fairness, against the limits of this site as they are now. No torch here.

The report keeps every gap between groups of patients with its interval, so a limit that is tightened later
judges versions that were trained before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings

from cds.errors import Conflict
from cds.registry.models import ModelVersion


def gaps_over(version: ModelVersion) -> list[str]:
    """One sentence for every gap that is over its limit and that chance alone would not explain."""
    limits = {"auroc": settings.FAIRNESS_AUROC_GAP, "calibration": settings.FAIRNESS_CALIBRATION_GAP}
    found = []
    for outcome, said in fairness_of(version).items():
        for gap in said.get("gaps", ()):
            limit = limits.get(gap["figure"])
            if limit is not None and gap["clear"] and abs(gap["value"]) > limit:
                found.append(f"{outcome}, {str(gap['said']).rpartition(';')[0]}; limit {limit:.2f}")
    return found


def check_gaps(version: ModelVersion) -> None:
    """Raises Conflict, naming the gaps: no person may promote past it, only retraining or the site's
    limits."""
    if over := gaps_over(version):
        raise Conflict(
            f"{version.label} differs too much between groups of patients: {'. '.join(over)}. "
            "Train it again, or have the site's limits changed"
        )


def fairness_of(version: ModelVersion) -> Mapping[str, Any]:
    """Outcome → what the report says of its groups; {} for versions from before that was measured."""
    said = (version.report or {}).get("fairness") or {}
    return said if isinstance(said, Mapping) else {}
