"""The Monitoring screen: what it counts, for which version, and that it asks few questions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cds.hooks import figures as hook_figures
from cds.hooks.models import CardShown, Feedback
from cds.jobs.models import WorkState
from cds.registry.models import ModelVersion
from cds.risk import figures, responding
from cds.risk.models import RiskAssessment
from tests.web import clinic
from tests.web.clinic import Clinic
from web import charts_of_days

pytestmark = pytest.mark.django_db
MOST_QUERIES = 40


def page(client: Client, address: str = "/monitoring") -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def metric(text: str, name: str) -> str:
    found = re.search(rf'data-testid="metric-{name}".*?figure-value"?[^>]*>([^<]*)<', text, re.DOTALL)
    assert found, name
    return found[1]


def card(
    ward: Clinic, *, hook: str = "patient-view", version: ModelVersion | None = None, **more: object
) -> CardShown:
    known = {
        "service": f"tessera-icu-admission-{hook}", "hook_instance": "one", "kind": "risk",
        "version": version or ward.version, "milliseconds": 40.0, "shown_at": ward.now,
    }  # fmt: skip
    return CardShown.objects.create(**known | more)


def answer(of: CardShown, outcome: str, reason: str = "", system: str = responding.REASON_SYSTEM) -> None:
    Feedback.objects.create(
        card=of,
        outcome=outcome,
        reason_code=reason,
        reason_system=system,
        outcome_at=of.shown_at,
        received_at=of.shown_at,
    )


def test_feedback_is_counted_by_version_with_its_reasons(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    other = ModelVersion.objects.get(number=1)
    for outcome, *reason in (
        ("accepted", ""), ("overridden", "action-completed"),
        ("overridden", "patient-refuses", "urn:ehr"), ("overridden", ""),
    ):  # fmt: skip
        answer(card(ward), outcome, *reason)
    card(ward, kind="stale")
    answer(card(ward, version=other), "overridden", "action-completed")
    answer(card(ward, shown_at=ward.now - timedelta(days=20)), "accepted")
    text = page(sign_in("admin"))
    assert (metric(text, "answered"), metric(text, "accepted"), metric(text, "overridden")) == ("4", "1", "3")
    assert "of 5" in text
    for reason in ("Already acted upon", "patient-refuses", "No reason given"):
        assert reason in text
    assert "75 %" in text  # 3 of 4, with its interval
    assert "(30 % to 95 %)" in text
    month = page(sign_in("admin"), f"/monitoring?version={ward.version.pk}&days=30")
    assert metric(month, "accepted") == "2"
    assert metric(page(sign_in("approver"), f"/monitoring?version={other.pk}"), "overridden") == "1"


def test_accepted_suggestions_are_counted_by_what_they_were(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    lactate, echo = str(uuid.uuid4()), str(uuid.uuid4())
    offered = {lactate: "Order: Lactate", echo: "Order: Echocardiogram"}
    for chosen in ([lactate], [lactate, echo], []):
        answer(card(ward, suggestions=offered), "accepted")
        Feedback.objects.filter(accepted_suggestions=[]).update(accepted_suggestions=chosen)
    answer(card(ward), "accepted")  # a card of before they were noted
    Feedback.objects.filter(card__suggestions=None).update(accepted_suggestions=[lactate])
    found = hook_figures.feedback(ward.version, since=ward.now - timedelta(days=1)).suggestions
    assert [(label, one.count, one.of) for label, one in found] == [
        ("Order: Lactate", 2, 4), ("Order: Echocardiogram", 1, 4),
    ]  # fmt: skip
    text = page(sign_in("admin"))
    assert text.count('data-testid="accepted-suggestion"') == 2
    assert "Order: Lactate" in text


def test_calls_cards_alerts_and_times_by_hook(ward: Clinic) -> None:
    for spent in (10.0, 20.0, 30.0, None):
        card(ward, milliseconds=spent, hook_instance=f"call-{spent}")
    card(ward, hook="order-sign", hook_instance="two", indicator="warning", milliseconds=7.0)
    card(ward, hook="order-sign", hook_instance="two", indicator="info", milliseconds=7.0)
    view, sign = hook_figures.by_hook(ward.version, since=ward.now - timedelta(days=1))
    assert (view.hook, view.calls, view.cards, view.alerts) == ("patient-view", 4, 4, 0)
    assert (view.took.n, view.took.p50, view.took.p95) == (3, 20.0, 30.0)
    assert (sign.hook, sign.calls, sign.cards, sign.alerts, sign.took.n) == ("order-sign", 1, 2, 1, 2)


def test_scores_abstentions_missing_inputs_and_answers(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    now = timezone.now()
    RiskAssessment.objects.filter(version=ward.version).update(finished_at=now)
    done = RiskAssessment.objects.filter(version=ward.version, work_state=WorkState.DONE)
    done.update(
        missing=["cine"],
        missing_fields=["lactate", "family_cardiac"],
        milliseconds={"model": 12.0, "store": 3.0},
    )
    text = page(sign_in("admin"))
    scored = done.filter(abstained="").count()
    assert metric(text, "scored") == str(scored)
    assert (metric(text, "abstained"), metric(text, "failed")) == ("1", "1")
    assert "Outside the age range the model knows" in text
    found = figures.inputs(ward.version, since=now - timedelta(days=1))
    assert {name: one.count for name, one in found.missing} == {
        "Cine": scored,
        "Lactate": scored,
        "Heart disease in the family": scored,  # as the panel calls it
    }
    assert found.computing.p50 == 15.0


def test_no_patient_is_named_and_an_empty_site_says_so(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    clinic.feedback(ward)
    text = page(sign_in("admin"))
    assert "Sommer" not in text
    assert str(ward.patients[0].pk) not in text
    assert "Shifted" in text
    unused = ModelVersion.objects.get(number=3)
    empty = page(sign_in("admin"), f"/monitoring?version={unused.pk}")
    assert "No EHR was shown a card of this model." in empty
    assert "Nothing has been compared yet" in empty


def test_few_queries_however_much_there_is(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("admin")
    page(client)
    with CaptureQueriesContext(
        connection,
    ) as before:
        page(client)
    clinic.feedback(ward)
    with CaptureQueriesContext(connection) as after:
        page(client)
    assert len(after) <= MOST_QUERIES
    assert len(after) <= len(before) + 2  # and not by row


@pytest.mark.parametrize(
    ("count", "of", "low", "high"), [(0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763), (10, 10, 0.722, 1.0)]
)
def test_the_interval_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    found = figures.share(count, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.001), pytest.approx(high, abs=0.001))
    assert figures.share(0, 0).value is None


def test_a_day_without_answers_stays_a_gap() -> None:
    days = [
        charts_of_days.DayShare((timezone.now() - timedelta(days=ago)).date(), 1, 2, 0.5, 0.1, 0.9)
        for ago in (9, 8, 0)
    ]
    chart = charts_of_days.shares(days, title="t", counted="c", of="o")
    assert len(chart.marks) == len(chart.rows) == 3
    first, second, third = (mark.x for mark in chart.marks)
    assert third - second == pytest.approx(8 * (second - first))
    with pytest.raises(ValueError, match="at least one day"):
        charts_of_days.shares([], title="t", counted="c", of="o")
