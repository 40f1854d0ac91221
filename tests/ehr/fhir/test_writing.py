"""Writing to a FHIR server: created once whatever is lost, updated when amended, refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from ehr import Done, FhirWriter, Refused, Retriable, identified
from tests.ehr.fhir.receiving_server import Hospital
from tests.ehr.fhir.test_risk_assessment import build


def writer(hospital: Hospital, **changes: Any) -> FhirWriter:
    return FhirWriter("https://ehr.example/fhir", transport=hospital.transport(), **changes)


@pytest.mark.parametrize("silent", [False, True])
def test_it_is_created_once_and_left_alone_after(silent: bool) -> None:
    hospital, built = Hospital(silent=silent), build()
    with writer(hospital) as ours:
        first = ours.put(built, match=identified(built))
        again = ours.put(built, match=identified(built))
    assert (first.resource_id, first.done) == ("1", Done.CREATED)
    assert (again.resource_id, again.done, again.version) == ("1", Done.UNCHANGED, "1")
    assert len(hospital.of("RiskAssessment")) == 1


def test_an_answer_lost_after_creating_is_found_by_the_next_attempt() -> None:
    hospital, built = Hospital(lose=1), build()
    with writer(hospital) as ours:
        with pytest.raises(Retriable, match="POST /fhir/RiskAssessment: ReadError"):
            ours.put(built, match=identified(built))
        again = ours.put(built, match=identified(built))
    assert (again.resource_id, again.done) == ("1", Done.UNCHANGED)
    assert len(hospital.of("RiskAssessment")) == 1


def test_the_condition_holds_where_the_search_does_not_see_it_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that lags: the search finds nothing, If-None-Exist does."""
    hospital, built = Hospital(), build()
    with writer(hospital) as ours:
        ours.put(built, match=identified(built))
        empty = {"resourceType": "Bundle", "type": "searchset"}
        monkeypatch.setattr(hospital, "_get", lambda path, query: empty)
        again = ours.put(built, match=identified(built))
    assert (again.resource_id, again.done) == ("1", Done.UNCHANGED)
    assert len(hospital.of("RiskAssessment")) == 1


def test_an_amended_one_is_updated_where_it_lies() -> None:
    hospital = Hospital()
    with writer(hospital) as ours:
        ours.put(build(status="preliminary"), match=identified(build()))
        done = ours.put(build(), match=identified(build()))
    assert (done.resource_id, done.version, done.done) == ("1", "2", Done.UPDATED)
    (held,) = hospital.of("RiskAssessment")
    assert held["status"] == "final"


def test_somebody_else_changing_it_meanwhile_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = Hospital()
    with writer(hospital) as ours:
        ours.put(build(status="preliminary"), match=identified(build()))
        seen = hospital._get("RiskAssessment", "")
        stale = {
            **seen,
            "entry": [{"resource": {**seen["entry"][0]["resource"], "meta": {"versionId": "0"}}}],
        }
        monkeypatch.setattr(hospital, "_get", lambda path, query: stale)
        with pytest.raises(Retriable, match="412"):
            ours.put(build(), match=identified(build()))


def test_two_of_ours_on_the_server_are_never_guessed_between() -> None:
    hospital, built = Hospital(), build()
    for number in ("1", "2"):
        hospital.resources[f"RiskAssessment/{number}"] = {**built, "id": number}
    with writer(hospital) as ours, pytest.raises(Refused, match="more than one RiskAssessment of ours"):
        ours.put(built, match=identified(built))


def test_busy_and_refused_are_told_apart_with_the_servers_words() -> None:
    hospital, built = Hospital(busy=1), build()
    with writer(hospital) as ours:
        with pytest.raises(Retriable) as waits:
            ours.put(built, match=identified(built))
        assert waits.value.retry_after_s == 7
        hospital.refuse = {"RiskAssessment": 422}
        with pytest.raises(Refused, match=r"422.*not here"):
            ours.put(built, match=identified(built))


def test_the_token_is_sent_and_other_addresses_are_refused() -> None:
    hospital, built = Hospital(), build()
    with writer(hospital, token="s3cret") as ours:
        ours.put(built, match=identified(built))
    assert set(hospital.tokens) == {"Bearer s3cret"}
    for address in ("http://ehr.example/fhir", "https://user:word@ehr.example/fhir", "ftp://ehr.example"):
        with pytest.raises(Refused):
            FhirWriter(address)


def test_what_a_server_cannot_do_is_said_beforehand() -> None:
    with writer(Hospital()) as ours:
        assert ours.list_problems(("RiskAssessment", "Device")) == []
        assert ours.list_problems(("Provenance",)) == ["Provenance: the server does not know this type"]
