"""What became of a version's scores, counted: for the Monitoring screen. Counts and shares, no patient.

Every query is bounded: by the version and the days asked for, or by NEWEST rows. No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.db.models import Count, Q

from cds import catalogue
from cds.catalogue import MODALITY_WORDS
from cds.jobs.models import WorkState
from cds.registry.models import ModelVersion
from cds.risk.models import Response, RiskAssessment, ShiftReport

NEWEST = 1000  # rows that are read one by one: times, missing inputs
REASONS = 12  # of abstaining
REPORTS = 10  # of shifts
Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of `of` with the 95 % Wilson interval of the share; all None where there is nothing to share.

    Source: Wilson 1927, J Am Stat Assoc 22:209.
    """

    count: int
    of: int
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """Quantiles in milliseconds of `n` measured times; None where none was measured."""

    n: int
    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores that came to an end. `reasons`: why no number was given, the most frequent first."""

    scored: int
    abstained: int
    failed: int
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of the newest scores: how often each input was missing, most often first; what computing took."""

    missing: tuple[tuple[str, Share], ...]
    computing: Times
    scores: int


@dataclass(frozen=True, slots=True)
class Responses:
    """Answers given on the panel. `waited` is the median from score to answer of the newest ones."""

    acknowledged: int
    overridden: int
    snoozed: int
    taken_back: int
    reasons: tuple[tuple[str, int], ...]
    waited: timedelta | None


@dataclass(frozen=True, slots=True)
class ShiftPoint:
    """One comparison of recent inputs with training: how many of them have shifted, and how far."""

    at: datetime
    scores: int
    inputs: int
    amber: int
    red: int


def share(count: int, of: int) -> Share:
    """A share with its 95 % Wilson interval, which stays within [0, 1] and is honest for few."""
    if of <= 0:
        return Share(count, 0)
    p, z2 = count / of, Z * Z
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = Z * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Share(count, of, p, round(low, 6), round(high, 6))


def times(milliseconds: Iterable[float | None]) -> Times:
    """Nearest-rank quantiles of what was measured."""
    known = sorted(one for one in milliseconds if one is not None)
    if not known:
        return Times(0)
    return Times(len(known), _rank(known, 0.5), _rank(known, 0.95))


def scores(version: ModelVersion, *, since: datetime) -> Scores:
    """How the scores of a version ended since then."""
    ended = RiskAssessment.objects.filter(version=version, finished_at__gte=since)
    done = Q(work_state=WorkState.DONE)
    counted = ended.aggregate(
        scored=Count("pk", filter=done & Q(abstained="")),
        abstained=Count("pk", filter=done & ~Q(abstained="")),
        failed=Count("pk", filter=Q(work_state=WorkState.FAILED)),
    )
    reasons = (
        ended.filter(done)
        .exclude(abstained="")
        .values_list("abstained")
        .annotate(n=Count("pk"))
        .order_by("-n")
    )
    return Scores(**counted, reasons=tuple(reasons[:REASONS]))


def inputs(version: ModelVersion, *, since: datetime) -> Inputs:
    """Missing inputs and computing times of the newest scores."""
    rows = list(
        RiskAssessment.objects.filter(
            version=version, finished_at__gte=since, work_state=WorkState.DONE, abstained=""
        )
        .order_by("-finished_at")
        .values_list("missing", "missing_fields", "milliseconds")[:NEWEST]
    )
    lacking = Counter(
        name for gone, fields, _ in rows for name in {*map(_modality, gone), *map(_field, fields)}
    )
    return Inputs(
        tuple((name, share(count, len(rows))) for name, count in lacking.most_common()),
        times(_total(spent) for _, _, spent in rows),
        len(rows),
    )


def responses(version: ModelVersion, *, since: datetime) -> Responses:
    """What people answered on the panel since then; what was taken back is counted apart."""
    given = Response.objects.filter(prediction__assessment__version=version, at__gte=since, via="panel")
    kinds = dict(given.values_list("kind").annotate(n=Count("pk")))
    reasons = (
        given.filter(kind="overridden").values_list("reason_code").annotate(n=Count("pk")).order_by("-n")[:20]
    )
    moments = given.filter(
        kind__in=["acknowledged", "overridden"], prediction__assessment__finished_at__isnull=False
    ).order_by("-at")
    waited = [
        (at - scored).total_seconds()
        for scored, at in moments.values_list("prediction__assessment__finished_at", "at")[:NEWEST]
        if scored is not None
    ]
    return Responses(
        acknowledged=kinds.get("acknowledged", 0),
        overridden=kinds.get("overridden", 0),
        snoozed=kinds.get("snoozed", 0),
        taken_back=kinds.get("undone", 0),
        reasons=tuple(reasons),
        waited=timedelta(seconds=median(waited)) if waited else None,
    )


def list_shifts(version: ModelVersion) -> list[ShiftPoint]:
    """The latest comparisons with training, newest first."""
    reports = ShiftReport.objects.filter(version=version).order_by("-at")[:REPORTS]
    return [
        ShiftPoint(
            one.at,
            one.scores,
            len(one.inputs),
            sum(found["band"] == "amber" for found in one.inputs),
            sum(found["band"] == "red" for found in one.inputs),
        )
        for one in reports
    ]


def _rank(ordered: Sequence[float], quantile: float) -> float:
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]


def _total(spent: dict[str, Any]) -> float | None:
    known = [float(value) for value in spent.values() if isinstance(value, int | float)]
    return sum(known) if known else None


def _modality(name: str) -> str:
    return MODALITY_WORDS.get(name, name)


def _field(name: str) -> str:
    label = catalogue.label_of(name)
    return label[:1].upper() + label[1:]
