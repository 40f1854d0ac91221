"""CDS Hooks: requests of every kind, each with a sound token, through the door an EHR knocks at.

Whatever comes: no 5xx, no success without a card because something failed, a reason in FHIR's words for every
refusal, an audit event for every call, and nothing written by a call that was refused.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from uuid import UUID

import orjson
import pytest
from django.apps import apps
from django.db import connection
from django.http import HttpResponse
from django.test import RequestFactory
from hypothesis import given

from cds.audit.models import AuditEvent
from cds.hooks import client_auth, linking, offering, ordering, wire
from cds.hooks.contexts import CLINICIANS
from cds.hooks.models import CardShown, Feedback, HookClient
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, Call, hook_body, make_score, token
from tests.fuzz.examples import SEEDS, few, forgotten, many, partly
from tests.fuzz.hook_requests import WITH_ORDERS, Case, case, feedback, path

pytestmark = pytest.mark.django_db
BESIDES = {"AuditEvent", "AuditChain", "SpentToken"}  # what a refused call leaves: that it was refused
ABOUT_NOBODY = {
    "feedback": [
        {"card": str(UUID(int=7)), "outcome": "accepted", "outcomeTimestamp": "2026-03-01T08:00:00Z"}
    ]
}
REFUSALS = {400, 403, 412, 413, 422}


@pytest.fixture
def ready(call: Call, hook_client: HookClient, version: ModelVersion, settings: Any) -> Call:
    """An EHR with a FHIR server at which nobody listens, and an active model."""
    hook_client.fhir_servers = ["http://127.0.0.1:9/fhir"]
    hook_client.save()
    settings.HOOKS_CALLS_PER_MINUTE = 0
    settings.HOOKS_BUDGET_S = 86_400.0  # a long run may be stopped for minutes, and go on
    for held in (client_auth, offering, linking):
        held.forget()
    return call


def counts() -> Counter[str]:
    """Rows of every model, in one query."""
    names = {one._meta.db_table: one.__name__ for one in apps.get_models()}
    each = (f"SELECT '{table}', COUNT(*) FROM {table}" for table in names)
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(each))
        return Counter({names[table]: rows for table, rows in cursor.fetchall()})


def check(asked: Case, answer: HttpResponse, before: Counter[str]) -> list[dict[str, Any]]:
    """The promises about one answer; returns its cards."""
    audited = AuditEvent.objects.filter(action="hook.call").order_by("pk").last()
    assert audited is not None, "a call without an audit event"
    if answer.status_code != 200:
        assert not asked.is_sound, f"a sound request was refused: {answer.content[:300]!r}"
        assert answer.status_code in REFUSALS, f"{answer.status_code}: {answer.content[:300]!r}"
        said = orjson.loads(answer.content)
        assert said["resourceType"] == "OperationOutcome"
        assert said["issue"][0]["diagnostics"]
        assert audited.outcome == "refused"
        written = counts() - before
        assert not set(written) - BESIDES, f"refused with {answer.status_code}, and yet written: {written}"
        return []
    cards: list[dict[str, Any]] = orjson.loads(answer.content)["cards"]
    assert cards or nothing_to_say(asked), "200 without a card"
    assert audited.outcome == "success"
    assert {one["id"] for one in audited.detail["cards"]} == {card["uuid"] for card in cards}
    assert CardShown.objects.filter(pk__in=[card["uuid"] for card in cards]).count() == len(cards)
    for card in cards:
        assert 0 < len(card["summary"]) < 140
        assert "%" in card["summary"] or "not a low risk" in card["detail"]
    return cards


def nothing_to_say(asked: Case) -> bool:
    """At order hooks, orders that are not imaging get no card; patients and their relatives never do."""
    context = wire.parse_request(wire.parse_json(asked.body), hook=asked.hook).context
    if context.role not in CLINICIANS:
        return True
    return asked.hook in WITH_ORDERS and not ordering.imaging_ordered(context.orders)


def path_of(hook: str) -> str:
    return f"/cds-services/tessera-icu-admission-{hook}"


@many
@given(seed=SEEDS)
def test_any_request_gets_cards_or_a_reason(ready: Call, version: ModelVersion, seed: int) -> None:
    asked = case(seed)
    path = path_of(asked.hook)
    with forgotten():
        before = counts()
        answer = ready(path, raw=asked.body)
        cards = check(asked, answer, before)
        if answer.status_code != 200:
            return
        patient = Patient.objects.get()
        revision = patient.revision
        make_score(patient, version)
        again = check(asked, ready(path, raw=asked.body), counts())
        patient.refresh_from_db()
        assert patient.revision == revision, "the same request once more changed the record"
        assert len(again) == len(cards)
        assert all("31 %" in card["summary"] for card in again), "a stored number is not shown"


@partly
@given(seed=SEEDS)
def test_any_feedback_is_kept_once_or_refused(ready: Call, version: ModelVersion, seed: int) -> None:
    with forgotten():
        path = path_of("patient-view")
        body = hook_body()
        ready(path, body)
        make_score(Patient.objects.get(), version)
        (card,) = ready(path, body).json()["cards"]
        sent = feedback(seed, card["uuid"])
        before = counts()
        answer = ready(f"{path}/feedback", raw=sent)
        written = set(counts() - before)
        if answer.status_code == 200:
            assert Feedback.objects.exists()
        else:
            assert answer.status_code in REFUSALS | {404}, answer.content[:300]
            said = orjson.loads(answer.content)
            assert said["resourceType"] == "OperationOutcome"
            kept_of_it = re.match(r"(\d+) of \d+ items are kept", said["issue"][-1]["diagnostics"])
            if written - BESIDES:  # the sound items: it says how many, those sent twice included
                assert kept_of_it is not None
                assert int(kept_of_it[1]) >= Feedback.objects.count() > 0
            else:
                assert kept_of_it is None or kept_of_it[1] == "0"
        kept = counts()
        assert ready(f"{path}/feedback", raw=sent).status_code == answer.status_code
        assert not set(counts() - kept) - BESIDES, "the same once more was kept once more"


@partly
@given(seed=SEEDS)
def test_any_address_is_answered_with_a_reason(ready: Call, version: ModelVersion, seed: int) -> None:
    """Whatever stands below /cds-services: cards at the service's own address, else 404, audited."""
    right = path_of("patient-view")
    where = path(seed, right.rpartition("/")[2])
    seen = RequestFactory().get(where).path  # as the server reads it
    with forgotten():
        before = counts()
        body = ABOUT_NOBODY if seen.endswith("/feedback") else hook_body()
        answer = ready(where, body, bearer=token(BASE + seen))
        if seen == right:
            assert answer.status_code == 200
            return
        assert answer.status_code == 404, seen  # of feedback: the card is unknown
        assert orjson.loads(answer.content)["resourceType"] == "OperationOutcome"
        assert AuditEvent.objects.get(action="hook.call").outcome == "refused"
        assert not set(counts() - before) - BESIDES


@few
@given(seed=SEEDS)
def test_past_its_budget_a_call_says_so_and_keeps_nothing(ready: Call, settings: Any, seed: int) -> None:
    asked = case(seed)
    with forgotten():
        settings.HOOKS_BUDGET_S = 0.0
        answer = ready(path_of(asked.hook), raw=asked.body)
        settings.HOOKS_BUDGET_S = 86_400.0
        assert answer.status_code in REFUSALS | {503}
        said = orjson.loads(answer.content)
        assert said["resourceType"] == "OperationOutcome"
        if answer.status_code == 503:
            assert "budget" in said["issue"][0]["diagnostics"]
            assert answer["Retry-After"]
        assert not CardShown.objects.exists()
        event = AuditEvent.objects.get(action="hook.call")
        assert event.outcome == ("failed" if answer.status_code == 503 else "refused")
