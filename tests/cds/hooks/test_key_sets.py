"""Keys at an address: read when registered, again when old or unknown, never often, never for long."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.http import HttpResponse
from django.utils import timezone
from joserfc.jwk import ECKey, RSAKey

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Invalid
from cds.hooks import client_auth, key_sets, registering
from cds.hooks.models import HookClient
from cds.patients import importing
from tests.cds.hooks.conftest import BASE, ISSUER, KEY, Call, token
from tests.cds.hooks.key_server import KeyServer, key_server

LIST = "/cds-services"
NEW = ECKey.generate_key("P-384", parameters={"kid": "k2"})
BY = recording.system("tests")


class AtOnce:
    """Readings end before the call that asked for them goes on, in the transaction of the test."""

    def submit(self, work: Callable[[], key_sets.Reading]) -> Future[key_sets.Reading]:
        done: Future[key_sets.Reading] = Future()
        done.set_result(work())
        return done


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server() as running:
        running.publish(KEY)
        yield running


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sets, "_threads", AtOnce())


@pytest.fixture
def client(call: Call, server: KeyServer, at_once: None) -> HookClient:
    """The registered EHR, its keys at an address from here on, read ten minutes ago."""
    return register(server)


def register(server: KeyServer) -> HookClient:
    now = timezone.now()
    kept, _ = registering.register(
        "Example EHR",
        issuer=ISSUER,
        jwks_url=server.url,
        source=importing.get_source("ehr", now=now),
        by=BY,
        now=now - timedelta(minutes=10),
    )
    server.asked.clear()
    return kept


def by(call: Call, key: Any = KEY, kid: str = "") -> HttpResponse:
    """A call signed with a key."""
    return call(LIST, bearer=token(BASE + LIST, key=key, header={"kid": kid or key.kid}))


def said(response: HttpResponse) -> str:
    return str(response.json()["issue"][0]["diagnostics"])


def at(monkeypatch: pytest.MonkeyPatch, when: datetime) -> None:
    """What time it is for a call (its token is signed now, whatever the time)."""
    monkeypatch.setattr("cds.hooks.endpoints.timezone.now", lambda: when)
    monkeypatch.setattr(client_auth, "_check_claims", lambda *_, **__: None)
    client_auth.forget()


def test_keys_that_are_known_are_not_asked_for(call: Call, client: HookClient, server: KeyServer) -> None:
    assert [by(call).status_code for _ in range(3)] == [200, 200, 200]
    assert server.asked == []


def test_a_new_key_is_found_at_once_and_an_old_one_forgotten(
    call: Call, client: HookClient, server: KeyServer
) -> None:
    assert by(call).status_code == 200
    server.publish(NEW)
    assert by(call, NEW).status_code == 200
    assert by(call, KEY).status_code == 401
    assert len(server.asked) == 1
    client.refresh_from_db()
    assert [key["kid"] for key in client.jwks["keys"]] == ["k2"]
    event = AuditEvent.objects.get(action="hook_client.keys")
    assert (event.detail["before"], event.detail["keys"]) == (["k1"], ["k2"])


def test_made_up_kids_cannot_make_us_hammer_anybody(
    call: Call, client: HookClient, server: KeyServer
) -> None:
    answers = [by(call, kid=uuid.uuid4().hex) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {401}
    assert len(server.asked) == 1
    assert "just read anew: publish the key at the registered JWKS URL" in said(answers[0])
    assert "read anew every 30 s at most: publish a new key at least that long before" in said(answers[-1])
    server.publish(KEY, NEW)
    assert by(call).status_code == 200  # those who sign with a known key notice nothing


def test_after_a_while_it_is_read_again(
    call: Call, client: HookClient, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    at(monkeypatch, now)
    assert by(call, NEW).status_code == 401
    server.publish(NEW)
    at(monkeypatch, now + timedelta(seconds=key_sets.REFETCH_S - 1))
    assert by(call, NEW).status_code == 401
    at(monkeypatch, now + timedelta(seconds=key_sets.REFETCH_S))
    assert by(call, NEW).status_code == 200
    assert len(server.asked) == 2


def test_of_two_processes_one_reads(client: HookClient) -> None:
    other, now = HookClient.objects.get(pk=client.pk), timezone.now()
    assert key_sets._claim(client, now)
    assert not key_sets._claim(other, now)
    assert key_sets.ask(other, now=now) is key_sets.Reading.UNDER_WAY
    later = now + timedelta(seconds=key_sets.READ_S + 2)  # whoever had claimed it was killed
    assert key_sets.ask(other, now=later) is key_sets.Reading.NOT_YET


def test_an_old_set_is_read_again_beside_the_calls(
    call: Call, client: HookClient, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(KEY, NEW)
    at(monkeypatch, timezone.now() + timedelta(seconds=key_sets.FRESH_S))
    assert [by(call).status_code for _ in range(3)] == [200, 200, 200]
    assert len(server.asked) == 1
    client.refresh_from_db()
    first, second = client.keys_since["k1"], client.keys_since["k2"]
    assert first < second  # each key has its own age


def test_while_the_address_is_silent_the_keys_known_before_are_believed_for_a_day(
    call: Call, client: HookClient, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.status = 503
    read_at = client.keys_read_at
    assert read_at is not None
    at(monkeypatch, read_at + timedelta(seconds=key_sets.BELIEVED_S - 1))
    assert by(call).status_code == 200
    client.refresh_from_db()
    assert "503" in client.keys_problem
    unknown = by(call, NEW)
    assert unknown.status_code == 401
    assert "its JWKS URL does not answer as it should" in said(unknown)
    at(monkeypatch, read_at + timedelta(seconds=key_sets.BELIEVED_S + 60))
    over = by(call)
    assert over.status_code == 401
    assert "read last more than 24 h ago" in said(over)
    server.status = 200
    at(monkeypatch, read_at + timedelta(seconds=key_sets.BELIEVED_S + 120))
    assert by(call).status_code == 200
    client.refresh_from_db()
    assert client.keys_problem == ""


@pytest.mark.django_db(transaction=True)
def test_a_call_does_not_wait_for_a_slow_address(server: KeyServer, settings: Any) -> None:
    """With the threads of production: 503 while the set is being read, and the next call goes through."""
    from django.test import Client

    register(server)
    settings.HOOKS_BUDGET_S = 0.45

    def send() -> HttpResponse:
        bearer = token(BASE + LIST, key=NEW, header={"kid": "k2"})
        return Client().get(LIST, headers={"Authorization": f"Bearer {bearer}"})

    server.publish(NEW)
    server.hold.clear()
    answers = [send(), send()]  # the second finds that somebody is reading already
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0]["Retry-After"] == "5"
    assert "being read anew: try again" in said(answers[0])
    assert len(server.asked) == 1
    server.hold.set()
    until = time.monotonic() + 20
    while HookClient.objects.get().jwks["keys"][0]["kid"] != "k2" and time.monotonic() < until:
        time.sleep(0.02)
    assert send().status_code == 200


def test_an_address_that_was_changed_meanwhile_keeps_its_own_keys(
    client: HookClient, server: KeyServer
) -> None:
    HookClient.objects.filter(pk=client.pk).update(jwks_url="https://elsewhere.example/keys")
    server.publish(NEW)
    assert key_sets.read_anew(client, now=timezone.now()) is key_sets.Reading.DONE
    assert HookClient.objects.get().jwks["keys"][0]["kid"] == "k1"


def test_a_jku_is_never_fetched_and_must_be_the_registered_address(
    call: Call, client: HookClient, server: KeyServer
) -> None:
    def with_jku(jku: str) -> HttpResponse:
        return call(LIST, bearer=token(BASE + LIST, header={"jku": jku}))

    with key_server() as thief:
        answer = with_jku(thief.url)
        assert answer.status_code == 401
        assert "jku is not the registered JWKS URL" in said(answer)
        assert with_jku(server.url).status_code == 200
        assert thief.asked == []
    assert server.asked == []


def test_by_command(call: Call, server: KeyServer, at_once: None) -> None:
    add = ["hook_client", "add", "Example EHR", "--issuer", ISSUER, "--source", "ehr"]
    call_command(*add, "--jwks-url", server.url, stdout=StringIO())
    assert by(call).status_code == 200
    server.publish(NEW)
    told = StringIO()
    call_command("hook_client", "read-keys", "--issuer", ISSUER, stdout=told)
    assert "k2" in told.getvalue()
    assert by(call, NEW).status_code == 200
    server.raw = b"<html>"
    with pytest.raises(CommandError, match="not a JSON object; the keys read before stay in use"):
        call_command("hook_client", "read-keys", "--issuer", ISSUER)
    told = StringIO()
    call_command("hook_client", "list", stdout=told)
    assert f"keys from {server.url}, read last" in told.getvalue()
    assert "not a JSON object" in told.getvalue()


def test_an_address_that_does_not_answer_is_not_registered(call: Call, server: KeyServer) -> None:
    server.status = 404
    add = ["hook_client", "add", "Lake", "--issuer", "https://lake.example", "--source", "lake"]
    with pytest.raises(CommandError, match="could not be read: GET /keys: the server answered 404"):
        call_command(*add, "--jwks-url", server.url)
    assert HookClient.objects.count() == 1
    with pytest.raises(CommandError, match="pasted"):
        call_command("hook_client", "read-keys", "--issuer", ISSUER)
    with pytest.raises(CommandError, match="not allowed with argument"):
        call_command(*add, "--jwks-url", server.url, "--jwks", "keys.json")


def public(key: Any, **changes: Any) -> dict[str, Any]:
    found = {**key.as_dict(private=False), "kid": "x", **changes}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (public(ECKey.generate_key("P-256")), "not on curve P-384"),
        (public(RSAKey.generate_key(1024)), "shorter than 2048 bits"),
        (public(KEY, use="enc"), "not for signatures"),
        (public(KEY, key_ops=["sign"]), "not for signatures"),
        (public(RSAKey.generate_key(2048), alg="RS256"), "another alg"),
        (public(KEY, kid=None), "needs a kid"),
        (public(KEY, kid="a\x00b"), "needs a kid"),
        (public(KEY, y="AAAA"), "not a usable key"),
        ({"kty": "oct", "k": "AA", "kid": "x"}, "private parts|kty EC or RSA"),
        ("key", "kty EC or RSA"),
    ],
)  # fmt: skip
def test_keys_that_calls_cannot_be_signed_with(key: Any, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        key_sets.check_keys({"keys": [key]})
    with pytest.raises(Invalid, match=told):
        key_sets.usable_keys({"keys": [key]})
    if not isinstance(key, dict) or "k" not in key:  # at an address, keys for other uses are passed over
        assert key_sets.usable_keys({"keys": [key, public(KEY)]}) == {"keys": [public(KEY)]}


def test_an_address_that_gives_private_keys_away_is_not_believed() -> None:
    secret = {**NEW.as_dict(private=True), "kid": "x"}
    with pytest.raises(Invalid, match="known to everybody"):
        key_sets.usable_keys({"keys": [public(KEY), secret]})


def test_a_key_set_is_bounded() -> None:
    with pytest.raises(Invalid, match="at most 50 keys"):
        key_sets.usable_keys({"keys": [public(KEY, kid=str(i)) for i in range(51)]})
