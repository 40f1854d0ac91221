"""Rules 1 to 16: discovery, prefetch, requests, cards."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from tests.conformance.judging import NotApplicable, cards, empties, outcome, rule, status
from tests.conformance.service import UNSET, WITH_ENCOUNTER, Service

USERS = "userPractitionerId|userPractitionerRoleId|userPatientId|userRelatedPersonId"
TOKENS = r"\{\{(context\.[A-Za-z]+|" + USERS + r")\}\}"
READ = re.compile(rf"[A-Z][A-Za-z]+/{TOKENS}")
SEARCH = re.compile(r"([A-Z][A-Za-z]+)\?(.+)")
PARAMETER = re.compile(r"(_count|_sort|_lastUpdated|[a-z][A-Za-z-]*)=(.+)")
SEMVER = re.compile(r"\d+\.\d+\.\d+([-+].+)?")
MARKUP = re.compile(
    r"<\s*(script|iframe|object|embed|style|link|meta|form|img)\b|javascript:|\bon\w+\s*=", re.I
)
NO_CARD = "a right call got no card, as a service may answer that has nothing to say"


def a_view(service: Service) -> Mapping[str, Any]:
    found = service.one_of("patient-view")
    if found is None:
        raise NotApplicable("no service is offered")
    return found


@rule(1, "GET /cds-services answers 200 with a list of services")
def discovery(service: Service) -> None:
    answer = status(service.send("GET", "cds-services"), 200)
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    assert isinstance(answer.json()["services"], list)


@rule(2, "each service has hook, id and description")
def described(service: Service) -> None:
    for one in service.services():
        for name in ("hook", "id", "description"):
            assert isinstance(one[name], str), f"{name} of {one.get('id')}"
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", one["id"]), f"{one['id']} is no part of a URL"
        assert isinstance(one.get("prefetch", {}), dict)
    ids = [one["id"] for one in service.services()]
    assert len(ids) == len(set(ids)), "an id twice"


@rule(3, "a version, where one is given, is semantic")
def versions(service: Service) -> None:
    given = [one["version"] for one in service.services() if "version" in one]
    if not given:
        raise NotApplicable("no version is given (it is of the 3.0 ballot)")
    assert all(SEMVER.fullmatch(one) for one in given)


@rule(4, "nothing at discovery is null, empty text or an empty object")
def nothing_empty(service: Service) -> None:
    found = list(empties({"services": service.services()}))
    assert not found, ", ".join(found[:5])


@rule(4, "nothing in an answer is null, empty text or an empty object")
def nothing_empty_in_cards(service: Service) -> None:
    found = list(empties(status(service.call(a_view(service)), 200).json()))
    assert not found, ", ".join(found[:5])


@rule(5, "templates use only the tokens of 2.0")
def tokens(service: Service) -> None:
    for one in service.services():
        for key, query in one.get("prefetch", {}).items():
            rest = re.sub(TOKENS, "", query)
            assert not re.search(r"\{\{|\}\}", rest), f"{one['id']}.{key}"


@rule(6, "templates are instance reads and type searches without modifiers or chains")
def queries(service: Service) -> None:
    for one in service.services():
        for key, query in one.get("prefetch", {}).items():
            if READ.fullmatch(query):
                continue
            found = SEARCH.fullmatch(query)
            assert found is not None, f"{one['id']}.{key} is neither a read nor a search"
            for part in found[2].split("&"):
                assert PARAMETER.fullmatch(part), f"{one['id']}.{key}: {part}"


@rule(7, "the prefetch as asked for is answered with a card")
def whole_prefetch(service: Service) -> None:
    if not cards(service.call(a_view(service))):
        raise NotApplicable(NO_CARD)


@rule(7, "null says that there is no data: no server error, and not fetched")
def null_prefetch(service: Service) -> None:
    one = a_view(service)
    sent = service.prefetch(one)
    last = list(sent)[-1]
    status(service.call(one, service.request(one, prefetch={**sent, last: None})), 200, 412)


@rule(7, "an OperationOutcome as prefetch is taken at its word")
def failed_prefetch(service: Service) -> None:
    one = a_view(service)
    sent = service.prefetch(one)
    failed = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
    status(service.call(one, service.request(one, prefetch={**sent, list(sent)[-1]: failed})), 200, 412)


@rule(7, "a partial prefetch works, or is refused as unobtainable")
def partial_prefetch(service: Service) -> None:
    one = a_view(service)
    sent = dict(list(service.prefetch(one).items())[:2])
    answer = status(service.call(one, service.request(one, prefetch=sent)), 200, 412)
    if answer.status_code == 412:
        outcome(answer, 412)


@rule(7, "a paged Bundle without a server to read on from is no error")
def paged_prefetch(service: Service) -> None:
    one = a_view(service)
    sent = service.prefetch(one)
    key = next((key for key, value in sent.items() if value["resourceType"] == "Bundle"), None)
    if key is None:
        raise NotApplicable("no search is asked for")
    link = [{"relation": "next", "url": "https://ehr.invalid/fhir?page=2"}]
    status(
        service.call(one, service.request(one, prefetch={**sent, key: {**sent[key], "link": link}})), 200, 412
    )


@rule(8, "without hook, hookInstance or context: 400, naming the field")
def required(service: Service) -> None:
    one = a_view(service)
    for name in ("hook", "hookInstance", "context"):
        outcome(service.call(one, service.request(one, **{name: UNSET})), 400, names=name)


@rule(8, "hookInstance is a UUID")
def hook_instance(service: Service) -> None:
    one = a_view(service)
    for wrong in ("7", "", 7, None, "g" * 36):
        outcome(service.call(one, service.request(one, hookInstance=wrong)), 400, names="hookInstance")


@rule(8, "another hook than the service's: 400")
def wrong_hook(service: Service) -> None:
    one = a_view(service)
    for wrong in ("order-sign" if one["hook"] != "order-sign" else "patient-view", "", 7, None):
        outcome(service.call(one, service.request(one, hook=wrong)), 400, names="hook")


@rule(8, "an unknown service: 404")
def unknown_service(service: Service) -> None:
    one = {"id": f"nobody-{uuid.uuid4()}", "hook": "patient-view"}
    outcome(service.call(one, service.request(one)), 404)


@rule(8, "a body that is not a JSON object: 400")
def not_json(service: Service) -> None:
    path = f"cds-services/{a_view(service)['id']}"
    for raw in (b"", b"{", b"[]", b"7", b"null", b'"x"', b"\xff\xfe", b"[" * 5000):
        outcome(service.send("POST", path, raw=raw), 400)


@rule(8, "another content type: 415")
def content_type(service: Service) -> None:
    path = f"cds-services/{a_view(service)['id']}"
    outcome(service.send("POST", path, raw=b"a=b", headers={"Content-Type": "text/plain"}), 415)


@rule(8, "a body larger than the service takes: 413")
def too_large(service: Service) -> None:
    if not service.ehr.body_limit:
        raise NotApplicable("not asked: how large a body the service takes (--body-limit)")
    path = f"cds-services/{a_view(service)['id']}"
    outcome(service.send("POST", path, raw=b'{"hook": "' + b"x" * service.ehr.body_limit + b'"}'), 413)


@rule(8, "another method: 405")
def method(service: Service) -> None:
    status(service.send("PUT", f"cds-services/{a_view(service)['id']}", body={}), 405)


@rule(9, "fhirAuthorization without fhirServer: 400")
def server_required(service: Service) -> None:
    one = a_view(service)
    outcome(
        service.call(one, service.request(one, fhirAuthorization=_authorization(service))),
        400,
        names="fhirServer",
    )


@rule(9, "fhirAuthorization that is not whole: 400, and its token is nowhere in the answer")
def authorization(service: Service) -> None:
    one = a_view(service)
    for changes in ({"access_token": None}, {"token_type": "mac"}, {"expires_in": "soon"}, {"scope": None}):
        said = {**_authorization(service), **changes}
        said = {name: value for name, value in said.items() if value is not None}
        sent = service.request(one, fhirServer="https://ehr.invalid/fhir", fhirAuthorization=said)
        answer = service.call(one, sent)
        outcome(answer, 400, names="fhirAuthorization")
        assert "planted-token" not in answer.text


@rule(9, "a token for another patient than the context's is refused")
def token_patient(service: Service) -> None:
    one = a_view(service)
    said = {**_authorization(service), "patient": "somebody-else"}
    sent = service.request(one, fhirServer="https://ehr.invalid/fhir", fhirAuthorization=said)
    status(service.call(one, sent), 400, 403)


def _authorization(service: Service) -> dict[str, Any]:
    return {
        "access_token": "planted-token",
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "patient/*.rs",
        "subject": "cds-service",
        "patient": service.ehr.patient,
    }


@rule(10, "userId and patientId are required in each context")
def context(service: Service) -> None:
    for one in service.services():
        for name in ("userId", "patientId"):
            sent = service.request(one, context=service.context(one["hook"], **{name: UNSET}))
            outcome(service.call(one, sent), 400, names=name)


@rule(10, "userId is [Type]/[id]")
def user(service: Service) -> None:
    one = a_view(service)
    for wrong in ("conformance", "Practitioner/", "Device/7", 7):
        sent = service.request(one, context=service.context(one["hook"], userId=wrong))
        outcome(service.call(one, sent), 400, names="userId")


@rule(10, "what else the hook's context requires: 400 without it")
def context_of_hooks(service: Service) -> None:
    required = dict.fromkeys(WITH_ENCOUNTER, ("encounterId",)) | {"appointment-book": ("appointments",)}
    required |= {"order-sign": ("draftOrders",), "order-select": ("draftOrders", "selections")}
    offered = [one for one in service.services() if one["hook"] in required]
    if not offered:
        raise NotApplicable("only patient-view is offered")
    for one in offered:
        for name in required[one["hook"]]:
            sent = service.request(one, context=service.context(one["hook"], **{name: UNSET}))
            outcome(service.call(one, sent), 400, names=name)


@rule(10, "every hook offered answers a right request")
def every_hook(service: Service) -> None:
    for one in service.services():
        cards(service.call(one))


@rule(11, "no data at all: 412 with an OperationOutcome, never 200 with empty cards")
def unobtainable(service: Service) -> None:
    one = a_view(service)
    if not one.get("prefetch"):
        raise NotApplicable("no prefetch is asked for")
    for prefetch in (UNSET, {}):
        outcome(service.call(one, service.request(one, prefetch=prefetch)), 412)


@rule(11, "prefetch of another kind than asked for: an error, never 200 with empty cards")
def wrong_prefetch(service: Service) -> None:
    one = a_view(service)
    if not cards(service.call(one)):
        raise NotApplicable(f"{NO_CARD}: no failure can be told from it")
    for wrong in ("x", 7, [], {"patient": "x"}, {"patient": {"resourceType": "Basic"}}):
        answer = service.call(one, service.request(one, prefetch=wrong))
        assert 400 <= answer.status_code < 500 or cards(answer), f"{answer.status_code} for {wrong!r}"


@rule(11, "a fhirServer that is not registered or out of reach: no server error, no empty success")
def no_server(service: Service) -> None:
    one = a_view(service)
    sent = service.request(
        one, prefetch=UNSET, fhirServer="https://ehr.invalid/fhir", fhirAuthorization=_authorization(service)
    )
    status(service.call(one, sent), 400, 403, 412)


@rule(12, "success is 200 with a list of cards, as JSON")
def success(service: Service) -> None:
    answer = service.call(a_view(service))
    cards(answer)
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"


def _shown(service: Service) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for one in service.services():
        found += cards(service.call(one))
    if not found:
        raise NotApplicable(NO_CARD)
    return found


@rule(13, "each card has a summary under 140 characters, an indicator and a source with a label")
def card(service: Service) -> None:
    for one in _shown(service):
        assert 0 < len(one["summary"]) < 140
        assert one["indicator"] in ("info", "warning", "critical")
        assert one["source"]["label"]
        topic = one["source"].get("topic")
        assert topic is None or topic["code"], "a topic is a Coding"


@rule(13, "detail is Markdown without script or markup that acts")
def detail(service: Service) -> None:
    for one in _shown(service):
        assert not MARKUP.search(one.get("detail", "")), one["detail"][:120]


@rule(13, "uuids of cards are new each time")
def uuids(service: Service) -> None:
    one = a_view(service)
    first, second = cards(service.call(one)), cards(service.call(one))
    ids = [card["uuid"] for card in [*first, *second] if "uuid" in card]
    if not ids:
        raise NotApplicable("no card was shown that has a uuid")
    assert all(uuid.UUID(one) for one in ids)
    assert len(ids) == len(set(ids))


@rule(14, "suggestions come with a selection behaviour, labels and whole resources")
def suggestions(service: Service) -> None:
    found = [one for one in _shown(service) if one.get("suggestions")]
    if not found:
        raise NotApplicable("nothing was suggested")
    for one in found:
        assert one["selectionBehavior"] in ("at-most-one", "any")
        for suggestion in one["suggestions"]:
            assert suggestion["label"]
            for action in suggestion.get("actions", []):
                assert action["description"]
                if action["type"] == "delete":
                    assert action["resourceId"]
                else:
                    assert action["type"] in ("create", "update")
                    assert action["resource"]["resourceType"]


@rule(15, "override reasons are codings with a display")
def reasons(service: Service) -> None:
    found = [reason for one in _shown(service) for reason in one.get("overrideReasons", [])]
    if not found:
        raise NotApplicable("no card had reasons")
    for one in found:
        assert one["code"]
        assert one["display"]
        assert one["system"]


@rule(16, "links are absolute or smart; appContext only with smart")
def links(service: Service) -> None:
    found = [link for one in _shown(service) for link in one.get("links", [])]
    if not found:
        raise NotApplicable("no card had links")
    for one in found:
        assert one["label"]
        assert re.match(r"https?://", one["url"])
        assert one["type"] in ("absolute", "smart")
        assert "appContext" not in one or one["type"] == "smart"
