"""The screens of EHRs: who is registered; registering, changing and withdrawing, each shown first."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import orjson
import pytest
from django.core.management import call_command
from django.test import Client

import ehr
from cds.audit.models import AuditEvent
from cds.hooks import key_sets
from cds.hooks.models import HookClient
from cds.launch.models import SmartServer
from cds.patients.models import Source
from tests.web.clinic import Clinic, ehrs
from web.templatetags.screens import address

pytestmark = pytest.mark.django_db
KEYS = ehr.public_keys([{**ehr.new_key("EC"), "kid": "spring"}])


def client_form(**changes: str) -> dict[str, str]:
    known = {
        "name": "Lake Clinic",
        "issuer": "https://lake.example/ehr",
        "source": "lake",
        "jwks": orjson.dumps(KEYS).decode(),
        "fhir_servers": "https://fhir.lake.example/r4\nhttps://fhir.lake.example/r4b/",
    }
    return {**known, **changes}


def server_form(**changes: str) -> dict[str, str]:
    known = {
        "name": "Lake Clinic",
        "issuer": "https://fhir.lake.example/r4/",
        "source": "lake",
        "client_id": "tessera",
        "is_confidential": "on",
        "embedders": "https://ehr.lake.example",
    }
    return {**known, **changes}


@pytest.fixture
def admin(ward: Clinic, sign_in: Callable[[str], Client]) -> Client:
    return sign_in("admin")


def test_both_lists_say_what_matters(ward: Clinic, admin: Client) -> None:
    made = ehrs(ward)
    page = admin.get("/ehrs").content.decode()
    assert "https://fhir.<wbr>example.<wbr>org/<wbr>r4<" in page, "a narrow column breaks it there"
    page = page.replace("<wbr>", "")
    for said in ("https://ehr.example.org", "tenant north", "4 min ago", "40 days ago", "Keys not read",
                 "https://fhir.example.org/r4", "confidential", "https://login.example.org:443"):  # fmt: skip
        assert said in page, said
    page = admin.get(f"/ehrs/clients/{made['client']}").content.decode()
    assert "the server answered 503" in page
    assert page.count('data-testid="key-row"') == 2


def test_an_address_is_text_whatever_it_holds() -> None:
    assert address("https://a.example/<b>&c") == "https://a.<wbr>example/<wbr>&lt;b&gt;&amp;c"
    assert address("") == ""


def test_nothing_is_kept_before_it_is_confirmed(admin: Client) -> None:
    answer = admin.post("/ehrs/clients/new", client_form())
    assert answer.status_code == 200
    page = answer.content.decode()
    assert "spring" in page
    assert not HookClient.objects.exists()
    back = admin.post("/ehrs/clients/new", {**client_form(), "change": "1"}).content.decode()
    assert "Lake Clinic" in back
    answer = admin.post("/ehrs/clients/new", {**client_form(), "confirm": "1"})
    client = HookClient.objects.get()
    assert answer["Location"] == f"/ehrs/clients/{client.pk}"
    assert client.fhir_servers == ["https://fhir.lake.example/r4", "https://fhir.lake.example/r4b"]
    assert client.source.slug == "lake"
    event = AuditEvent.objects.get(action="hook_client.register")
    assert event.actor.startswith("user:")
    assert event.detail["keys"] == ["spring"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("name", "", "required"),
        ("issuer", "lake", "An issuer is a URL"),
        ("source", "the lake", "slug"),
        ("jwks", "{", "Not JSON (position"),
        ("jwks", '{"keys": []}', "at least one key"),
        ("jwks", "", "one of the two"),
        ("jwks_url", "https://lake.example/keys", "one of the two"),
        ("jwks_url", "http://lake.example/keys", "Plain http is refused outside loopback"),
        ("fhir_servers", "https://a.example https://b.example?x=1", "base address alone"),
        ("origins", "https://lake.example/path", "An origin is scheme://host[:port]"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_beside_its_field(admin: Client, field: str, value: str, told: str) -> None:
    for extra in ({}, {"confirm": "1"}):  # a forged confirmation is checked just the same
        answer = admin.post("/ehrs/clients/new", {**client_form(**{field: value}), **extra})
        assert answer.status_code == 400
        errors = answer.context["form"].errors
        where = "jwks_url" if told == "one of the two" else field
        assert told in " ".join(errors[where])
        page = answer.content.decode()
        assert f'id="id_{where}_error"' in page
        assert page.count("autofocus") == 1
    assert not HookClient.objects.exists()


def test_what_changes_is_marked_and_the_issuer_and_tenant_stay(ward: Clinic, admin: Client) -> None:
    client = HookClient.objects.get(pk=ehrs(ward)["client"])
    known = {
        "name": client.name,
        "source": client.source.slug,
        "jwks_url": client.jwks_url,
        "tenant": "south",
    }
    where = f"/ehrs/clients/{client.pk}/edit"
    page = admin.post(where, {**known, "issuer": "https://thief.example"}).content.decode()
    assert page.count(">changes<") == 2  # FHIR servers and origins that were left out
    assert "thief" not in page
    before = client.jwks
    admin.post(where, {**known, "issuer": "https://thief.example", "confirm": "1"})
    client.refresh_from_db()
    assert (client.issuer, client.tenant, client.jwks) == ("https://ehr.example.org", "north", before)


def test_the_same_issuer_and_tenant_twice_is_refused(ward: Clinic, admin: Client) -> None:
    ehrs(ward)
    known = client_form(issuer="https://ehr.example.org", confirm="1")
    answer = admin.post("/ehrs/clients/new", {**known, "tenant": "north"})
    assert "issuer and tenant is registered already" in answer.content.decode()
    answer = admin.post("/ehrs/clients/new", {**known, "tenant": "south"}, follow=True)
    assert "New source made: lake." in answer.content.decode()
    assert sorted(HookClient.objects.values_list("tenant", "source__slug")) == [
        ("north", ward.patients[0].source.slug), ("south", "lake"),
    ]  # fmt: skip
    answer = admin.post("/ehrs/servers/new", server_form(issuer="https://fhir.example.org/r4"))
    assert "registered already" in answer.content.decode()


def test_a_registration_that_fails_at_the_end_leaves_no_source(admin: Client) -> None:
    """Its keys were there when it was looked at, and are not when it is confirmed."""
    known = client_form(source="laek", jwks="", jwks_url="http://127.0.0.1:1/keys", confirm="1")
    assert admin.post("/ehrs/clients/new", known).status_code == 400
    assert not Source.objects.filter(slug="laek").exists()


def test_withdrawing_asks_once_and_registering_again_lets_in(ward: Clinic, admin: Client) -> None:
    made = ehrs(ward)
    for kind, model in (("clients", HookClient), ("servers", SmartServer)):
        where = f"/ehrs/{kind}/{made[kind.removesuffix('s')]}"
        page = admin.get(f"{where}/withdraw").content.decode()
        assert "Withdraw Example Hospital EHR?" in page
        assert ("the sessions that it launched end" in page) is (kind == "servers")
        assert model.objects.get().is_active
        admin.post(f"{where}/withdraw")
        assert not model.objects.get().is_active
        page = admin.get(where).content.decode()
        assert "Register again" in page
        assert "/withdraw" not in page
    actions = AuditEvent.objects.filter(action__endswith=".withdraw").values_list("action", flat=True)
    assert sorted(actions) == ["hook_client.withdraw", "smart_server.withdraw"]
    client = HookClient.objects.get()
    known = {"name": client.name, "source": client.source.slug, "jwks_url": client.jwks_url, "confirm": "1"}
    admin.post(f"/ehrs/clients/{client.pk}/edit", known)
    assert HookClient.objects.get().is_active


def test_a_key_set_that_cannot_be_read_is_a_mistake_of_its_field(admin: Client) -> None:
    form = client_form(jwks="", jwks_url="http://127.0.0.1:1/keys")
    answer = admin.post("/ehrs/clients/new", form)
    assert answer.status_code == 400
    assert "out of reach (ConnectError)" in answer.content.decode()
    answer = admin.post("/ehrs/clients/new", {**form, "confirm": "1"})
    assert answer.status_code == 400
    assert not HookClient.objects.exists()


def test_keys_are_read_at_once_when_asked(
    ward: Clinic, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ehrs(ward)
    where = f"/ehrs/clients/{made['client']}"
    told = admin.post(f"{where}/keys", follow=True).content.decode()
    assert "the keys read before stay in use" in told
    monkeypatch.setattr(key_sets, "read", lambda url: KEYS)
    told = admin.post(f"{where}/keys", follow=True).content.decode()
    assert "Read: 1 usable keys" in told
    assert "spring" in told
    assert AuditEvent.objects.get(action="hook_client.keys").detail["keys"] == ["spring"]


def test_a_smart_server_is_registered_and_changed(admin: Client) -> None:
    page = admin.post("/ehrs/servers/new", server_form()).content.decode()
    assert "https://fhir.lake.example/r4" in page
    assert not SmartServer.objects.exists()
    admin.post("/ehrs/servers/new", {**server_form(), "confirm": "1"})
    server = SmartServer.objects.get()
    assert (server.issuer, server.is_confidential) == ("https://fhir.lake.example/r4", True)
    shown = admin.get(f"/ehrs/servers/{server.pk}").content.decode()
    assert "/.well-known/jwks.json" in shown
    known = {name: value for name, value in server_form().items() if name != "is_confidential"}
    admin.post(f"/ehrs/servers/{server.pk}/edit", {**known, "confirm": "1"})
    assert not SmartServer.objects.get().is_confidential


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("issuer", "http://fhir.example/r4", "Plain http is refused outside loopback"),
        ("client_id", "", "required"),
        ("origins", "ftp://x", "an origin of the sign-in is https://host"),
        ("embedders", "https://*.example", "is not a web origin"),
    ],
)
def test_mistakes_of_a_smart_server(admin: Client, field: str, value: str, told: str) -> None:
    answer = admin.post("/ehrs/servers/new", {**server_form(**{field: value}), "confirm": "1"})
    assert answer.status_code == 400
    assert told in " ".join(answer.context["form"].errors[field])
    assert not SmartServer.objects.exists()


@pytest.mark.parametrize("kind", ["clients", "servers"])
def test_two_ehrs_with_one_source_are_warned_of_and_not_refused(
    ward: Clinic, admin: Client, kind: str
) -> None:
    """Patient 1 of one would be patient 1 of the other; one hospital may have two addresses."""
    made = ehrs(ward)
    form = {"clients": client_form, "servers": server_form}[kind]
    where, marked = f"/ehrs/{kind}/new", 'data-testid="shared-source"'
    slug = ward.patients[0].source.slug
    review = admin.post(where, form(source=slug)).content.decode()
    assert marked in review
    assert "patient 1 of one is patient 1 of the other" in review
    assert "Example Hospital EHR (https://" in review
    assert marked not in admin.post(where, form()).content.decode()
    page = admin.post(where, {**form(source=slug), "confirm": "1"}, follow=True).content.decode()
    assert marked in page
    held = f"/ehrs/{kind}/{made[kind.removesuffix('s')]}"
    assert marked in admin.get(held).content.decode()
    assert admin.get("/ehrs").content.decode().count("Shares its source") == 2
    admin.post(f"{held}/withdraw")
    assert "Shares its source" not in admin.get("/ehrs").content.decode()


@pytest.mark.parametrize(
    ("command", "more"),
    [("smart_server", ["--client-id", "x"]), ("hook_client", ["--jwks", "FILE"])],
)
def test_the_commands_warn_of_a_shared_source(
    ward: Clinic, command: str, more: list[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(orjson.dumps(KEYS))
    more = [str(keys) if one == "FILE" else one for one in more]

    def told(issuer: str, source: str) -> str:
        out = StringIO()
        call_command(command, "add", "Lake", "--issuer", issuer, "--source", source, *more, stdout=out)
        return out.getvalue()

    warned = "warning: the source"
    assert warned not in told("https://one.example/r4", "lake")
    assert warned not in told("https://one.example/r4", "lake")  # itself, registered again
    said = told("https://two.example/r4", "lake")
    assert "warning: the source lake is also that of Lake (https://one.example/r4)" in said
    assert warned not in told("https://two.example/r4", "other")
    told("https://two.example/r4", "lake")
    listed = StringIO()
    call_command(command, "list", stdout=listed)
    assert listed.getvalue().count(warned) == 2
    assert listed.getvalue().count("a redirect URI of its own") == 2 * (command == "smart_server")
