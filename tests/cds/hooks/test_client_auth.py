"""Who may call: INTEROP 18-21."""

from __future__ import annotations

import hmac
import time
from base64 import urlsafe_b64encode
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from cds.audit.models import AuditEvent
from cds.hooks.models import HookClient, SpentToken
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, ISSUER, KEY, SERVICE, Call, hook_body, token

URL = BASE + "/cds-services"
RSA = RSAKey.generate_key(2048, parameters={"kid": "r1"})


def status(call: Call, bearer: str) -> int:
    return call("/cds-services", bearer=bearer).status_code


def test_the_right_token_is_let_in_once(call: Call, settings: Any) -> None:
    settings.HOOKS_REDIS_URL = ""  # the embedded default: spent tokens are rows
    bearer = token(URL)
    assert status(call, bearer) == 200
    assert status(call, bearer) == 401  # jti reused
    assert SpentToken.objects.count() == 1


def test_rs384_too(call: Call, hook_client: HookClient) -> None:
    hook_client.jwks["keys"].append(RSA.as_dict(private=False))
    hook_client.save()
    assert status(call, token(URL, key=RSA, header={"alg": "RS384", "kid": "r1"})) == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://unknown.example"},
        {"iss": None},
        {"aud": BASE},
        {"aud": URL + "/"},
        {"aud": None},
        {"exp": int(time.time()) - 120},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 10**15},
        {"exp": int(time.time()) + 90_000},
        {"iat": int(time.time()) + 120},
        {"iat": None},
        {"jti": None},
        {"jti": ""},
        {"jti": "x" * 201},
        {"jti": 5},
    ],
)
def test_wrong_claims_are_refused(call: Call, claims: dict[str, Any]) -> None:
    assert status(call, token(URL, **claims)) == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["https://other.example", URL]},
        {"exp": -20},  # within 60 s of skew
        {"iat": 40, "exp": 300},
    ],
)
def test_what_the_specification_allows_is_let_in(call: Call, claims: dict[str, Any]) -> None:
    now = int(time.time())  # when the test runs, not when it was collected
    moved = {name: now + value if name in ("iat", "exp") else value for name, value in claims.items()}
    assert status(call, token(URL, **moved)) == 200


@pytest.mark.parametrize(
    "bearer",
    [
        token(URL, header={"typ": "at+jwt"}),
        token(URL, header={"kid": "other"}),
        token(URL, header={"kid": None}),
        token(URL, key=ECKey.generate_key("P-384"), header={"kid": "k1"}),
        token(URL, key=ECKey.generate_key("P-256"), header={"alg": "ES256"}),
        token(URL, key=OctKey.import_key("secret" * 8), header={"alg": "HS256"}),
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.e30.",
        "not.a.token",
        "x",
        "é",
    ],
    ids=[
        "wrong typ",
        "unknown kid",
        "no kid",
        "other key",
        "ES256",
        "HMAC",
        "none",
        "junk",
        "short",
        "accent",
    ],
)
def test_wrong_tokens_are_refused_and_audited(call: Call, bearer: str) -> None:
    response = call("/cds-services", bearer=bearer.encode().decode("latin-1"))
    assert response.status_code == 401
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert response.json()["issue"][0]["code"] == "login"
    assert AuditEvent.objects.get(action="hook.call").outcome == "refused"


def test_a_public_key_used_as_an_hmac_secret_is_refused(call: Call) -> None:
    """The classic confusion: HS256 over the public key."""
    parts = [{"alg": "HS256", "typ": "JWT", "kid": "k1"}, jwt.decode(token(URL), KEY, ["ES384"]).claims]
    signed = b".".join(urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in parts)
    signature = hmac.digest(KEY.as_pem(private=False), signed, "sha256")
    bearer = b".".join([signed, urlsafe_b64encode(signature).rstrip(b"=")]).decode()
    assert status(call, bearer) == 401


@pytest.mark.parametrize("path", ["/cds-services", SERVICE, f"{SERVICE}/feedback"])
def test_every_address_wants_a_token(db: None, version: ModelVersion, path: str) -> None:
    http = Client()
    answer = (
        http.get(path) if path == "/cds-services" else http.post(path, {}, content_type="application/json")
    )
    assert answer.status_code == 401


def test_keys_rotate_and_withdrawal_works_without_a_restart(call: Call, tmp_path: Path) -> None:
    new = ECKey.generate_key("P-384", parameters={"kid": "k2"})
    file = tmp_path / "keys.json"
    file.write_bytes(orjson.dumps({"keys": [new.as_dict(private=False)]}))
    assert status(call, token(URL)) == 200
    add = ["hook_client", "add", "Example EHR", "--issuer", ISSUER, "--jwks", str(file), "--source", "ehr"]
    call_command(*add, stdout=StringIO())
    assert HookClient.objects.count() == 1
    assert status(call, token(URL)) == 401
    assert status(call, token(URL, key=new, header={"kid": "k2"})) == 200
    listed = StringIO()
    call_command("hook_client", "list", stdout=listed)
    assert ISSUER in listed.getvalue()
    call_command("hook_client", "withdraw", "--issuer", ISSUER, stdout=StringIO())
    assert status(call, token(URL, key=new, header={"kid": "k2"})) == 401


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"keys": []},
        {"keys": [KEY.as_dict(private=True)]},
        {"keys": [{"kty": "oct", "k": "AA", "kid": "1"}]},
        [],
    ],
    ids=["nothing", "no key", "private", "symmetric", "a list"],
)
def test_only_public_keys_can_be_registered(db: None, tmp_path: Path, keys: Any) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(orjson.dumps(keys))
    with pytest.raises(CommandError):
        call_command("hook_client", "add", "X", "--issuer", ISSUER, "--jwks", str(file), "--source", "ehr")
    assert not HookClient.objects.exists()


def test_open_for_a_demo_on_loopback_only_with_a_warning(
    version: ModelVersion, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.HOOKS_OPEN, settings.HOOKS_WAIT_S = True, 0
    answer = Client().post(SERVICE, hook_body(), content_type="application/json")
    assert answer.status_code == 200
    assert Patient.objects.get().source.slug == "hooks-open"
    assert "HOOKS_OPEN" in caplog.text
    elsewhere = Client(REMOTE_ADDR="192.0.2.7").get("/cds-services")
    assert elsewhere.status_code == 401
