"""The app's side of SMART App Launch: what is asked for, accepted, and not (INTEROP 24 to 28)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import ECKey

import ehr
from ehr.openid import challenge_of
from tests.launching_ehr import CLIENT, LaunchingEhr, launching_ehr

BACK = "https://tessera.example/launch/callback"


@pytest.fixture
def server() -> Iterator[LaunchingEhr]:
    with launching_ehr() as running:
        running.add("p1", "Sommer")
        yield running


def _app(server: LaunchingEhr, **more: Any) -> ehr.SmartApp:
    return ehr.SmartApp(server.fhir, CLIENT, redirect_uri=BACK, **more)


def _code(there: str) -> str:
    """What the EHR's sign-in gives back."""
    with httpx.Client(trust_env=False) as browser:
        location = browser.get(there).headers["Location"]
    assert location.startswith(BACK + "?")
    return parse_qs(urlsplit(location).query)["code"][0]


def _launch(server: LaunchingEhr, **more: Any) -> ehr.LaunchContext:
    app = _app(server, **more)
    found = app.discover()
    there, pending = app.begin(found, launch="launch-p1")
    return app.complete(found, _code(there), pending)


def test_what_the_sign_in_is_asked_for(server: LaunchingEhr) -> None:
    app = _app(server)
    there, pending = app.begin(app.discover(), launch="launch-p1")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(there).query).items()}
    assert asked == {
        "response_type": "code",
        "client_id": CLIENT,
        "redirect_uri": BACK,
        "scope": "openid fhirUser launch patient/*.rs",
        "state": pending.state,
        "nonce": pending.nonce,
        "aud": server.fhir,
        "code_challenge": challenge_of(pending.verifier),
        "code_challenge_method": "S256",
        "launch": "launch-p1",
    }
    other = app.begin(app.discover(), launch="launch-p1")[1]
    assert not {pending.state, pending.nonce, pending.verifier} & {other.state, other.nonce, other.verifier}
    assert all(len(value) >= 43 for value in (pending.state, pending.nonce, pending.verifier))


def test_the_challenge_is_that_of_the_rfc() -> None:
    # RFC 7636, appendix B.
    verifier, challenge = (
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    )
    assert challenge_of(verifier) == challenge


@pytest.mark.parametrize(
    ("capabilities", "launch", "scope"),
    [
        (["permission-v1"], "x", "openid fhirUser launch patient/*.read"),
        (["permission-v1", "permission-v2"], "x", "openid fhirUser launch patient/*.rs"),
        ([], "x", "openid fhirUser launch patient/*.rs"),
        (["permission-v1"], "", "openid fhirUser launch/patient patient/*.read"),
    ],
)
def test_scopes_follow_what_the_server_lists(
    server: LaunchingEhr, capabilities: list[str], launch: str, scope: str
) -> None:
    server.discovery = {"capabilities": capabilities}
    app = _app(server)
    there, _ = app.begin(app.discover(), launch=launch)
    assert parse_qs(urlsplit(there).query)["scope"] == [scope]


def test_who_came_for_whom(server: LaunchingEhr) -> None:
    said = _launch(server)
    assert (said.fhir_user, said.name, said.patient, said.encounter) == (
        "Practitioner/7",
        "Dr Autumn",
        "p1",
        "e1",
    )
    assert said.need_patient_banner
    assert said.access_token in server.tokens
    assert said.access_token not in repr(said)


def test_a_launch_is_served_where_an_event_loop_runs_already(server: LaunchingEhr) -> None:
    async def inside() -> str:
        return _launch(server).patient

    with ThreadPoolExecutor(1) as pool:  # in this thread a loop may run already
        assert pool.submit(asyncio.run, inside()).result() == "p1"


def test_a_confidential_client_signs_in_with_its_key(server: LaunchingEhr) -> None:
    key = ehr.new_key("EC")
    server.app_keys = ehr.public_keys([key])
    assert _launch(server, key=key).patient == "p1"
    with pytest.raises(ehr.Refused, match="invalid_client"):
        _launch(server, key=ehr.new_key("EC"))
    with pytest.raises(ehr.Refused, match="invalid_client"):
        _launch(server)


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"iss": "https://elsewhere.example"}, "iss"),
        ({"aud": "another-app"}, "aud"),
        ({"aud": [CLIENT, "another-app"]}, "azp"),
        ({"azp": "another-app"}, "azp"),
        ({"iss": ["https://elsewhere.example"]}, "iss"),
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": "é"}, "nonce"),
        ({"exp": 1_000_000_000}, "exp"),
        ({"exp": None}, "exp"),
        ({"iat": 4_000_000_000}, "iat"),
        ({"iat": True}, "iat"),
    ],
)
def test_an_id_token_that_is_not_for_us_is_refused(
    server: LaunchingEhr, claims: dict[str, Any], named: str
) -> None:
    server.claims = claims
    with pytest.raises(ehr.Refused, match=f"id_token's {named} "):
        _launch(server)


def test_an_id_token_of_another_key_is_refused(server: LaunchingEhr) -> None:
    server.signs_with = ECKey.generate_key("P-384", {"kid": "one"})
    with pytest.raises(ehr.Refused, match="does not verify"):
        _launch(server)


@pytest.mark.parametrize(
    "odd",
    [{"kty": "EC", "crv": "BP-256", "x": "AA", "y": "AA"}, {"kty": "RSA", "x5c": ["AA"]}, {"kty": "new"}],
)
def test_a_key_that_we_cannot_read_locks_nobody_out(server: LaunchingEhr, odd: dict[str, Any]) -> None:
    app = _app(server)
    found = app.discover()
    there, pending = app.begin(found, launch="launch-p1")

    def keys(fresh: bool) -> dict[str, Any]:
        return {"keys": [odd, *app.read_keys(found)["keys"]]}

    assert app.complete(found, _code(there), pending, keys=keys).patient == "p1"


def test_a_new_key_is_read_once_more(server: LaunchingEhr) -> None:
    app = _app(server)
    found = app.discover()
    there, pending = app.begin(found, launch="launch-p1")
    code, asked, old = _code(there), [], {"keys": [ECKey.generate_key("P-384", {"kid": "old"}).as_dict()]}

    def keys(fresh: bool) -> dict[str, Any]:
        asked.append(fresh)
        return app.read_keys(found) if fresh else old

    assert app.complete(found, code, pending, keys=keys).patient == "p1"
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"id_token": None}, "no id_token"),
        ({"patient": None}, "named no patient"),
        ({"patient": "../x"}, "named no patient"),
        ({"token_type": "mac"}, "without a bearer"),
        ({"id_token": "e30.e30."}, "does not verify"),
    ],
)
def test_an_answer_with_holes_says_what_is_missing(
    server: LaunchingEhr, answers: dict[str, Any], told: str
) -> None:
    server.answers = answers
    with pytest.raises(ehr.Permanent, match=told):
        _launch(server)


@pytest.mark.parametrize(
    ("discovery", "told"),
    [
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"token_endpoint": "https://thief.example/token"}, "thief.example, which is not registered"),
        ({"jwks_uri": "http://169.254.169.254/keys"}, "plain http is refused"),
        ({"authorization_endpoint": None}, "names no authorization_endpoint"),
    ],
)
def test_discovery_may_not_lead_elsewhere(server: LaunchingEhr, discovery: dict[str, Any], told: str) -> None:
    server.discovery = discovery
    with pytest.raises(ehr.Refused, match=told):
        _app(server).discover()


def test_a_registered_sign_in_server_of_its_own_may(server: LaunchingEhr) -> None:
    server.discovery = {"token_endpoint": "https://login.hospital.example/token"}
    found = _app(server, origins=["https://login.hospital.example"]).discover()
    assert found.token_endpoint == "https://login.hospital.example/token"


def test_a_code_is_good_once_and_only_with_its_verifier(server: LaunchingEhr) -> None:
    app = _app(server)
    found = app.discover()
    there, pending = app.begin(found, launch="launch-p1")
    code = _code(there)
    other = app.begin(found)[1]
    with pytest.raises(ehr.Refused, match="invalid_grant") as refused:
        app.complete(found, code, ehr.Pending(pending.state, pending.nonce, other.verifier))
    assert code not in str(refused.value)
    with pytest.raises(ehr.Refused, match="invalid_grant"):
        app.complete(found, code, pending)


def test_redirects_large_answers_and_silence_are_errors_of_ours() -> None:
    def answering(answer: httpx.Response | Exception) -> ehr.SmartApp:
        def handle(request: httpx.Request) -> httpx.Response:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ehr.SmartApp(
            "https://ehr.example/fhir", CLIENT, redirect_uri=BACK, transport=httpx.MockTransport(handle)
        )

    with pytest.raises(ehr.Refused, match="302"):
        answering(httpx.Response(302, headers={"Location": "http://127.0.0.1/"})).discover()
    with pytest.raises(ehr.TooLarge):
        answering(httpx.Response(200, content=b"[" + b" " * 300_000)).discover()
    with pytest.raises(ehr.Retriable):
        answering(httpx.ConnectTimeout("late")).discover()
    with pytest.raises(ehr.Retriable):
        answering(httpx.Response(503)).discover()
    with pytest.raises(ehr.BadResource):
        answering(httpx.Response(200, content=b"<html>")).discover()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Practitioner/7", ("Practitioner", "7")),
        ("https://ehr.example/fhir/Practitioner/a-1.b", ("Practitioner", "a-1.b")),
        ("PractitionerRole/9/_history/2", ("PractitionerRole", "9")),
    ],
)
def test_a_fhir_user_is_somebody_of_the_server(said: str, found: tuple[str, str]) -> None:
    assert ehr.fhir_user_of(said, "https://ehr.example/fhir/") == found


@pytest.mark.parametrize(
    "said", ["", "7", "https://other.example/fhir/Practitioner/7", "practitioner/7", "Practitioner/../7"]
)
def test_anybody_else_is_nobody(said: str) -> None:
    with pytest.raises(ehr.Refused, match="names nobody"):
        ehr.fhir_user_of(said, "https://ehr.example/fhir")
