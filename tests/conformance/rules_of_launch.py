"""Rules 24 to 30: being launched from an EHR (SMART), cookies inside its frame, our public keys."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from joserfc.jwk import ECKey

from tests.conformance.judging import NotApplicable, rule, status
from tests.conformance.launching import Browser
from tests.conformance.rules_of_security import listener
from tests.conformance.service import Service
from tests.launching_ehr import CLIENT, LaunchingEhr

PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "k", "oth"}
NOT_THERE = (404, 405, 410)


def _launch(service: Service, **asked: str) -> httpx.Response:
    query = urlencode(asked)
    return service.send("GET", f"{service.launch}?{query}" if query else service.launch, token=None)


def _launched(service: Service) -> httpx.Response:
    """A launch by the EHR that the service knows: a redirect to its sign-in."""
    if not service.ehr.launches:
        raise NotApplicable("no EHR was given that the service is registered with for launches")
    return status(_launch(service, iss=service.ehr.launches, launch="conformance"), 302, 303)


def _asked(service: Service) -> dict[str, str]:
    there = urlsplit(_launched(service).headers["Location"])
    return {name: values[0] for name, values in parse_qs(there.query).items()}


@rule(24, "a launch from an iss that is not registered: 400, not followed, and nothing is fetched from it")
def unregistered_issuer(service: Service) -> None:
    if _launch(service).status_code in NOT_THERE:
        raise NotApplicable(f"nothing answers at {service.launch}")
    with listener({}) as (url, asked):
        for wrong in (url, f"{url}/", url.replace("http:", "https:"), "javascript:alert(1)", "x", "/"):
            answer = status(_launch(service, iss=wrong, launch="conformance"), 400)
            assert "Location" not in answer.headers, "an iss that is not registered is followed"
        assert not asked, "an iss that is not registered was asked"


@rule(
    24, "a launch from a registered iss leads to the sign-in of that EHR, with its launch and itself as aud"
)
def registered_issuer(service: Service) -> None:
    asked = _asked(service)
    assert asked["launch"] == "conformance"
    assert asked["aud"] == service.ehr.launches, "aud is not the iss of the launch to the letter"
    assert {"openid", "fhirUser", "launch"} <= set(asked["scope"].split()), asked["scope"]


@rule(25, "the sign-in is asked for with PKCE S256, and with a state that is new each time")
def pkce(service: Service) -> None:
    first, second = _asked(service), _asked(service)
    for asked in (first, second):
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", asked["code_challenge"]), "a challenge has 43 characters"
        assert len(asked["state"]) >= 22, "a state of 128 bits at least"
        assert asked["redirect_uri"].startswith(f"{service.base}/"), asked["redirect_uri"]
    for name in ("state", "code_challenge"):
        assert first[name] != second[name], f"the same {name} twice"


def _launching(service: Service) -> LaunchingEhr:
    if service.ehr.launching is None:
        raise NotApplicable("not asked: the suite's own EHR was not registered for launches (--launching)")
    return service.ehr.launching


@rule(
    26, "scopes by capability: patient/*.rs where the EHR lists permission-v2, patient/*.read where only v1"
)
def scopes(service: Service) -> None:
    for ehr, wanted in ((_launching(service), "patient/*.rs"), (service.ehr.launching_v1, "patient/*.read")):
        if ehr is None:
            continue
        answer = status(_launch(service, iss=ehr.fhir, launch="launch-p1"), 302, 303)
        query = parse_qs(urlsplit(answer.headers["Location"]).query)
        asked = set(query["scope"][0].split())
        assert {"openid", "fhirUser", "launch", wanted} <= asked, asked
        assert not {"patient/*.rs", "patient/*.read"} - {wanted} & asked, asked


def _landed(service: Service, patient: str, browser: Browser | None = None) -> httpx.Response:
    """The page after a whole launch of a patient."""
    return (browser or Browser(service)).launch(_launching(service).fhir, f"launch-{patient}")


@rule(27, "a launch with a right id_token opens the patient it is about")
def right_id_token(service: Service) -> None:
    ehr = _launching(service)
    answer = status(_landed(service, "p1"), 200)
    assert ehr.patients["p1"]["name"][0]["family"] in answer.text, "the patient is not named"


@rule(27, "an id_token that is forged, stale, for another app or another sign-in, or absent: refused")
def forged_id_tokens(service: Service) -> None:
    ehr = _launching(service)
    now = int(time.time())
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("iss", {"claims": {"iss": "https://evil.invalid"}}),
        ("aud", {"claims": {"aud": "another-app"}}),
        ("aud with another azp", {"claims": {"aud": [CLIENT, "x"], "azp": "x"}}),
        ("exp", {"claims": {"iat": now - 3600, "exp": now - 1800}}),
        ("nonce", {"claims": {"nonce": "another"}}),
        ("no nonce", {"claims": {"nonce": None}}),
        ("signature", {"signs_with": ECKey.generate_key("P-384", {"kid": str(ehr.key.kid)})}),
        ("kid", {"signs_with": ECKey.generate_key("P-384", {"kid": "nobody"})}),
        ("no id_token", {"answers": {"id_token": None}}),
        ("no JWT", {"answers": {"id_token": "a.b.c"}}),
        ("a patient as fhirUser", {"claims": {"fhirUser": "Patient/p1"}}),
    ]
    for what, changes in wrong:
        kept = {name: getattr(ehr, name) for name in changes}
        for name, value in changes.items():
            setattr(ehr, name, value)
        try:
            answer = _landed(service, "p1")
        finally:
            for name, value in kept.items():
                setattr(ehr, name, value)
        assert 400 <= answer.status_code < 500, f"{what}: answered {answer.status_code}"
        assert ehr.patients["p1"]["name"][0]["family"] not in answer.text, f"{what}: the patient is named"


@rule(28, "a second launch in the same browser shows its own patient, and the first one's page no more")
def second_launch(service: Service) -> None:
    ehr = _launching(service)
    first, second = (ehr.patients[one]["name"][0]["family"] for one in ("p1", "p2"))
    browser = Browser(service)
    before = status(_landed(service, "p1", browser), 200)
    after = status(_landed(service, "p2", browser), 200)
    assert second in after.text, "the second patient is not named"
    assert first not in after.text, "the first patient is still named"
    again = browser.get(str(before.url))
    assert first not in again.text, f"the first patient's page is still shown ({again.status_code})"


@rule(29, "cookies of a launch are Secure, SameSite=None and Partitioned, and __Host- where it is https")
def cookies(service: Service) -> None:
    found = _launched(service).headers.get_list("Set-Cookie")
    if not found:
        raise NotApplicable("a launch sets no cookie")
    for cookie in found:
        name, *said = (part.strip().lower() for part in cookie.split(";"))
        assert {"secure", "samesite=none", "partitioned"} <= set(said), name.partition("=")[0]
        if service.base.startswith("https:"):
            assert cookie.startswith("__Host-"), name.partition("=")[0]


@rule(29, "pages may be framed by the registered EHR and by nobody who is not named (frame-ancestors)")
def frames(service: Service) -> None:
    answer = _launch(service)
    if answer.status_code in NOT_THERE:
        raise NotApplicable(f"nothing answers at {service.launch}")
    policy = answer.headers.get("Content-Security-Policy", "")
    found = re.search(r"frame-ancestors ([^;]*)", policy)
    assert found is not None, "no frame-ancestors"
    named = found[1].split()
    assert not {"*", "https:", "http:"} & set(named), named
    if service.ehr.frame:
        assert service.ehr.frame in named, named


@rule(30, "the public keys of the service are public only, each with a kid, and may be kept for a while")
def public_keys(service: Service) -> None:
    answer = service.send("GET", service.keys, token=None)
    if answer.status_code in NOT_THERE:
        raise NotApplicable(f"nothing answers at {service.keys}")
    keys = status(answer, 200).json()["keys"]
    assert re.search(r"max-age=[1-9]", answer.headers.get("Cache-Control", "")), (
        "no Cache-Control with max-age"
    )
    if not keys:
        raise NotApplicable("the service publishes no key")
    for key in keys:
        assert not PRIVATE & set(key), "private parts of a key are published"
        assert key["kid"], "a key without a kid"
        assert (key["kty"], key.get("crv")) in {("EC", "P-384"), ("RSA", None)}, "neither for ES384 nor RS384"
    assert len({key["kid"] for key in keys}) == len(keys), "a kid twice"
