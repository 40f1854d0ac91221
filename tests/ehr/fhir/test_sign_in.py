"""SMART Backend Services: what we sign, what we keep, what we serve (INTEROP 30)."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from ehr import (
    BackendServices,
    FhirClient,
    Refused,
    Retriable,
    SignInRefused,
    discover_token_url,
    new_key,
    public_keys,
)
from ehr.fhir.sign_in import GivenToken

TOKEN_URL = "https://auth.example/token"


class Authority:
    """An authorisation server that knows some public keys."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = KeySet.import_key_set(public_keys(keys))
        self.claims: list[dict[str, Any]] = []
        self.headers: list[dict[str, Any]] = []
        self.faults: list[httpx.Response] = []
        self.now = 1_700_000_000.0

    def sign_in(self, key: dict[str, Any], **kwargs: Any) -> BackendServices:
        return BackendServices(
            TOKEN_URL,
            "tessera",
            key,
            transport=httpx.MockTransport(self.answer),
            clock=lambda: self.now,
            **kwargs,
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.faults:
            return self.faults.pop(0)
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        assert form["grant_type"] == "client_credentials"
        assert form["client_assertion_type"].endswith("jwt-bearer")
        token = jwt.decode(form["client_assertion"], self.keys, algorithms=["ES384", "RS384"])
        self.claims.append(token.claims)
        self.headers.append(token.header)
        return httpx.Response(
            200, json={"access_token": f"t{len(self.claims)}", "token_type": "bearer", "expires_in": 300}
        )


@pytest.mark.parametrize(("kind", "algorithm"), [("EC", "ES384"), ("RSA", "RS384")])
def test_the_assertion_is_what_the_specification_asks(kind: Any, algorithm: str) -> None:
    key = new_key(kind)
    authority = Authority(key)
    assert authority.sign_in(key).bearer() == "t1"
    assert authority.sign_in(key).bearer() == "t2"
    (first, second), header = authority.claims, authority.headers[0]
    assert first["iss"] == first["sub"] == "tessera"
    assert first["aud"] == TOKEN_URL
    assert 0 < first["exp"] - authority.now <= 300
    assert first["jti"] != second["jti"]
    assert header == {"alg": algorithm, "kid": key["kid"], "typ": "JWT"}


def test_a_token_is_kept_until_shortly_before_it_ends() -> None:
    key = new_key()
    authority = Authority(key)
    sign_in = authority.sign_in(key)
    assert [sign_in.bearer(), sign_in.bearer()] == ["t1", "t1"]
    authority.now += 280
    assert sign_in.bearer() == "t2"


def test_a_refused_token_is_renewed_once() -> None:
    key = new_key()
    authority = Authority(key)
    seen: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        if len(seen) == 1:
            return httpx.Response(401)
        return httpx.Response(200, json={"resourceType": "Patient", "id": "p1"})

    client = FhirClient(
        "https://ehr.example/fhir", token=authority.sign_in(key), transport=httpx.MockTransport(server)
    )
    assert client.read("Patient", "p1")["id"] == "p1"
    assert seen == ["Bearer t1", "Bearer t2"]


def test_a_given_token_is_not_tried_twice() -> None:
    seen: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(401)

    client = FhirClient(
        "https://ehr.example/fhir", token=GivenToken("old"), transport=httpx.MockTransport(server)
    )
    with pytest.raises(Refused):
        client.read("Patient", "p1")
    assert seen == ["Bearer old"]


def test_a_refusal_says_what_to_check() -> None:
    key = new_key()
    authority = Authority(key)
    authority.faults = [
        httpx.Response(400, json={"error": "invalid_client", "error_description": "no such key"})
    ]
    with pytest.raises(Refused, match=r"invalid_client no such key.*'tessera'.*has our key") as refused:
        authority.sign_in(key).bearer()
    assert key["d"] not in str(refused.value)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"access_token": "t", "token_type": "mac"}),
        httpx.Response(404),
        httpx.Response(200, content=b" " * 300_000),
    ],
)
def test_no_token_is_a_sign_in_that_was_refused(answer: httpx.Response) -> None:
    key = new_key()
    authority = Authority(key)
    authority.faults = [answer]
    with pytest.raises(SignInRefused):
        authority.sign_in(key).bearer()


def test_a_busy_authority_is_asked_again_later() -> None:
    key = new_key()
    authority = Authority(key)
    authority.faults = [httpx.Response(503, headers={"Retry-After": "3"})]
    with pytest.raises(Retriable) as busy:
        authority.sign_in(key).bearer()
    assert busy.value.retry_after_s == 3


def test_only_public_parts_are_served() -> None:
    keys = [new_key("EC"), new_key("RSA")]
    served = public_keys(keys)["keys"]
    assert [one["kid"] for one in served] == [one["kid"] for one in keys]
    assert not any(part in one for one in served for part in ("d", "p", "q", "dp", "dq", "qi", "k"))


@pytest.mark.parametrize(
    "key",
    [
        {},
        {"kty": "EC", "crv": "P-256", "kid": "1", "d": "x", "x": "y", "y": "z"},
        {"kty": "oct", "k": "secret", "kid": "1", "d": "x"},
        {**new_key(), "kid": ""},
        {**new_key(), "d": "!"},
    ],
)
def test_other_keys_are_refused(key: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="P-384"):
        BackendServices(TOKEN_URL, "tessera", key)


def test_the_token_endpoint_is_found() -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/fhir/.well-known/smart-configuration"
        return httpx.Response(200, json={"token_endpoint": TOKEN_URL})

    base = "https://ehr.example/fhir"
    assert discover_token_url(base, transport=httpx.MockTransport(server)) == TOKEN_URL
    empty = httpx.MockTransport(lambda _: httpx.Response(404))
    with pytest.raises(Refused, match="names no token_endpoint"):
        discover_token_url(base, transport=empty)


def test_an_authority_that_is_out_of_reach_says_where_to_look() -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(Retriable, match="nobody listens there: check host and port"):
        BackendServices(TOKEN_URL, "tessera", new_key(), transport=httpx.MockTransport(nobody)).bearer()


@pytest.mark.parametrize("what", ["token", "discovery"])
def test_an_answer_without_end_is_cut_off(what: str) -> None:
    given = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            nonlocal given
            while given < 2**24:
                given += 2**16
                yield b" " * 2**16

    endless = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
    ask = {
        "token": lambda: BackendServices(TOKEN_URL, "tessera", new_key(), transport=endless).bearer(),
        "discovery": lambda: discover_token_url("https://ehr.example/fhir", transport=endless),
    }[what]
    with pytest.raises(Refused, match="larger than 262144 bytes"):
        ask()
    assert given < 2**20
