"""What became of a version's cards, counted: for the Monitoring screen. Counts and shares, no patient.

Every query is bounded by the version and the days asked for. A call that got no card, because the outcome was
snoozed or no imaging was ordered, leaves no row here: it is in the audit trail and in /metrics only; nor
is a card counted that came too late for its caller.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.db.models import Count, Q
from django.db.models.functions import TruncDate

from cds.hooks.contexts import HOOKS
from cds.hooks.models import CardShown, Feedback
from cds.registry.models import ModelVersion
from cds.risk import responding
from cds.risk.figures import NEWEST, Share, Times, share, times

REASONS = 20
ALERTING = ("warning", "critical")


@dataclass(frozen=True, slots=True)
class HookFigures:
    """One hook: calls that got cards, the cards, those that alerted, and how long the newest calls took."""

    hook: str
    calls: int
    cards: int
    alerts: int
    took: Times


@dataclass(frozen=True, slots=True)
class DayOfFeedback:
    """Feedback about the cards shown on one day; `overridden` is its share of all answers."""

    day: date
    accepted: int
    overridden: Share


@dataclass(frozen=True, slots=True)
class FeedbackFigures:
    """answered    cards with feedback, of those shown
    overridden  of the answers
    reasons     words (or the code of another system), how often
    suggestions labels of suggestions that were accepted, in how many of the acceptances
    """

    answered: Share
    accepted: int
    overridden: Share
    reasons: tuple[tuple[str, Share], ...]
    suggestions: tuple[tuple[str, Share], ...]
    days: tuple[DayOfFeedback, ...]


def by_hook(version: ModelVersion, *, since: datetime) -> list[HookFigures]:
    """The hooks at which this version's cards were shown, in our order."""
    shown = _shown(version, since)
    counted = list(
        shown.values("service").annotate(
            calls=Count("hook_instance", distinct=True),
            cards=Count("pk"),
            alerts=Count("pk", filter=Q(indicator__in=ALERTING)),
        )
    )
    newest: dict[str, list[float | None]] = defaultdict(list)
    for service, spent in shown.order_by("-shown_at").values_list("service", "milliseconds")[:NEWEST]:
        newest[_hook(service)].append(spent)
    return [
        HookFigures(
            hook,
            sum(row["calls"] for row in rows),
            sum(row["cards"] for row in rows),
            sum(row["alerts"] for row in rows),
            times(newest[hook]),
        )
        for hook, rows in _by_hook(counted)
    ]


def kinds(version: ModelVersion, *, since: datetime) -> list[tuple[str, int]]:
    """What the cards said, by kind, the most frequent first."""
    counted = _shown(version, since).values_list("kind").annotate(n=Count("pk"))
    return [(kind.replace("-", " "), n) for kind, n in counted.order_by("-n")]


def feedback(version: ModelVersion, *, since: datetime) -> FeedbackFigures:
    """What EHRs told us that clinicians did with the cards shown since then."""
    sent = Feedback.objects.filter(card__version=version, card__shown_at__gte=since)
    answered = sent.aggregate(cards=Count("card", distinct=True))["cards"]
    days: dict[date, dict[str, int]] = defaultdict(dict)
    rows = sent.annotate(day=TruncDate("card__shown_at")).values_list("day", "outcome")
    for day, outcome, n in rows.annotate(n=Count("pk")):
        days[day][outcome] = n
    accepted = sum(one.get("accepted", 0) for one in days.values())
    overridden = sum(one.get("overridden", 0) for one in days.values())
    coded = sent.filter(outcome="overridden").values_list("reason_system", "reason_code")
    reasons = coded.annotate(n=Count("pk")).order_by("-n", "reason_code")
    return FeedbackFigures(
        answered=share(answered, _shown(version, since).count()),
        accepted=accepted,
        overridden=share(overridden, accepted + overridden),
        reasons=tuple(
            (reason_words(code, system), share(n, overridden)) for system, code, n in reasons[:REASONS]
        ),
        suggestions=tuple((label, share(n, accepted)) for label, n in _accepted(sent).most_common(REASONS)),
        days=tuple(
            DayOfFeedback(
                day,
                one.get("accepted", 0),
                share(one.get("overridden", 0), one.get("accepted", 0) + one.get("overridden", 0)),
            )
            for day, one in sorted(days.items())
        ),
    )


def _accepted(sent: Any) -> Counter[str]:
    """Suggestions by label, each acceptance counted once; of cards that noted what they suggested."""
    chosen = sent.filter(outcome="accepted", card__suggestions__isnull=False).exclude(accepted_suggestions=[])
    labels: Counter[str] = Counter()
    for accepted, offered in chosen.values_list("accepted_suggestions", "card__suggestions").iterator():
        labels.update({offered[one] for one in accepted if one in offered})
    return labels


def reason_words(code: str, system: str = responding.REASON_SYSTEM) -> str:
    """An override reason as our form says it; another system's code as it came."""
    if responding.is_ours(system, code):
        return responding.OVERRIDE_REASONS[code].words
    return code or "No reason given"


def _shown(version: ModelVersion, since: datetime) -> Any:
    return CardShown.objects.filter(version=version, shown_at__gte=since, was_late=False)


def _hook(service: str) -> str:
    return next((hook for hook in HOOKS if service.endswith(f"-{hook}")), service)


def _by_hook(counted: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in counted:
        grouped[_hook(row["service"])].append(row)
    order = list(HOOKS)
    return sorted(grouped.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
