"""Changes reach us by rest-hook, both shapes; what got lost on the way is found and fetched (INTEROP 37)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.jobs.models import OutboxMessage, WorkState
from cds.patients import sources
from cds.patients.models import Observation, Patient
from cds.subscriptions import errands, gaps, hearing
from cds.subscriptions.models import Errand, Subscription
from tests.hospital import Fault, Hospital, a_patient, a_pressure

pytestmark = pytest.mark.django_db
BY = recording.system("tests")
TOPIC = "http://hospital.example/topics/record-changed"


@pytest.fixture
def hospital() -> Iterator[Hospital]:
    with Hospital() as found:
        found.clock = datetime.now(UTC)
        found.put(a_patient(), a_pressure("o1"))
        yield found


@pytest.fixture
def caller(hospital: Hospital, client: Client) -> Caller:
    return Caller(hospital, client)


class Caller:
    """The hospital's notifier: it calls the endpoint of a Subscription as the Subscription says."""

    def __init__(self, hospital: Hospital, client: Client) -> None:
        self.hospital, self.client, self.sent = hospital, client, 0

    def subscribe(self, *options: str) -> Subscription:
        call_command("fhir_subscription", "add", self.hospital.base, "--source", "ward", *options)
        made = Subscription.objects.get()
        self.asked = self.hospital.resources["Subscription", made.server_id]
        return made

    def post(self, body: Any = b"", *, method: str = "post", more: str = "", secret: str = "") -> int:
        channel = self.asked["channel"]
        name, _, value = channel["header"][0].partition(": ")
        path = channel["endpoint"].removeprefix("http://127.0.0.1:8000") + more
        answer = getattr(self.client, method)(
            path,
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            content_type="application/fhir+json",
            headers={name: f"Bearer {secret}" if secret else value},
        )
        return int(answer.status_code)

    def notify(
        self, kind: str = "event-notification", *foci: str, number: int | None = None, shape: str = "r4b"
    ) -> int:
        """A notification of the backport about `foci`; each event counts, whether it is delivered or not."""
        events = []
        for focus in foci:
            self.sent = number or self.sent + 1
            event: dict[str, Any] = {"eventNumber": str(self.sent)}
            events.append(
                event | ({"focus": {"reference": f"{self.hospital.base}/{focus}"}} if focus else {})
            )
        return self.post(bundle(kind, self.sent, events, shape=shape))


def bundle(kind: str, total: int, events: list[dict[str, Any]], *, shape: str = "r4b") -> dict[str, Any]:
    if shape == "r4b":
        status = {
            "resourceType": "SubscriptionStatus", "status": "active", "type": kind, "topic": TOPIC,
            "eventsSinceSubscriptionStart": str(total), "notificationEvent": events,
        }  # fmt: skip
        return {
            "resourceType": "Bundle",
            "type": "subscription-notification",
            "entry": [{"resource": status}],
        }
    parameters: list[dict[str, Any]] = [
        {"name": "status", "valueCode": "active"},
        {"name": "type", "valueCode": kind},
        {"name": "events-since-subscription-start", "valueString": str(total)},
    ]
    for event in events:
        part = [{"name": "event-number", "valueString": event["eventNumber"]}]
        part += [{"name": "focus", "valueReference": event["focus"]}] if "focus" in event else []
        parameters.append({"name": "notification-event", "part": part})
    status = {"resourceType": "Parameters", "parameter": parameters}
    return {"resourceType": "Bundle", "type": "history", "entry": [{"resource": status}]}


BACKPORT = ("--shape", "backport", "--topic", TOPIC, "--heartbeat", "60", "--payload", "id-only")
R4 = ("--criteria", "Observation?")


def work() -> int:
    """Run what is queued, as a worker would; how many errands there were."""
    open_ones = list(Errand.objects.filter(work_state=WorkState.QUEUED).order_by("queued_at"))
    for errand in open_ones:
        errands.run(str(errand.pk))
    return len(open_ones)


def held() -> set[str]:
    return set(Observation.objects.values_list("resource_id", flat=True))


class TestSubscribing:
    def test_the_server_is_told_where_and_with_what_to_call(self, caller: Caller) -> None:
        made = caller.subscribe(*R4)
        assert caller.asked["criteria"] == "Observation?"
        assert caller.asked["channel"]["endpoint"].endswith(f"/fhir/subscriptions/{made.pk}")
        assert made.secret_digest not in json.dumps(caller.asked)
        assert AuditEvent.objects.filter(action="subscription.add", object_id=str(made.pk)).exists()

    def test_without_criteria_every_type_that_is_read(self, hospital: Hospital) -> None:
        call_command("fhir_subscription", "add", hospital.base, "--source", "ward")
        asked = set(Subscription.objects.values_list("criteria", flat=True))
        assert {"Patient?", "Observation?", "Condition?", "ImagingStudy?"} <= asked

    def test_a_topic_is_asked_for_with_heartbeat_and_content(self, caller: Caller) -> None:
        caller.subscribe(*BACKPORT, "--criteria", "Observation?category=laboratory")
        assert caller.asked["criteria"] == TOPIC
        (extension,) = caller.asked["_criteria"]["extension"]
        assert extension["valueString"] == "Observation?category=laboratory"
        assert caller.asked["channel"]["extension"][0]["valueUnsignedInt"] == 60
        assert caller.asked["channel"]["_payload"]["extension"][0]["valueCode"] == "id-only"

    def test_a_server_that_will_not_leaves_nothing_behind(self, hospital: Hospital) -> None:
        hospital.fail("Subscription", Fault.DENIED)
        with pytest.raises(CommandError, match="planned fault 403"):
            call_command("fhir_subscription", "add", hospital.base, "--source", "ward", *R4)
        assert not Subscription.objects.exists()

    def test_removing_takes_it_back_at_the_server_and_its_calls_are_refused(self, caller: Caller) -> None:
        made = caller.subscribe(*R4)
        call_command("fhir_subscription", "remove", str(made.pk))
        assert ("Subscription", made.server_id) in caller.hospital.gone
        assert caller.post() == 401

    def test_what_is_missing_is_said(self, hospital: Hospital) -> None:
        with pytest.raises(CommandError, match="--topic"):
            call_command("fhir_subscription", "add", hospital.base, "--source", "w", "--shape", "backport")
        with pytest.raises(CommandError, match="not https"):
            call_command("fhir_subscription", "add", "http://ehr.example/fhir", "--source", "w", *R4)


class TestTheDoor:
    def test_only_with_the_secret(self, caller: Caller) -> None:
        caller.subscribe(*R4)
        assert caller.post(secret="guessed") == 401
        assert caller.post(method="get") == 405
        assert not Errand.objects.exists()
        assert AuditEvent.objects.filter(action="subscription.notify", outcome="refused").count() == 1

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"{", 400),
            (b"[]", 400),
            (b'{"resourceType": "Bundle", "type": "batch"}', 400),
            (b'{"resourceType": "Bundle", "type": "history", "entry": []}', 400),
            (b'{"resourceType": "Bundle", "type": "history", "entry": [{"resource": 7}]}', 400),
            (b" " * (5 * 2**20 + 1), 413),
        ],
    )
    def test_bad_bodies_are_refused(self, caller: Caller, body: bytes, status: int) -> None:
        caller.subscribe(*R4)
        assert caller.post(body) == status
        assert not Errand.objects.exists()

    def test_the_answer_comes_before_the_work(self, caller: Caller) -> None:
        caller.subscribe(*R4)
        before = len(caller.hospital.asked)
        assert caller.post() == 200
        assert len(caller.hospital.asked) == before
        assert OutboxMessage.objects.filter(job="cds.subscriptions.tasks.run_errand").exists()


class TestR4:
    def test_a_ping_makes_us_ask_what_has_changed(self, caller: Caller) -> None:
        caller.subscribe(*R4)
        caller.hospital.put(a_pressure("o2", 140))
        caller.post()
        assert work() == 1
        assert held() == {"o1", "o2"}
        assert not Errand.objects.exists()

    def test_a_resource_names_its_patient_and_the_server_is_asked_for_the_rest(self, caller: Caller) -> None:
        caller.subscribe(*R4, "--payload", "full-resource")
        assert caller.asked["channel"]["payload"] == "application/fhir+json"
        changed = a_pressure("o2", 140)
        caller.hospital.put(changed)
        lie = changed | {"valueQuantity": {"value": 1, "code": "mm[Hg]"}}
        assert caller.post(lie, method="put", more="/Observation/o2") == 200
        work()
        assert Observation.objects.get(resource_id="o2").value == 140, "a notification is a hint, no source"

    def test_a_deleted_resource_goes(self, caller: Caller) -> None:
        caller.subscribe(*R4)
        caller.post()
        work()
        caller.hospital.delete("Observation", "o1")
        assert caller.post(method="delete", more="/Observation/o1") == 200
        work()
        assert held() == set()

    def test_what_no_notification_told_of_is_found_by_the_regular_check(self, caller: Caller) -> None:
        made = caller.subscribe(*R4, "--check-every", "600")
        caller.hospital.put(a_pressure("lost"))
        now = made.created_at
        assert gaps.watch(now + timedelta(seconds=500)) == 0
        assert gaps.watch(now + timedelta(seconds=700)) == 1
        assert gaps.watch(now + timedelta(seconds=700)) == 0, "one poll is under way"
        work()
        assert held() == {"o1", "lost"}
        made.refresh_from_db()
        assert made.gaps == 0
        assert made.good_until > now

    def test_one_poll_serves_every_subscription_to_a_server(self, hospital: Hospital) -> None:
        call_command("fhir_subscription", "add", hospital.base, "--source", "ward")
        later = datetime.now(UTC) + timedelta(hours=1)
        assert gaps.watch(later) == 1
        work()
        assert gaps.watch(datetime.now(UTC) + timedelta(seconds=600)) == 0


class TestBackport:
    @pytest.mark.parametrize("shape", ["r4b", "r4"])
    def test_an_event_is_fetched_and_counted(self, caller: Caller, shape: str) -> None:
        made = caller.subscribe(*BACKPORT)
        assert caller.notify("handshake", shape=shape) == 200
        made.refresh_from_db()
        assert (made.status, made.events_seen, made.gap) == ("active", 0, "")
        caller.hospital.put(a_pressure("o2", 140))
        caller.notify("event-notification", "Observation/o2", shape=shape)
        work()
        assert held() == {"o1", "o2"}
        made.refresh_from_db()
        assert (made.events_seen, made.gaps, made.last_error) == (1, 0, "")
        assert AuditEvent.objects.filter(actor="system:subscription", action="patient.import").exists()

    def test_the_patient_is_asked_for_scores(self, caller: Caller, monkeypatch: Any) -> None:
        asked: list[Any] = []
        monkeypatch.setattr("cds.risk.assessing.request_all", lambda patient, **_: asked.append(patient.pk))
        caller.subscribe(*BACKPORT)
        caller.notify("event-notification", "Observation/o1")
        work()
        assert asked == [Patient.objects.get().pk]

    def test_a_lost_event_is_seen_in_the_next_number_and_fetched(self, caller: Caller) -> None:
        made = caller.subscribe(*BACKPORT)
        caller.hospital.put(a_patient("p2"), a_pressure("lost", patient="p2"), a_pressure("o3"))
        caller.sent = 1  # about p2, and it never came
        caller.notify("event-notification", "Observation/o3")
        made.refresh_from_db()
        assert made.gap == "events between 0 and 2 did not arrive"
        work()
        assert held() == {"o1", "o3", "lost"}
        made.refresh_from_db()
        assert (made.gap, made.gaps, made.events_seen) == ("", 1, 2)

    @pytest.mark.parametrize("kind", ["heartbeat", "query-status"])
    def test_a_lost_event_is_seen_in_a_count(self, caller: Caller, kind: str) -> None:
        made = caller.subscribe(*BACKPORT)
        caller.hospital.put(a_pressure("lost"))
        caller.sent = 1
        caller.notify(kind)
        made.refresh_from_db()
        assert made.gap == "the server has sent 1 events, 0 arrived"
        work()
        assert "lost" in held()

    def test_a_heartbeat_with_nothing_new_asks_nothing(self, caller: Caller) -> None:
        made = caller.subscribe(*BACKPORT)
        caller.notify("heartbeat")
        before, made = made, Subscription.objects.get()
        assert made.good_until > before.good_until
        assert work() == 0

    def test_silence_is_a_gap(self, caller: Caller) -> None:
        made = caller.subscribe(*BACKPORT)
        caller.notify("handshake")
        caller.hospital.put(a_pressure("lost"))
        heard = Subscription.objects.get().heard_at
        assert heard
        assert gaps.watch(heard + timedelta(seconds=100)) == 0
        assert gaps.watch(heard + timedelta(seconds=200)) == 1
        work()
        made.refresh_from_db()
        assert made.gaps == 1
        assert "lost" in held()

    def test_a_server_that_counts_anew_is_polled(self, caller: Caller) -> None:
        made = caller.subscribe(*BACKPORT)
        caller.notify("event-notification", "Observation/o1", number=1)
        caller.sent = 0
        caller.notify("handshake")
        made.refresh_from_db()
        assert made.events_seen == 0
        assert "counts anew" in made.gap

    def test_events_in_the_wrong_order_lose_nothing(self, caller: Caller) -> None:
        made = caller.subscribe(*BACKPORT)
        caller.hospital.put(a_pressure("o2"), a_pressure("o3"))
        caller.notify("event-notification", "Observation/o3", number=2)
        caller.notify("event-notification", "Observation/o2", number=1)
        work()
        made.refresh_from_db()
        assert (made.events_seen, held()) == (2, {"o1", "o2", "o3"})

    def test_an_event_of_something_gone_removes_it(self, caller: Caller) -> None:
        caller.subscribe(*BACKPORT)
        caller.notify("event-notification", "Observation/o1")
        work()
        caller.hospital.delete("Observation", "o1")
        caller.notify("event-notification", "Observation/o1")
        work()
        assert held() == set()

    def test_a_burst_about_one_patient_is_one_pull(self, caller: Caller) -> None:
        caller.subscribe(*BACKPORT, "--payload", "full-resource")
        for _ in range(20):
            caller.notify("event-notification", "Patient/p1")
        work()
        assert caller.hospital.times("GET /fhir/Patient/p1") == 1
        assert not Errand.objects.exists()

    def test_a_server_that_was_down_is_polled_later(self, caller: Caller, monkeypatch: Any) -> None:
        monkeypatch.setattr("time.sleep", lambda _: None)
        made = caller.subscribe(*BACKPORT)
        caller.hospital.put(a_pressure("o2"))
        caller.hospital.fail("Observation", Fault.DOWN, times=15)
        caller.notify("event-notification", "Observation/o2")
        for _ in range(3):
            assert work() == 1
        made.refresh_from_db()
        assert made.gap == "what was named could not be fetched"
        assert "503" in made.last_error
        assert gaps.watch(datetime.now(UTC)) == 1
        work()
        made.refresh_from_db()
        assert (made.gap, made.last_error) == ("", "")
        assert held() == {"o1", "o2"}
        assert not Errand.objects.exists(), "what failed was found by polling"

    def test_the_list_says_how_each_stands(self, caller: Caller, capsys: Any) -> None:
        caller.subscribe(*BACKPORT)
        caller.sent = 4
        caller.notify("heartbeat")
        call_command("fhir_subscription", "list")
        said = capsys.readouterr().out
        assert "open gap: the server has sent 4 events, 0 arrived" in said
        assert "events 4" in said


class TestPaused:
    """A paused source: what the server tells is remembered, and fetched when somebody resumes it."""

    @pytest.fixture
    def told(self, hospital: Hospital, caller: Caller) -> Subscription:
        made = caller.subscribe(*BACKPORT)
        sources.pause(made.source, by=BY, now=datetime.now(UTC))
        return made

    def test_nothing_is_fetched_until_it_is_resumed(
        self, hospital: Hospital, caller: Caller, told: Subscription
    ) -> None:
        hospital.put(a_pressure("o2"))
        asked = len(hospital.asked)
        assert caller.notify("event-notification", "Observation/o1") == 200
        assert caller.notify("event-notification", "Observation/o2") == 200
        assert work() == 1, "one errand remembers both"
        assert gaps.watch(datetime.now(UTC) + timedelta(days=1)) == 0
        assert (held(), len(hospital.asked)) == (set(), asked)
        sources.resume(told.source, by=BY, now=datetime.now(UTC))
        work()
        assert held() == {"o1", "o2"}
        assert not Errand.objects.exists()

    def test_more_than_is_kept_by_name_is_polled_for(
        self, hospital: Hospital, caller: Caller, told: Subscription, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hearing, "MAX_FOCI", 1)
        hospital.put(a_pressure("o2"))
        caller.notify("event-notification", "Observation/o1")
        caller.notify("event-notification", "Observation/o2")
        told.refresh_from_db()
        assert "while the source was paused" in told.gap
        sources.resume(told.source, by=BY, now=datetime.now(UTC))
        assert gaps.watch(datetime.now(UTC)) == 1
        work()
        assert held() == {"o1", "o2"}
        told.refresh_from_db()
        assert told.gap == ""
