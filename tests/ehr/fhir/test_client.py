"""The FHIR client against a server that pages, tires, errs and misleads."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from ehr import BadResource, FhirClient, Refused, Retriable, TooLarge
from ehr.errors import OutOfTime
from tests.ehr.fhir.resources_for_tests import coded, encounter, observation, patient, resource

BASE = "https://ehr.example/fhir"
Answer = httpx.Response | Callable[[httpx.Request], httpx.Response]


class Server:
    """Answers from a script: path and query → answers in turn, the last one again and again."""

    def __init__(self, **kwargs: Any) -> None:
        self.script: dict[str, list[Answer]] = {}
        self.asked: list[httpx.Request] = []
        self.slept: list[float] = []
        self.client = FhirClient(
            BASE, transport=httpx.MockTransport(self._answer), sleep=self.slept.append, **kwargs
        )

    def on(self, path: str, *answers: Answer | dict[str, Any]) -> Server:
        self.script[path] = [httpx.Response(200, json=a) if isinstance(a, dict) else a for a in answers]
        return self

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        query = request.url.query.decode()
        key = request.url.path.removeprefix("/fhir/") + (f"?{query}" if query else "")
        answers = self.script.get(key) or self.script.get(key.split("?")[0]) or [not_found()]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if callable(answer) else answer


def not_found() -> httpx.Response:
    return httpx.Response(
        404, json={"resourceType": "OperationOutcome", "issue": [{"code": "not-supported"}]}
    )


def page(*resources: dict[str, Any], after: str = "") -> dict[str, Any]:
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [{"resource": r} for r in resources],
    }
    return bundle | ({"link": [{"relation": "next", "url": after}]} if after else {})


def ids(server: Server, kind: str = "Observation") -> list[str]:
    return [str(item["id"]) for item in server.client.search(kind, {"patient": "p1"})]


def test_pages_are_followed_absolute_and_relative() -> None:
    server = Server().on(
        "Observation?patient=p1", page(observation(id="a"), after=f"{BASE}/Observation?page=2")
    )
    server.on("Observation?page=2", page(observation(id="b"), after="Observation?page=3"))
    server.on("Observation?page=3", page(observation(id="c")))
    assert ids(server) == ["a", "b", "c"]
    assert all(request.headers["accept"] == "application/fhir+json" for request in server.asked)


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/fhir/x",
        "http://ehr.example/fhir/x",
        "https://ehr.example:8443/x",
        "//evil.example/x",
        "file:///etc/passwd",
    ],
)
def test_a_next_page_on_another_origin_is_refused(elsewhere: str) -> None:
    server = Server(token="secret").on("Observation", page(observation(), after=elsewhere))
    with pytest.raises(Refused, match=r"another origin.*the proxy before it, give links by the one we call"):
        ids(server)
    assert len(server.asked) == 1, "the token went nowhere else"


def test_pages_in_circles_come_to_an_end() -> None:
    server = Server().on("Observation", page(observation(), after="Observation?patient=p1"))
    with pytest.raises(BadResource, match="circles"):
        ids(server)


def test_429_waits_as_long_as_asked() -> None:
    server = Server().on(
        "Observation", httpx.Response(429, headers={"Retry-After": "7"}), page(observation())
    )
    assert ids(server) == ["o1"]
    assert server.slept == [7.0]


def test_retry_after_may_be_a_date_and_is_bounded() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    dated = {
        "Date": format_datetime(now, usegmt=True),
        "Retry-After": format_datetime(now + timedelta(seconds=9), usegmt=True),
    }
    far = {"Retry-After": "86400"}
    server = Server().on(
        "Observation",
        httpx.Response(503, headers=dated),
        httpx.Response(503, headers=far),
        page(observation()),
    )
    assert ids(server) == ["o1"]
    assert server.slept == [9.0, 60.0]


def test_503_then_fine() -> None:
    server = Server().on("Observation", httpx.Response(503), httpx.Response(502), page(observation()))
    assert ids(server) == ["o1"]
    assert server.slept == [0.5, 1.0]


def test_patience_ends() -> None:
    server = Server().on("Observation", httpx.Response(503, headers={"Retry-After": "1"}))
    with pytest.raises(Retriable, match="503") as caught:
        ids(server)
    assert caught.value.retry_after_s == 1.0
    assert len(server.asked) == 5


def test_a_lost_connection_is_retriable() -> None:
    def lost(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("timed out", request=request)

    server = Server().on("Observation", lost)
    with pytest.raises(Retriable, match="ConnectTimeout"):
        ids(server)


def test_the_outcome_of_a_refusal_is_told_and_the_token_is_not() -> None:
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [{"code": "forbidden", "details": {"text": "scope is missing"}}],
    }
    server = Server(token="secret-token").on("Observation", httpx.Response(403, json=outcome))
    with pytest.raises(Refused, match=r"403: forbidden scope is missing .*have it allow") as caught:
        ids(server)
    assert caught.value.status == 403
    assert "secret-token" not in str(caught.value)
    assert server.asked[0].headers["authorization"] == "Bearer secret-token"


def test_redirects_are_not_followed() -> None:
    server = Server().on("Observation", httpx.Response(302, headers={"Location": "https://evil.example"}))
    with pytest.raises(Refused, match=r"redirects are not followed; it points to https://evil.example"):
        ids(server)


def test_bodies_are_capped_also_unpacked() -> None:
    packed = gzip.compress(json.dumps(page(observation(note=[{"text": "x" * 50_000}]))).encode())
    server = Server(max_page_bytes=10_000)
    server.on("Observation", httpx.Response(200, content=packed, headers={"Content-Encoding": "gzip"}))
    assert len(packed) < 10_000
    with pytest.raises(TooLarge, match="10000 bytes"):
        ids(server)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", json.dumps(observation()).encode()])
def test_what_is_no_searchset_is_said(body: bytes) -> None:
    server = Server().on("Observation", httpx.Response(200, content=body))
    with pytest.raises(BadResource):
        ids(server)


@pytest.mark.parametrize(
    "url",
    [
        "http://ehr.example/fhir",
        "ftp://ehr.example",
        "ehr.example",
        "https://user:pw@ehr.example/fhir",
        "https://ehr.example:99999/",
    ],
)
def test_addresses_we_may_not_call(url: str) -> None:
    with pytest.raises(Refused):
        FhirClient(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/fhir", "http://localhost/fhir", "http://[::1]/fhir"])
def test_loopback_may_be_plain(url: str) -> None:
    FhirClient(url).close()


def test_read() -> None:
    server = Server().on("Patient/p1", patient())
    assert server.client.read("Patient", "p1")["id"] == "p1"
    with pytest.raises(Refused, match="404: not-supported"):
        server.client.read("Patient", "p2")
    with pytest.raises(BadResource, match="not a FHIR id"):
        server.client.read("Patient", "../../admin")
    with pytest.raises(BadResource, match="another type"):
        server.on("Observation/p1", patient()).client.read("Observation", "p1")


def test_whole_patients_by_typed_searches() -> None:
    drug = resource("MedicationRequest", medicationReference={"reference": "Medication/m1"})
    medication = {"resourceType": "Medication", "id": "m1", "code": coded("860975", "urn:x")}
    server = Server().on("Patient", page(patient())).on("Encounter", page(encounter()))
    server.on("Observation?patient=p1&_count=200", page(observation(id="a"), after="Observation?page=2"))
    server.on("Observation?page=2", page(observation(id="b")))
    server.on("MedicationRequest", page(drug, medication))
    (record,) = server.client.patients()
    assert not record.patient.is_stub
    assert [found.resource_id for found in record.observations] == ["a", "b"]
    assert record.medications[0].code.code == "860975"
    assert len(record.encounters) == 1
    unsupported = {item.kind: item.reason for item in record.set_aside}
    assert "404: not-supported" in unsupported["FamilyMemberHistory"], (
        "an unsupported type is said, not taken for none"
    )


def test_only_patients_with_changes() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    stamp = "_lastUpdated=ge2026-01-01T00%3A00%3A00%2B00%3A00&_count=200"
    server = Server().on(f"Patient?{stamp}", page()).on(f"Observation?{stamp}", page(observation()))
    server.on("Patient/p1", patient()).on(
        "Observation?patient=p1&_count=200", page(observation(), observation(id="o2"))
    )
    unseen, record = server.client.patients(since=since)
    assert len(record.observations) == 2, "the whole patient comes"
    assert unseen.patient.resource_id == ""
    reasons = {item.kind: item.reason for item in unseen.set_aside}
    assert "changes are not seen" in reasons["FamilyMemberHistory"]
    assert "404: not-supported (the server has no FamilyMemberHistory here" in reasons["FamilyMemberHistory"]
    assert not {"Patient", "Observation"} & reasons.keys()


def test_a_patient_who_is_gone_does_not_stop_the_others() -> None:
    stamp = "_lastUpdated=ge2026-01-01T00%3A00%3A00%2B00%3A00&_count=200"
    server = Server().on(f"Patient?{stamp}", page(patient(id="gone"), patient())).on("Patient/p1", patient())
    _, gone, here = server.client.patients(since=datetime(2026, 1, 1, tzinfo=UTC))
    assert gone.patient.is_stub
    assert "404" in gone.set_aside[0].reason
    assert not here.patient.is_stub


def test_a_token_that_expires_midway_stops_everything() -> None:
    server = (
        Server().on("Patient", page(patient())).on("Encounter", page()).on("Condition", httpx.Response(401))
    )
    with pytest.raises(Refused, match="401"):
        list(server.client.patients())


def test_an_include_that_is_not_known_is_left_out() -> None:
    server = Server().on("Patient", page(patient()))
    server.on("Encounter?patient=p1&_count=200&_include=Encounter%3Alocation", httpx.Response(400))
    server.on("Encounter?patient=p1&_count=200", page(encounter()))
    (record,) = server.client.patients()
    assert len(record.encounters) == 1
    assert "Encounter" not in {item.kind for item in record.set_aside}


def test_what_changed_and_names_nobody_is_said() -> None:
    stamp = "_lastUpdated=ge2026-01-01T00%3A00%3A00%2B00%3A00&_count=200"
    lost = [observation(id=f"o{number}", subject={"display": "somebody"}) for number in range(3)]
    server = Server().on(f"Patient?{stamp}", page()).on(f"Observation?{stamp}", page(*lost))
    (unseen,) = server.client.patients(since=datetime(2026, 1, 1, tzinfo=UTC))
    (said,) = [item.reason for item in unseen.set_aside if item.kind == "Observation"]
    assert said.startswith(
        "3 have changed and are not fetched, such as o2: Observation.subject has no literal"
    )


@pytest.mark.parametrize("since", [None, datetime(2026, 1, 1, tzinfo=UTC)])
def test_a_warning_beside_the_patients_is_told(since: datetime | None) -> None:
    warning = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "warning", "code": "incomplete", "diagnostics": "an index is being built"}],
    }
    server = Server().on("Patient", page(warning)).on("Observation", page({**warning, "issue": 7}))
    (record,) = server.client.patients(since)
    assert record.patient.resource_id == ""
    assert "an index is being built" in record.set_aside[0].reason


def by_count(most: int, *resources: dict[str, Any], path: str = "Observation") -> Answer:
    """Pages as a server gives them by _count; one of more than `most` resources is too large to be read."""

    def answer(request: httpx.Request) -> httpx.Response:
        count, start = (int(request.url.params.get(name, 0)) for name in ("_count", "_start"))
        part, end = resources[start : start + count], start + count
        after = f"{BASE}/{path}?patient=p1&_count={count}&_start={end}" if end < len(resources) else ""
        if len(part) <= most:
            return httpx.Response(200, json=page(*part, after=after))
        return httpx.Response(200, content=b" " * 20_000)

    return answer


def test_a_page_over_the_cap_is_asked_for_in_smaller_ones() -> None:
    many = [observation(id=f"o{number}") for number in range(30)]
    server = (
        Server(max_page_bytes=10_000).on("Patient", page(patient())).on("Observation", by_count(7, *many))
    )
    (record,) = server.client.patients()
    assert [found.resource_id for found in record.observations] == [f"o{number}" for number in range(30)]
    assert "Observation" not in {item.kind for item in record.set_aside}
    counts = [request.url.params["_count"] for request in server.asked if "Observation" in request.url.path]
    assert counts[:4] == ["200", "100", "50", "25"]
    assert counts[-1] == "6"


def test_pages_that_grow_too_large_on_the_way_give_nothing_twice() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        params = request.url.params
        if params.get("page") == "2":
            return httpx.Response(200, content=b" " * 20_000)
        if params.get("_count", "200") == "200":
            after = f"{BASE}/Observation?page=2"
            return httpx.Response(200, json=page(observation(id="a"), observation(id="b"), after=after))
        return httpx.Response(200, json=page(*(observation(id=one) for one in "abc")))

    assert ids(Server(max_page_bytes=10_000).on("Observation", answer)) == ["a", "b", "c"]


def test_one_resource_over_the_cap_costs_no_other() -> None:
    found = [observation(id="a"), observation(id="b", note=[{"text": "x" * 20_000}])]
    server = Server(max_page_bytes=10_000).on("Patient", page(patient())).on("Encounter", page(encounter()))
    server.on("Observation", by_count(9, *found))
    (record,) = server.client.patients()
    assert [one.resource_id for one in record.observations] == ["a"], "what came before it"
    (said,) = [item.reason for item in record.set_aside if item.kind == "Observation"]
    assert "is larger than 10000 bytes; have the server keep attachments" in said
    assert len(record.encounters) == 1


def test_patients_on_a_page_over_the_cap_all_come() -> None:
    many = [patient(id=f"p{number}") for number in range(5)]
    server = Server(max_page_bytes=10_000).on("Patient", by_count(3, *many, path="Patient"))
    assert [record.patient.resource_id for record in server.client.patients()] == [f"p{n}" for n in range(5)]


DRUG = resource("MedicationRequest", medicationReference={"reference": "Medication/m1"})


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "passed over"])
def test_what_an_include_did_not_bring_is_read(refused: bool) -> None:
    medication = {"resourceType": "Medication", "id": "m1", "code": coded("860975", "urn:x")}
    place = {
        "resourceType": "Location",
        "id": "l1",
        "type": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "code": "ICU"}]}
        ],
    }
    stay = encounter(location=[{"location": {"reference": f"{BASE}/Location/l1"}}])
    server = Server().on("Patient", page(patient(), patient(id="p2")))
    for name, one, include in (
        ("MedicationRequest", DRUG, "MedicationRequest%3Amedication"),
        ("Encounter", stay, "Encounter%3Alocation"),
    ):
        server.on(f"{name}?patient=p1&_count=200", page(one))
        with_it = f"{name}?patient=p1&_count=200&_include={include}"
        server.on(with_it, httpx.Response(400) if refused else page(one))
    server.on("Medication/m1", medication).on("Location/l1", place)
    record, _ = server.client.patients()
    assert record.medications[0].code.code == "860975"
    assert record.encounters[0].kind == "intensive-care"
    assert not {"Medication", "Location"} & {item.kind for item in record.set_aside}


def test_what_is_pointed_to_and_denied_is_said_and_asked_for_once() -> None:
    server = Server().on("Patient", page(patient(), patient(id="p2")))
    server.on("MedicationRequest?patient=p1&_count=200", page(DRUG))
    theirs = {**DRUG, "id": "x2", "subject": {"reference": "Patient/p2"}}
    server.on("MedicationRequest?patient=p2&_count=200", page(theirs))
    server.on("Medication/m1", httpx.Response(403))
    for record in server.client.patients():
        (said,) = [item.reason for item in record.set_aside if item.kind == "Medication"]
        assert "403 (the server does not let this client" in said
    assert sum("Medication/m1" in request.url.path for request in server.asked) == 1


def test_what_is_pointed_to_is_read_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehr.fhir.client.MAX_READ", 2)
    drugs = [
        {**DRUG, "id": f"r{n}", "medicationReference": {"reference": f"Medication/m{n}"}} for n in range(5)
    ]
    server = Server().on("Patient", page(patient())).on("MedicationRequest", page(*drugs))
    (record,) = server.client.patients()
    assert sum("Medication/" in request.url.path for request in server.asked) == 2
    assert any("3 that this patient's resources point to are not read" in i.reason for i in record.set_aside)


def test_what_is_not_implemented_is_not_asked_for_again() -> None:
    server = Server().on("Patient", page(patient())).on("Condition", httpx.Response(501))
    (record,) = server.client.patients()
    (said,) = [item.reason for item in record.set_aside if item.kind == "Condition"]
    assert "501 (the server does not offer this)" in said
    assert server.slept == []


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "the server does not take our token"),
        (403, "have it allow system/Observation.rs there"),
        (404, "is the base URL that of its FHIR R4 API, path included?"),
        (406, "application/fhir\\+json"),
    ],
)
def test_a_refusal_says_what_to_change(status: int, advice: str) -> None:
    with pytest.raises(Refused, match=advice):
        ids(Server().on("Observation", httpx.Response(status)))


def test_what_came_before_the_time_was_over_is_kept_and_nothing_more_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three seconds a call would be minutes for many pages: all calls together have a limit of their own."""
    now = 0.0
    monkeypatch.setattr("ehr.calling.monotonic", lambda: now)

    def slow(answer: dict[str, Any]) -> Answer:
        def answered(request: httpx.Request) -> httpx.Response:
            nonlocal now
            now += 3
            return httpx.Response(200, json=answer)

        return answered

    server = Server(within_s=8).on("Patient/p1", patient()).on("Encounter", slow(page(encounter())))
    server.on("Condition", page())
    server.on(
        "Observation?patient=p1&_count=200", slow(page(observation(id="a"), after="Observation?page=2"))
    )
    server.on("Observation?page=2", slow(page(observation(id="b"), after="Observation?page=3")))
    (record,) = server.client.whole_patients(["p1"])
    assert server.client.is_out_of_time
    assert [found.resource_id for found in record.observations] == ["a", "b"]
    assert len(record.encounters) == 1
    said = {item.kind: item.reason for item in record.set_aside}
    assert "the time for all of it is over" in said["Observation"]
    assert "MedicationRequest, MedicationStatement" in said["Patient"]
    assert server.asked[-1].url.query == b"page=2"
    with pytest.raises(OutOfTime):
        server.client.read("Patient", "p1")


def test_an_answer_that_the_end_of_the_time_cuts_off_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("ehr.calling.monotonic", lambda: now)

    def cut_off(request: httpx.Request) -> httpx.Response:
        nonlocal now
        assert request.extensions["timeout"]["read"] == 2.0  # no longer than what is left
        now = 2
        raise httpx.ReadTimeout("slow", request=request)

    server = Server(within_s=2).on("Patient/p1", cut_off)
    with pytest.raises(OutOfTime):
        server.client.read("Patient", "p1")
    assert len(server.asked) == 1
