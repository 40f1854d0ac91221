"""Rules 7 and 21 where the service reads from the EHR: what a prefetch left out, and keys that rotate."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import httpx
from joserfc.jwk import ECKey

from tests.conformance.judging import NotApplicable, cards, outcome, rule, status
from tests.conformance.peers import TOKEN, Peers
from tests.conformance.service import Service, bundle

LONGEST_S = 75.0  # a new key is believed that soon
AGAIN_S = 3.0


def _peers(service: Service) -> Peers:
    if service.ehr.peers is None:
        raise NotApplicable("not asked: no FHIR server and key set of the suite's own (--peers)")
    return service.ehr.peers


def _call(
    service: Service, one: Mapping[str, Any], prefetch: Mapping[str, Any], patient: str
) -> httpx.Response:
    peers = _peers(service)
    access = {
        "access_token": TOKEN,
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "patient/*.rs",
        "subject": "cds-service",
        "patient": patient,
    }
    body = service.request(
        one,
        context=service.context(one["hook"], patientId=patient),
        prefetch=prefetch,
        fhirServer=peers.fhir,
        fhirAuthorization=access,
    )
    peers.asked.clear()
    return service.call(one, body)


def _service_with_searches(service: Service) -> tuple[Mapping[str, Any], dict[str, str], str]:
    """A patient-view service, its searches (key → type), and a patient nobody has heard of."""
    _peers(service)
    one = service.one_of("patient-view")
    searches = {
        key: query.partition("?")[0] for key, query in (one or {}).get("prefetch", {}).items() if "?" in query
    }
    if one is None or len(set(searches.values())) < 2:
        raise NotApplicable("no service asks for two kinds of resources")
    return one, searches, f"conformance-{uuid.uuid4().hex[:12]}"


def _patient(patient: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": patient, "gender": "female", "birthDate": "1950-06-01"}


@rule(7, "keys that are absent are read from the registered fhirServer, with the token of the call")
def absent(service: Service) -> None:
    one, searches, patient = _service_with_searches(service)
    answer = _call(service, one, {"patient": _patient(patient)}, patient)
    cards(answer)  # none is an answer, too: what counts here is what was read
    peers = _peers(service)
    for kind in set(searches.values()):
        assert peers.asked_for(kind), f"{kind} was not read"
    assert {sent for _, sent in peers.asked} == {f"Bearer {TOKEN}"}, "not with the token of the call"
    assert all(patient in path for path, _ in peers.asked), "somebody else was read"
    assert TOKEN not in answer.text


@rule(7, "null is not fetched again, nor is what came as an OperationOutcome; what is absent beside it is")
def null(service: Service) -> None:
    one, searches, patient = _service_with_searches(service)
    failed = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
    kinds = sorted(set(searches.values()))
    for said in (None, failed):
        withheld = kinds[0]
        sent: dict[str, Any] = {key: said for key, kind in searches.items() if kind == withheld}
        status(_call(service, one, {"patient": _patient(patient), **sent}, patient), 200)
        assert not _peers(service).asked_for(withheld), f"{withheld} was fetched again"
        assert _peers(service).asked_for(kinds[1]), f"{kinds[1]} was not read"


@rule(7, "a paged Bundle is read on from its next link")
def paged(service: Service) -> None:
    one, searches, patient = _service_with_searches(service)
    key = next((key for key, kind in searches.items() if kind == "Observation"), next(iter(searches)))
    peers = _peers(service)
    there = f"{searches[key]}?patient={patient}&page=2"
    first = bundle(link=[{"relation": "next", "url": f"{peers.fhir}/{there}"}])
    whole = {other: bundle() for other in searches if other != key}
    status(_call(service, one, {"patient": _patient(patient), **whole, key: first}, patient), 200)
    assert peers.asked_for(there) == [f"/fhir/{there}"], f"asked for {[path for path, _ in peers.asked]}"


@rule(9, "a fhirServer that is not registered is not called")
def elsewhere(service: Service) -> None:
    one, _, patient = _service_with_searches(service)
    peers = _peers(service)
    body = service.request(
        one,
        context=service.context(one["hook"], patientId=patient),
        prefetch={"patient": _patient(patient)},
        fhirServer=f"{peers.url}/other",
        fhirAuthorization={
            "access_token": TOKEN,
            "token_type": "Bearer",
            "expires_in": 300,
            "scope": "patient/*.rs",
            "subject": "cds-service",
        },
    )
    peers.asked.clear()
    status(service.call(one, body), 200, 400, 403, 412)
    assert not peers.asked


def _discover(service: Service, key: ECKey) -> httpx.Response:
    """Discovery, signed by the issuer whose keys are at the address; one that is busy is asked again."""
    url = service.url("cds-services")
    for _ in range(5):
        header = {"kid": key.kid, "alg": "ES384"}
        token = service.token(url, key=key, header=header, iss=service.ehr.rotating)
        answer = service.send("GET", "cds-services", token=token)
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    return answer


def _once_believed(service: Service, key: ECKey) -> httpx.Response:
    """The same with a key that was published just now: a service need not read a set for each call."""
    until = time.monotonic() + LONGEST_S
    while (answer := _discover(service, key)).status_code == 401 and time.monotonic() < until:
        time.sleep(AGAIN_S)
    return answer


def _rotating(service: Service) -> Peers:
    peers = _peers(service)
    if not service.ehr.rotating:
        raise NotApplicable("not asked: no issuer whose keys are at the suite's address (--rotating)")
    return peers


@rule(21, "an unknown kid has the key set read anew once at most, and is then refused")
def unknown_kid_at_address(service: Service) -> None:
    peers = _rotating(service)
    status(_once_believed(service, peers.keys[0]), 200)
    before = peers.reads
    for name in ("unknown-1", "unknown-2", "unknown-3"):
        outcome(_discover(service, ECKey.generate_key("P-384", {"kid": name})), 401)
    assert peers.reads - before <= 1, f"the key set was read {peers.reads - before} times"


@rule(21, "a new key at the JWKS URL is believed without a restart, and one that is gone no more")
def rotation(service: Service) -> None:
    peers = _rotating(service)
    old, new = peers.keys[0], ECKey.generate_key("P-384", {"kid": f"rotating-{uuid.uuid4().hex[:8]}"})
    peers.keys = [new]
    status(_once_believed(service, new), 200)
    outcome(_discover(service, old), 401)
