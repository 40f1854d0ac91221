"""Request forgery (SSRF), each attack by name: nothing but what is registered is ever fetched (OPERATIONS 8).

An inner service stands on loopback; whatever is asked of it is counted. Paging links and answers of a FHIR
server, one by one: `tests/ehr/fhir/test_completing.py`.
"""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from typing import Any

import httpcore
import orjson
import pytest
from django.test import Client
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.errors import Invalid
from cds.hooks import key_sets, registering
from cds.hooks.models import HookClient
from cds.launch import registering as launch
from cds.patients import importing
from cds.registry.models import ModelVersion
from ehr.addresses import check_resolved
from ehr.json_documents import MAX_BODY_BYTES
from tests.cds.hooks.conftest import SERVICE, Call, heart_rate, hook_body, patient_resource, searchset
from tests.cds.hooks.key_server import KeyServer, key_server

OUTSIDE = "https://ehr.example.org"


@pytest.fixture
def inner() -> Iterator[KeyServer]:
    """What an attacker would like to reach through us."""
    with key_server() as running:
        running.raw = orjson.dumps(patient_resource())
        yield running


# -- 1. fhirServer of a call: only what is registered, letter by letter ---------------------------------
# REGISTERED is the registered address, INNER the host and port of the inner service
FHIR_SERVERS = {
    "not registered": "http://INNER/fhir",
    "loopback by name": "http://localhost:PORT/fhir",
    "loopback by another address": "http://127.0.0.2:PORT/fhir",
    "loopback in IPv6": "http://[::1]:PORT/fhir",
    "loopback as IPv4 in IPv6": "http://[::ffff:127.0.0.1]:PORT/fhir",
    "loopback as one number": "http://2130706433:PORT/fhir",
    "loopback in octal": "http://0177.0.0.1:PORT/fhir",
    "loopback in hexadecimal": "http://0x7f.0.0.1:PORT/fhir",
    "loopback cut short": "http://127.1:PORT/fhir",
    "loopback as 0.0.0.0": "http://0.0.0.0:PORT/fhir",
    "loopback with a dot at its end": "http://127.0.0.1.:PORT/fhir",
    "metadata of a cloud": "http://169.254.169.254/latest/meta-data",
    "the registered host, another port": "http://127.0.0.1:PORT/fhir",
    "the registered host as a user name": "REGISTERED@INNER/fhir",
    "the registered host as a user and password": "http://127.0.0.1:1@INNER/fhir",
    "the registered host as the beginning of another": "REGISTERED.thief.example/fhir",
    "the registered address and a way out of it": "REGISTERED/../admin",
    "the registered address with a query": "REGISTERED?x=",
    "the registered address with a fragment": "REGISTERED#x",
    "the registered address with a line break": "REGISTERED\r\nHost: INNER",
    "the registered address in capitals": "HTTP://127.0.0.1:1/FHIR",
    "a backslash for a slash": "http://INNER\\@127.0.0.1:1/fhir",
    "another scheme: file": "file:///etc/passwd",
    "another scheme: gopher": "gopher://INNER/_GET%20/",
    "another scheme: ftp": "ftp://INNER/fhir",
    "another scheme: none": "//INNER/fhir",
}


@pytest.mark.parametrize("name", FHIR_SERVERS, ids=lambda name: name.replace(" ", "-"))
def test_a_fhir_server_of_the_attackers_choice(
    call: Call, version: ModelVersion, hook_client: HookClient, inner: KeyServer, name: str
) -> None:
    registered = "http://127.0.0.1:1/fhir"
    HookClient.objects.filter(pk=hook_client.pk).update(fhir_servers=[registered])
    host = inner.url.removeprefix("http://").removesuffix("/keys")
    there = FHIR_SERVERS[name].replace("REGISTERED", registered).replace("INNER", host)
    answer = call(SERVICE, call_body(there.replace("PORT", host.partition(":")[2])))
    assert answer.status_code in (400, 412)
    told = answer.json()["issue"][0]["diagnostics"]
    assert "must be a URL" in told or "is not registered for this client" in told
    assert inner.asked == []


def call_body(server: str, **changes: Any) -> dict[str, Any]:
    authorization = {
        "access_token": "secret", "token_type": "Bearer", "expires_in": 300, "scope": "patient/*.rs",
        "subject": "tessera", "patient": "p1",
    }  # fmt: skip
    return hook_body(prefetch=None, fhirServer=server, fhirAuthorization=authorization, **changes)


@pytest.mark.parametrize("patient_id", ["../../admin", "p1?x=", "p1/../..", "p1\r\nHost: x", "p1#", "%2e%2e"])
def test_a_patient_id_is_no_way_elsewhere(
    call: Call, version: ModelVersion, hook_client: HookClient, inner: KeyServer, patient_id: str
) -> None:
    base = inner.url.removesuffix("/keys")
    HookClient.objects.filter(pk=hook_client.pk).update(fhir_servers=[base])
    body = call_body(base)
    body["context"]["patientId"] = body["fhirAuthorization"]["patient"] = patient_id
    assert call(SERVICE, body).status_code == 400
    assert inner.asked == []


# -- 2. a registered FHIR server that leads elsewhere ---------------------------------------------------
@pytest.mark.parametrize(
    "leads",
    ["by a redirect", "by a further page", "by the page the EHR sent"],
    ids=lambda one: one.replace(" ", "-"),
)
def test_a_registered_server_leads_nowhere_else(
    call: Call, version: ModelVersion, hook_client: HookClient, inner: KeyServer, leads: str
) -> None:
    with key_server() as registered:
        base = registered.url.removesuffix("/keys")
        HookClient.objects.filter(pk=hook_client.pk).update(fhir_servers=[base])
        elsewhere = [{"relation": "next", "url": f"{inner.url}?page=2"}]
        first = searchset(heart_rate(88, at=timezone.now()), link=elsewhere)
        registered.raw = orjson.dumps(first if leads == "by a further page" else searchset())
        if leads == "by a redirect":
            registered.status, registered.headers = 302, {"Location": inner.url}
        body = call_body(base)
        if leads == "by the page the EHR sent":
            body["prefetch"] = {"patient": patient_resource(), "vitals": first}
        call(SERVICE, body)
        assert registered.asked
    assert inner.asked == []


# -- 3. what may be registered at all -------------------------------------------------------------------
ADDRESSES = {
    "plain http": "http://ehr.example.org/x",
    "plain http to a private network": "http://10.0.0.1/x",
    "plain http to the metadata of a cloud": "http://169.254.169.254/x",
    "loopback as one number": "http://2130706433/x",
    "loopback in octal": "http://0177.0.0.1/x",
    "loopback in hexadecimal": "http://0x7f000001/x",
    "loopback as the beginning of a name": "http://127.0.0.1.thief.example/x",
    "localhost as the beginning of a name": "http://localhost.thief.example/x",
    "localhost with a dot": "http://localhost./x",
    "IPv4 in IPv6": "http://[::ffff:127.0.0.1]/x",
    "a user name": "https://user@ehr.example.org/x",
    "a user and password": "https://user:word@ehr.example.org/x",
    "file": "file:///etc/passwd",
    "gopher": "gopher://ehr.example.org/x",
    "data": "data:application/json,{}",
    "no scheme": "ehr.example.org/x",
    "no host": "https:///x",
    "a port that is none": "https://ehr.example.org:99999/x",
    "half an IPv6 address": "https://[::1/x",
    "a line break": "https://ehr.example.org/x\r\nHost: thief.example",
    "a tab in the host": "https://ehr.exa\tmple.org/x",
    "a space": "https://ehr.example.org/x y",
    "NUL": "https://ehr.example.org/\x00",
}


@pytest.mark.parametrize("name", ADDRESSES, ids=lambda name: name.replace(" ", "-"))
def test_an_address_that_is_never_registered(name: str) -> None:
    for check in (key_sets.check_url, registering.check_server, launch.check_issuer):
        with pytest.raises(Invalid):
            check(ADDRESSES[name])


def test_in_production_not_even_loopback_is_read_by_plain_http(settings: Any) -> None:
    assert key_sets.check_url("http://127.0.0.1/keys")
    settings.PRODUCTION = True
    for check in (key_sets.check_url, registering.check_server):
        with pytest.raises(Invalid, match="by https only"):
            check("http://127.0.0.1/keys")


# -- 4. where a registered name may lead, looked at when connecting -------------------------------------
LEADS = {
    "loopback": ("127.0.0.1", False),
    "all of 127": ("127.255.255.254", False),
    "loopback in IPv6": ("::1", False),
    "loopback as IPv4 in IPv6": ("::ffff:127.0.0.1", False),
    "loopback as IPv4 in IPv6, the old way": ("::127.0.0.1", False),
    "loopback in NAT64": ("64:ff9b::7f00:1", False),
    "loopback in 6to4": ("2002:7f00:1::", False),
    "metadata in 6to4": ("2002:a9fe:a9fe::", False),
    "Teredo": ("2001:0:a9fe:a9fe::1", False),
    "link-local": ("169.254.1.1", False),
    "metadata (AWS, Azure, Google)": ("169.254.169.254", False),
    "metadata as IPv4 in IPv6": ("::ffff:169.254.169.254", False),
    "metadata in IPv6 (AWS)": ("fd00:ec2::254", False),
    "metadata (Alibaba)": ("100.100.100.200", False),
    "metadata (Azure, wire server)": ("168.63.129.16", False),
    "metadata (Oracle)": ("192.0.0.192", False),
    "link-local in IPv6": ("fe80::1%eth0", False),
    "unspecified": ("0.0.0.0", False),
    "this network": ("0.1.2.3", False),
    "unspecified in IPv6": ("::", False),
    "multicast": ("224.0.0.251", False),
    "multicast in IPv6": ("ff02::1", False),
    "broadcast": ("255.255.255.255", False),
    "reserved": ("240.0.0.1", False),
    "a hospital's network": ("10.1.2.3", True),
    "another": ("192.168.7.9", True),
    "a third": ("172.16.0.5", True),
    "a hospital's network in IPv6": ("fd12:3456::1", True),
    "the internet": ("203.0.113.7", True),
    "the internet in IPv6": ("2001:db8::7", True),
}


@pytest.mark.parametrize("name", LEADS, ids=lambda name: name.replace(" ", "-"))
def test_where_a_name_leads(name: str) -> None:
    address, is_let = LEADS[name]
    if is_let:
        check_resolved("ehr.example.org", address)
        return
    for host in ("ehr.example.org", "2130706433", "localhost.thief.example", "0x7f.1"):
        with pytest.raises(ehr.Refused):
            check_resolved(host, address)


@pytest.mark.parametrize(
    ("answers", "reached"),
    [
        ([["10.1.2.3"], ["127.0.0.1"]], ["10.1.2.3"]),
        ([["127.0.0.1"], ["10.1.2.3"]], []),
        ([["10.1.2.3", "127.0.0.1"]], []),
        ([["169.254.169.254"]], []),
    ],
    ids=["bound anew after the look", "bound anew before it", "one good address of two", "metadata"],
)
def test_rebinding(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]], reached: list[str]) -> None:
    """A name is looked up once, and what was looked at is what is connected to."""
    tried: list[str] = []
    left = iter(answers)

    def looked_up(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (one, 443)) for one in next(left)]

    async def connect(self: Any, host: str, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise httpcore.ConnectError("as far as this test goes")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    with pytest.raises(ehr.Retriable, match="ConnectError"):
        ehr.read_key_set(f"{OUTSIDE}/keys")
    assert tried == reached


# -- 5. key sets at a registered address that misbehaves ------------------------------------------------
def misbehaving(server: KeyServer, how: str, inner: KeyServer) -> None:
    """Make a server do it."""
    good = orjson.dumps({"keys": [{"kty": "EC"}]})
    match how:
        case "redirect":
            server.status, server.headers = 302, {"Location": inner.url}
        case "permanent redirect":
            server.status, server.headers = 308, {"Location": inner.url}
        case "refresh in a header":
            server.raw, server.headers = b"", {"Refresh": f"0; url={inner.url}"}
        case "too large":
            server.raw = b'{"keys":"' + b"x" * MAX_BODY_BYTES + b'"}'
        case "too large once unpacked":
            server.raw = gzip.compress(b'{"keys":"' + b"x" * 50 * MAX_BODY_BYTES + b'"}')
            server.headers = {"Content-Encoding": "gzip"}
        case "byte by byte":
            server.raw, server.drip_s = good, 0.2
        case "more promised than sent":
            server.raw, server.headers = good, {"Content-Length": "1000000"}
        case "a page":
            server.raw = b"<html>sign in</html>"
        case "deep":
            server.raw = b'{"keys":' + b"[" * 100_000
        case "empty":
            server.raw = b""


MISBEHAVIOUR = {
    "redirect": "redirects are not followed",
    "permanent redirect": "redirects are not followed",
    "refresh in a header": "not a JSON object",
    "too large": "larger than 262144 bytes",
    "too large once unpacked": "compressed",
    "byte by byte": "out of reach",
    "more promised than sent": "out of reach",
    "a page": "not a JSON object",
    "deep": "not a JSON object",
    "empty": "not a JSON object",
}


@pytest.mark.parametrize("how", MISBEHAVIOUR, ids=lambda name: name.replace(" ", "-"))
def test_a_key_set_that_is_a_trap(how: str, inner: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sets, "READ_S", 0.5)
    with key_server() as server:
        misbehaving(server, how, inner)
        with pytest.raises(Invalid, match=MISBEHAVIOUR[how]):
            key_sets.read(server.url)
        assert len(server.asked) == 1
    assert inner.asked == []


# -- 6. a launch by somebody who is not registered ------------------------------------------------------
@pytest.mark.parametrize("change", ["", "@127.0.0.1:1", "/../x", "?x", "#x"])
def test_a_launch_names_another_server(db: None, inner: KeyServer, change: str) -> None:
    now = timezone.now()
    launch.register(
        "EHR",
        issuer="http://127.0.0.1:1/fhir",
        client_id="tessera",
        source=importing.get_source("ehr", now=now),
        by=recording.system("tests"),
        now=now,
    )
    answer = Client().get("/launch", {"iss": inner.url + change, "launch": "x"})
    assert answer.status_code == 400
    assert inner.asked == []


def test_there_are_as_many_as_we_say() -> None:
    refused = [name for name, (_, is_let) in LEADS.items() if not is_let]
    assert len(FHIR_SERVERS) + len(ADDRESSES) + len(refused) + len(MISBEHAVIOUR) >= 80
    assert len(FHIR_SERVERS) >= 20
    assert len(LEADS) - len(refused) >= 5  # what must be let through
