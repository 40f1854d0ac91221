"""`/openapi.json`: valid, complete, and true of what is really answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from openapi_spec_validator import OpenAPIV31SpecValidator
from pytest_django import Settings

from cds import signing
from cds.hooks.contexts import HOOKS
from tests.described import DOCUMENT, answer_faults
from tests.web.clinic import Clinic
from tests.web.test_routes import GET, address

pytestmark = pytest.mark.django_db
FOR_PEOPLE = ("web.", "django.views.static", "django.contrib.staticfiles")


def routes(patterns: list[URLPattern | URLResolver], before: str = "") -> Iterator[tuple[str, str]]:
    """(path as OpenAPI writes it, module of its view) of everything that is served."""
    for one in patterns:
        path = before + str(one.pattern)
        if isinstance(one, URLResolver):
            yield from routes(one.url_patterns, path)
        else:
            yield "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path), one.callback.__module__


def is_described(path: str) -> bool:
    """Whether an address fits one of the document's paths."""
    shapes = (re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(known)) for known in DOCUMENT["paths"])
    return any(re.fullmatch(shape, path) for shape in shapes)


def test_the_document_is_valid_and_served_to_everybody(client: Client) -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "public, max-age=300" or "max-age=300" in answer["Cache-Control"]
    assert answer.json()["paths"] == DOCUMENT["paths"]
    described = str(answer.json()["paths"]["/cds-services/{service_id}"]["post"]["description"])
    assert all(hook in described for hook in HOOKS)


def test_every_address_that_is_not_a_page_is_in_it_and_no_other() -> None:
    served = dict(routes(get_resolver().url_patterns))
    machines = {
        path.replace("^", "").rstrip("$")
        for path, module in served.items()
        if not module.startswith(FOR_PEOPLE)
    }
    of_web = {"/models/{version_id}/card.json", "/openapi.json"}
    machines.remove("/cds-services/")  # and what lies below: answered 404 in words of FHIR, and no more
    assert machines | of_web == set(DOCUMENT["paths"])


def test_no_page_answers_json_without_being_in_it(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    found = set()
    for role in ("clinician", "admin"):
        client = sign_in(role)
        for pattern in GET:
            answer = client.get(address(pattern, ward))
            if answer.status_code == 200 and "json" in answer["Content-Type"]:
                found.add(address(pattern, ward))
    assert len(found) == 2
    assert [path for path in found if not is_described(path)] == []


def test_card_keys_and_health_are_as_described(
    ward: Clinic, sign_in: Callable[[str], Client], settings: Settings, tmp_path: object
) -> None:
    settings.FHIR_KEYS = tmp_path / "keys.json"  # type: ignore[operator]
    signing.add_key("EC")
    client = sign_in("admin")
    card = client.get(f"/models/{ward.version.pk}/card.json")
    assert answer_faults("/models/{version_id}/card.json", "get", card) == []
    for path in ("/.well-known/jwks.json", "/readyz", "/livez", "/openapi.json"):
        assert answer_faults(path, "get", client.get(path)) == []
    assert (
        answer_faults("/models/{version_id}/card.json", "get", Client().get(card.request["PATH_INFO"])) == []
    )
    refused = client.post("/fhir/subscriptions/00000000-0000-0000-0000-000000000007", {}, "application/json")
    assert answer_faults("/fhir/subscriptions/{subscription_id}", "post", refused) == []
