"""Nobody is alerted twice for the same thing; the number is always shown."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.environment import categories, quiet_roles
from cds.hooks import alerting, keeping
from cds.hooks.models import CardShown
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from cds.risk import responding
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, make_score

BY = recording.system("tests")
START = "/cds-services/tessera-icu-admission-encounter-start"
PREFETCH = hook_body()["prefetch"]  # the same each time: nothing new, so nothing stale
WHO = {"userId": "Practitioner/1", "patientId": "p1", "encounterId": "e1"}


@pytest.fixture
def at_high_risk(call: Call, version: ModelVersion) -> Patient:
    """A patient of the EHR whose risk is high."""
    call(SERVICE, hook_body(prefetch=PREFETCH))
    patient = Patient.objects.get()
    make_score(patient, version)
    return patient


def card(call: Call, hook: str = "patient-view", **context: str) -> dict[str, Any]:
    path = {"patient-view": SERVICE, "encounter-start": START}[hook]
    (found,) = call(path, hook_body(hook=hook, context={**WHO, **context}, prefetch=PREFETCH)).json()["cards"]
    assert "31 %" in found["summary"]  # quiet is not silent
    return found


def test_the_same_person_is_alerted_once_whatever_the_hook(call: Call, at_high_risk: Patient) -> None:
    assert card(call)["indicator"] == "warning"
    again = card(call, "encounter-start")
    assert again["indicator"] == "info"
    assert "You were alerted to this at" in again["detail"]
    assert card(call, userId="Practitioner/2")["indicator"] == "warning"  # somebody else was not


def test_alerted_again_after_the_quiet_hours(call: Call, at_high_risk: Patient, settings: Any) -> None:
    card(call)
    CardShown.objects.update(shown_at=timezone.now() - timedelta(hours=12, minutes=1))
    assert card(call)["indicator"] == "warning"
    settings.HOOKS_QUIET_S = 0
    assert card(call)["indicator"] == "warning"


def test_that_somebody_was_alerted_is_remembered_no_longer_than_the_quiet_hours(
    call: Call, at_high_risk: Patient, version: ModelVersion, settings: Any
) -> None:
    assert [card(call)["indicator"] for _ in range(3)] == ["warning", "info", "info"]
    assert alerting._remembered  # the third was not looked up
    settings.HOOKS_QUIET_S = 0
    assert card(call)["indicator"] == "warning"
    settings.HOOKS_QUIET_S = 12 * 3600
    make_score(at_high_risk, version, risk=0.66)  # risen: what is remembered is about a lower risk
    (found,) = call(SERVICE, hook_body(context=WHO, prefetch=PREFETCH)).json()["cards"]
    assert found["indicator"] == "warning"


def test_alerted_again_when_the_risk_has_risen(
    call: Call, at_high_risk: Patient, version: ModelVersion
) -> None:
    card(call)
    make_score(at_high_risk, version, risk=0.66)
    (found,) = call(SERVICE, hook_body(context=WHO, prefetch=PREFETCH)).json()["cards"]
    assert found["summary"].startswith("Very high: 66 %")
    assert found["indicator"] == "warning"


def test_what_anybody_has_acknowledged_alerts_nobody(
    call: Call, at_high_risk: Patient, version: ModelVersion
) -> None:
    prediction = at_high_risk.assessments.get(status="final").predictions.get()
    responding.acknowledge(prediction, by=BY, user=None, now=timezone.now())
    found = card(call)
    assert found["indicator"] == "info"
    assert "Acknowledged at" in found["detail"]
    make_score(at_high_risk, version, risk=0.66)  # it has risen since
    assert (
        call(SERVICE, hook_body(context=WHO, prefetch=PREFETCH)).json()["cards"][0]["indicator"] == "warning"
    )


def test_a_snooze_holds_for_what_was_snoozed_and_no_higher_category(
    call: Call, at_high_risk: Patient, version: ModelVersion
) -> None:
    body = hook_body(context=WHO, prefetch=PREFETCH)
    prediction = at_high_risk.assessments.get(status="final").predictions.get()
    responding.snooze(prediction, by=BY, user=None, now=timezone.now())
    for risk, indicators in ((0.31, []), (0.02, []), (0.66, ["warning"]), (0.31, [])):
        make_score(at_high_risk, version, risk=risk)
        cards = call(SERVICE, body).json()["cards"]
        assert [one["indicator"] for one in cards] == indicators, f"at a risk of {risk}"


def test_one_role_is_quieted_and_another_alerted(call: Call, at_high_risk: Patient, settings: Any) -> None:
    settings.HOOKS_QUIET_ROLES = quiet_roles("Practitioner,PractitionerRole/nurse-7")
    assert card(call, userId="PractitionerRole/nurse-7")["indicator"] == "info"
    assert card(call, userId="PractitionerRole/physician-7")["indicator"] == "warning"
    assert card(call, userId="PractitionerRole/physician-7")["indicator"] == "info"
    assert card(call, userId="PractitionerRole/registrar-7")["indicator"] == "warning"  # in another role
    assert card(call, userId="Practitioner/nurse-7")["indicator"] == "info"  # all of whom no role is known
    settings.HOOKS_QUIET_ROLES = quiet_roles("")
    assert card(call, userId="Practitioner/nurse-8")["indicator"] == "warning"


@pytest.mark.parametrize("user", ["Patient/p1", "RelatedPerson/r1"])
def test_a_patient_is_not_shown_a_risk(call: Call, at_high_risk: Patient, user: str) -> None:
    """Who opens their own record in a portal is no clinician: a launch refuses them, a card says nothing."""
    answer = call(SERVICE, hook_body(context={**WHO, "userId": user}, prefetch=PREFETCH))
    assert (answer.status_code, answer.json()) == (200, {"cards": []})
    assert not CardShown.objects.filter(user=user).exists()
    seen = AuditEvent.objects.filter(action="hook.call").latest("pk")
    assert (seen.outcome, seen.detail["user"]) == ("success", user)


@pytest.mark.parametrize(
    ("alert_at", "critical_at", "category", "expected"),
    [
        ("high", "never", "moderate", "info"),
        ("high", "never", "high", "warning"),
        ("high", "never", "very-high", "warning"),
        ("high", "very-high", "very-high", "critical"),
        ("never", "never", "very-high", "info"),
        ("moderate,icu-admission=very-high", "never", "high", "info"),
        ("very-high,icu-admission=moderate", "never", "moderate", "warning"),
    ],
)
def test_the_sites_thresholds(
    alert_at: str, critical_at: str, category: str, expected: str, settings: Any
) -> None:
    settings.HOOKS_ALERT_AT, settings.HOOKS_CRITICAL_AT = categories(alert_at), categories(critical_at)
    assert alerting.indicator_of("icu-admission", category).value == expected


def test_a_threshold_that_is_no_category_stops_the_start() -> None:
    with pytest.raises(ImproperlyConfigured):
        categories("high,death=huge")


def test_a_call_with_nothing_new_reads_one_row_and_misses_nothing(
    call: Call, at_high_risk: Patient, version: ModelVersion
) -> None:
    """What one statement finds unchanged is not read again; what has changed is seen by the next call."""
    card(call)
    card(call)
    asked: list[str] = []

    def note(execute: Any, sql: str, *others: Any) -> Any:
        asked.append(sql)
        return execute(sql, *others)

    with connection.execute_wrapper(note):
        card(call)
    reads = [sql for sql in asked if sql.startswith("SELECT")]
    patients = [sql for sql in reads if "hooks_prefetchread" in sql]
    assert len(patients) == 1
    assert not [sql for sql in reads if sql not in patients and "risk_" in sql]
    prediction = at_high_risk.assessments.get(status="final").predictions.get()
    snoozed = responding.snooze(prediction, by=BY, user=None, now=timezone.now())
    assert call(SERVICE, hook_body(context=WHO, prefetch=PREFETCH)).json()["cards"] == []
    snoozed.delete()
    make_score(at_high_risk, version, risk=0.02)
    (found,) = call(SERVICE, hook_body(context=WHO, prefetch=PREFETCH)).json()["cards"]
    assert found["summary"].startswith("Low: 2 %")
    assessment = at_high_risk.assessments.order_by("-queued_at")[0]
    assessment.pk, assessment.key, assessment.work_state = uuid.uuid4(), uuid.uuid4().hex, "failed"
    assessment.status, assessment.queued_at = "cancelled", timezone.now()
    assessment.save(force_insert=True)  # a newer one that failed: the last number stays
    (found,) = call(SERVICE, hook_body(context=WHO, prefetch=PREFETCH)).json()["cards"]
    assert found["summary"].startswith("Low: 2 %")


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite lets one call after the other write")
@pytest.mark.parametrize("quiet_hours", [12, 0])
def test_of_two_calls_at_once_one_alerts_and_the_other_says_so(
    call: Call,
    at_high_risk: Patient,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    quiet_hours: int,
) -> None:
    settings.HOOKS_QUIET_S = quiet_hours * 3600
    both = threading.Barrier(2, timeout=60)
    keep_shown = keeping.keep_shown

    def keep(shown: Any, *args: Any, **more: Any) -> Any:
        assert [one.card.indicator.value for one in shown] == ["warning"], "each decided before either kept"
        both.wait()
        return keep_shown(shown, *args, **more)

    def one_of_two(hook: str) -> dict[str, Any]:
        try:
            return card(call, hook)
        finally:
            connection.close()

    monkeypatch.setattr("cds.hooks.views.keeping.keep_shown", keep)
    with ThreadPoolExecutor(2) as pool:
        cards = list(pool.map(one_of_two, ["patient-view", "encounter-start"]))
    told = {one["uuid"]: one["indicator"] for one in cards}
    assert sorted(told.values()) == (["info", "warning"] if quiet_hours else ["warning", "warning"])
    if quiet_hours:
        (quiet,) = [one for one in cards if one["indicator"] == "info"]
        assert "You were alerted to this at" in quiet["detail"]
    kept = CardShown.objects.filter(pk__in=told).values_list("pk", "indicator")
    assert {str(pk): indicator for pk, indicator in kept} == told


def test_a_card_that_alerts_nobody_is_kept_in_one_statement(call: Call, at_high_risk: Patient) -> None:
    card(call)
    asked: list[str] = []

    def note(execute: Any, sql: str, *others: Any) -> Any:
        asked.append(sql)
        return execute(sql, *others)

    with connection.execute_wrapper(note):
        assert card(call)["indicator"] == "info"
    written = [sql for sql in asked if "audit_" in sql or "hooks_cardshown" in sql]
    if connection.vendor == "postgresql":
        assert len([sql for sql in written if "INSERT" in sql or "FOR UPDATE" in sql]) == 1
