"""One issuer, several tenants: each a client with keys, a source and patients of its own (INTEROP 18-22)."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.utils import timezone
from joserfc.jwk import ECKey

from cds.audit import recording
from cds.errors import Invalid
from cds.hooks import client_auth, registering
from cds.hooks.models import HookClient
from cds.patients.models import Patient, Source
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, ISSUER, KEY, SERVICE, Call, hook_body, token

BY = recording.system("tests")
LIST = "/cds-services"
OTHER = ECKey.generate_key("P-384", parameters={"kid": "k2"})


def register(tenant: str = "", *, key: Any = KEY, **more: Any) -> tuple[HookClient, bool]:
    now = timezone.now()
    known: dict[str, Any] = {"source": f"ehr-{tenant or 'none'}", **more}
    return registering.register(
        "Example EHR",
        issuer=ISSUER,
        tenant=tenant,
        jwks={"keys": [key.as_dict(private=False)]},
        by=BY,
        now=now,
        **known,
    )


def answered(call: Call, tenant: str | None, *, key: Any = KEY) -> str:
    """What a signed call is told; "" when it is let in."""
    bearer = token(BASE + LIST, key=key, header={"kid": key.kid}, tenant=tenant)
    answer = call(LIST, bearer=bearer)
    return "" if answer.status_code == 200 else str(answer.json()["issue"][0]["diagnostics"])


@pytest.fixture
def tenants(call: Call, hook_client: HookClient) -> tuple[HookClient, HookClient]:
    """North and south of one issuer, each with a key of its own; nobody without a tenant."""
    hook_client.delete()
    client_auth.forget()
    return register("north")[0], register("south", key=OTHER)[0]


def test_a_second_tenant_leaves_the_first_as_it_is(tenants: tuple[HookClient, HookClient]) -> None:
    north = HookClient.objects.get(tenant="north")
    assert (north.source.slug, [key["kid"] for key in north.jwks["keys"]]) == ("ehr-north", ["k1"])
    changed, is_new = register("north", key=OTHER)
    assert (changed.pk, is_new) == (north.pk, False)
    with pytest.raises(IntegrityError), transaction.atomic():
        HookClient.objects.create(
            issuer=ISSUER, tenant="south", source=north.source, created_at=timezone.now()
        )


def test_each_signs_with_its_own_keys_and_has_its_own_patients(
    call: Call, tenants: tuple[HookClient, HookClient], version: ModelVersion
) -> None:
    for tenant, key in (("north", KEY), ("south", OTHER), ("north", KEY)):
        bearer = token(BASE + SERVICE, key=key, header={"kid": key.kid}, tenant=tenant)
        assert call(SERVICE, hook_body("p1"), bearer=bearer).status_code == 200
    assert sorted(Patient.objects.values_list("source__slug", flat=True)) == ["ehr-north", "ehr-south"]
    assert "kid is not among the client's registered keys" in answered(call, "south", key=KEY)


def test_two_tenants_share_no_source_and_nobody_stands_beside_them(
    tenants: tuple[HookClient, HookClient],
) -> None:
    """Else one tenant's patient 1001 would be the other's, and new keys would replace nobody's."""
    with pytest.raises(Invalid, match="ehr-north belongs to another tenant"):
        register("west", source="ehr-north")
    with pytest.raises(Invalid, match=r"registered by tenant \(north, south\)"):
        register("")
    assert HookClient.objects.count() == 2


@pytest.mark.parametrize("tenant", [None, "", "west", "North"])
def test_a_tenant_nobody_registered_is_nobody(
    call: Call, tenants: tuple[HookClient, HookClient], tenant: str | None
) -> None:
    assert "tenant is not the registered one" in answered(call, tenant)


def test_without_a_tenant_any_is_taken_until_one_is_registered(call: Call, hook_client: HookClient) -> None:
    assert answered(call, "south") == ""
    register("north", key=OTHER)
    assert answered(call, None) == ""
    assert answered(call, "north", key=OTHER) == ""
    assert "tenant is not the registered one" in answered(call, "south")
    registering.withdraw(ISSUER, tenant="north", by=BY, now=timezone.now())
    assert "tenant is not the registered one" in answered(call, "north")  # and not for somebody else's
    assert answered(call, None) == ""


def test_what_is_kept_of_one_tenant_is_not_taken_for_another(
    call: Call, tenants: tuple[HookClient, HookClient], django_assert_max_num_queries: Any
) -> None:
    assert answered(call, "north") == ""
    with django_assert_max_num_queries(0):
        assert client_auth._known(ISSUER, "south", "k2")[0].tenant == "south"
        assert client_auth._known(ISSUER, "north", "k1")[0].tenant == "north"


def test_by_command(tenants: tuple[HookClient, HookClient], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"several tenants \('north', 'south'\): say which with --tenant"):
        call_command("hook_client", "withdraw", "--issuer", ISSUER)
    call_command("hook_client", "withdraw", "--issuer", ISSUER, "--tenant", "south", stdout=StringIO())
    assert [one.tenant for one in HookClient.objects.filter(is_active=True)] == ["north"]
    told = StringIO()
    call_command("hook_client", "list", stdout=told)
    assert f"{ISSUER}  tenant south  source ehr-south" in told.getvalue()


@pytest.mark.parametrize("tenant", ["x" * 121, "a\x00b", "a\nb"])
def test_a_tenant_has_bounds(db: None, tenant: str) -> None:
    with pytest.raises(Invalid, match="at most 120 characters"):
        register(tenant, source="ehr")


# -- the source ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "the lake"},
        {"key": ECKey.generate_key("P-256", parameters={"kid": "k1"})},
        {"origins": ["x"]},
    ],
    ids=["slug", "key", "origin"],
)
def test_a_registration_that_fails_leaves_no_source(db: None, wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        register(**{"source": "laek", **wrong})
    assert not Source.objects.exists()


def test_a_command_says_when_it_made_a_source(db: None, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(orjson.dumps({"keys": [KEY.as_dict(private=False)]}))
    add = ["hook_client", "add", "X", "--issuer", ISSUER, "--jwks", str(file), "--source"]
    with pytest.raises(CommandError, match="named by a slug"):
        call_command(*add, "the lake")
    told = StringIO()
    call_command(*add, "lake", stdout=told)
    assert "new source made: lake" in told.getvalue()
    again = StringIO()
    call_command(*add, "lake", stdout=again)
    assert "new source" not in again.getvalue()
    launch = ["smart_server", "add", "X", "--issuer", "https://lake.example/fhir", "--client-id", "t"]
    with pytest.raises(CommandError, match="named by a slug"):
        call_command(*launch, "--source", "the lake")
    with pytest.raises(CommandError, match="1 to 120 characters"):
        call_command(*launch[:2], " ", *launch[3:], "--source", "see")
    assert not Source.objects.filter(slug="see").exists()
    told = StringIO()
    call_command(*launch, "--source", "see", stdout=told)
    assert "new source made: see" in told.getvalue()
