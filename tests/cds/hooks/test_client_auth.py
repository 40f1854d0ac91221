"""Who may call: INTEROP 18-21. Forged tokens: `test_token_attacks`; keys at an address: `test_key_sets`."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from joserfc.jwk import ECKey

from cds.hooks.models import HookClient, SpentToken
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, ISSUER, KEY, SERVICE, Call, hook_body, token

URL = BASE + "/cds-services"


def status(call: Call, bearer: str) -> int:
    return call("/cds-services", bearer=bearer).status_code


def test_the_right_token_is_let_in_once(call: Call, settings: Any) -> None:
    settings.HOOKS_REDIS_URL = ""  # the embedded default: spent tokens are rows
    bearer = token(URL)
    assert status(call, bearer) == 200
    assert status(call, bearer) == 401  # jti reused
    assert SpentToken.objects.count() == 1


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
    reached = ["--fhir-server", "https://fhir.example/r4", "--origin", "https://chart.example"]
    call_command(*add, *reached, stdout=StringIO())
    assert HookClient.objects.count() == 1
    assert status(call, token(URL)) == 401
    assert status(call, token(URL, key=new, header={"kid": "k2"})) == 200
    listed = StringIO()
    call_command("hook_client", "list", stdout=listed)
    assert ISSUER in listed.getvalue()
    assert all(address in listed.getvalue() for address in reached[1::2])
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
    by_proxy = Client(headers={"X-Forwarded-For": "192.0.2.7"}).get("/cds-services")
    assert by_proxy.status_code == 401, "a proxy on this machine brings others"
