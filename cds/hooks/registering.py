"""Which EHRs may call: registered by an operator, never by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction

import ehr
from cds.audit import recording
from cds.errors import Invalid, NotFound, Unavailable
from cds.hooks import client_auth, key_sets
from cds.hooks.models import HookClient
from cds.patients import importing
from cds.patients.models import Source


def register(
    name: str,
    *,
    issuer: str,
    source: Source | str,
    jwks: Any = None,
    jwks_url: str = "",
    origins: Sequence[str] = (),
    fhir_servers: Sequence[str] = (),
    tenant: str = "",
    by: recording.Actor,
    now: datetime,
) -> tuple[HookClient, bool]:
    """Let an EHR call, or replace what is registered for its issuer and tenant (so keys rotate).

    source          its patients belong to it: a slug is made a source where there is none yet, once all else
                    has been found right. Tenants of one issuer need sources of their own
    jwks, jwks_url  its public keys, or the address they are read from: one of the two. An address that is not
                    registered yet for this client is read at once, before anything is kept
    fhir_servers    base addresses from which we may complete a prefetch with the token of a call
    returns         the client, and whether it is new
    raises          Invalid
    """
    known: dict[str, Any] = {
        "name": check_name(name),
        "origins": [check_origin(origin) for origin in origins],
        "fhir_servers": [check_server(server) for server in fhir_servers],
    }
    if isinstance(source, str):
        importing.check_slug(source)
    held = HookClient.objects.filter(issuer=check_issuer(issuer), tenant=check_tenant(tenant)).first()
    _check_beside_others(issuer, tenant, held)
    known |= _keys(held, jwks, jwks_url, now)
    with transaction.atomic():
        known["source"] = importing.get_source(source, now=now) if isinstance(source, str) else source
        _check_own_source(issuer, tenant, known["source"])
        client, is_new = HookClient.objects.update_or_create(
            issuer=issuer,
            tenant=tenant,
            defaults={**known, "is_active": True},
            create_defaults={**known, "created_at": now},
        )
        _record("hook_client.register", client, by=by, now=now)
    client_auth.forget()
    return client, is_new


def _check_beside_others(issuer: str, tenant: str, held: HookClient | None) -> None:
    """Without a tenant, a new client of an issuer that has tenants would speak for none of them."""
    others = HookClient.objects.filter(issuer=issuer, is_active=True).exclude(tenant="")
    tenants = sorted(others.values_list("tenant", flat=True))
    if held is None and not tenant and tenants:
        raise Invalid(
            f"this issuer is registered by tenant ({', '.join(tenants)}): say which one this is, to replace "
            "its keys too"
        )


def _check_own_source(issuer: str, tenant: str, source: Source) -> None:
    """Two tenants may give two patients the same id: in one source they would be one patient."""
    others = HookClient.objects.filter(issuer=issuer, source=source, is_active=True).exclude(tenant=tenant)
    if others.exists():
        raise Invalid(
            f"the source {source.slug} belongs to another tenant of this issuer, whose patients may have the "
            "same ids: name a source of its own"
        )


@transaction.atomic
def withdraw(issuer: str, *, tenant: str | None = None, by: recording.Actor, now: datetime) -> HookClient:
    """Refuse this EHR from now on; what it sent and was shown stays. Raises NotFound, Invalid."""
    client = get_client(issuer, tenant)
    client.is_active = False
    client.save(update_fields=["is_active"])
    client_auth.forget()
    _record("hook_client.withdraw", client, by=by, now=now)
    return client


def read_keys(issuer: str, *, tenant: str | None = None, by: recording.Actor, now: datetime) -> HookClient:
    """Read a client's key set anew now, whenever it was read last.

    raises  NotFound; Invalid for one whose keys were pasted; Unavailable when they cannot be read, with why
    """
    client = get_client(issuer, tenant)
    if not client.jwks_url:
        raise Invalid("the keys of this client were pasted: register a JWKS URL, or paste the new set")
    HookClient.objects.filter(pk=client.pk).update(keys_tried_at=now, keys_problem="")
    done = key_sets.read_anew(client, now=now, by=by)
    client_auth.forget()
    client.refresh_from_db()
    if done is not key_sets.Reading.DONE:
        raise Unavailable(f"{client.keys_problem}; the keys read before stay in use for now")
    return client


def get_client(issuer: str, tenant: str | None = None) -> HookClient:
    """The client of an issuer, withdrawn ones too; of several, that of `tenant`. Raises NotFound, Invalid."""
    rows = HookClient.objects.select_related("source").filter(issuer=issuer)
    found = list(rows if tenant is None else rows.filter(tenant=tenant))
    if not found:
        raise NotFound(
            "no client with that issuer and tenant: `manage.py hook_client list` shows those there are"
        )
    if len(found) > 1:
        tenants = ", ".join(repr(client.tenant) for client in found)
        raise Invalid(f"that issuer speaks for several tenants ({tenants}): say which with --tenant")
    return found[0]


def beside(source: Source | str, issuer: str) -> list[str]:
    """Other issuers that call with patients of that source, by name and issuer.

    Patient 1 of one of them is patient 1 of the other here: right for one hospital with two issuers, and a
    danger for two hospitals. (Tenants of one issuer are refused: `_check_own_source`.)
    """
    slug = source if isinstance(source, str) else source.slug
    others = HookClient.objects.filter(source__slug=slug, is_active=True).exclude(issuer=issuer)
    return [f"{one.name} ({one.issuer})" for one in others.order_by("name", "issuer")]


def shared(source: str, others: Sequence[str]) -> str:
    """What to say of a source that EHRs share; "" where none does."""
    if not others:
        return ""
    return (
        f"the source {source} is also that of {', '.join(others)}: patient 1 of one is patient 1 of the "
        "other here. Right for one hospital with two addresses; two hospitals need a source each"
    )


def check_name(name: str) -> str:
    """What people call it. Raises Invalid."""
    if not name.strip() or len(name) > 120:
        raise Invalid("a name has 1 to 120 characters")
    return name.strip()


def check_issuer(issuer: str) -> str:
    """`iss` of its tokens. Raises Invalid."""
    try:
        parts = urlsplit(issuer)
        is_url = parts.scheme in {"https", "http"} and bool(parts.hostname)
    except ValueError:
        is_url = False
    if not is_url or len(issuer) > 300 or not issuer.isprintable() or " " in issuer:
        raise Invalid("an issuer is a URL, exactly as its tokens say it")
    return issuer


def check_tenant(tenant: str) -> str:
    """`tenant` of its tokens; "" for none. Raises Invalid."""
    if len(tenant) > 120 or not tenant.isprintable():
        raise Invalid("a tenant is text of at most 120 characters, exactly as its tokens say it")
    return tenant


def check_origin(origin: str) -> str:
    """A web origin. Raises Invalid."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        parts = urlsplit("")
    if (
        parts.scheme not in {"https", "http"}
        or not parts.hostname
        or f"{parts.scheme}://{parts.netloc}" != origin
    ):
        raise Invalid(f"an origin is scheme://host[:port] and nothing more, not {origin!r}")
    return origin


def check_server(server: str) -> str:
    """A FHIR server's base address: https, or plain http to this very machine outside production."""
    try:
        ehr.check_base_url(server)
    except ehr.Refused as error:
        raise Invalid(f"{error}: {server!r}") from None
    parts = urlsplit(server)
    if parts.query or parts.fragment or len(server) > 300 or not server.isprintable() or " " in server:
        raise Invalid(f"a FHIR server is given by its base address alone, not {server!r}")
    if settings.PRODUCTION and parts.scheme != "https":
        raise Invalid("a FHIR server is called by https only")
    return server.rstrip("/")


def _keys(held: HookClient | None, jwks: Any, jwks_url: str, now: datetime) -> dict[str, Any]:
    """The columns about keys. Of an address that is registered already, the keys read last stay."""
    if (jwks is None) == (not jwks_url):
        raise Invalid("give either the public key set or its JWKS URL: one of the two")
    if jwks_url and held is not None and held.jwks_url == jwks_url:
        return {}
    found = key_sets.check_keys(jwks) if not jwks_url else key_sets.read(key_sets.check_url(jwks_url))
    return {
        "jwks": found,
        "jwks_url": jwks_url,
        "keys_since": key_sets.since(found, held, now),
        "keys_read_at": now if jwks_url else None,
        "keys_tried_at": now if jwks_url else None,
        "keys_problem": "",
    }


def _record(action: str, client: HookClient, *, by: recording.Actor, now: datetime) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="HookClient",
        object_id=client.pk,
        now=now,
        issuer=client.issuer,
        keys=[str(key["kid"]) for key in client.jwks["keys"]],
        jwks_url=client.jwks_url,
        origins=list(client.origins),
        tenant=client.tenant,
        source=client.source.slug,
        fhir_servers=list(client.fhir_servers),
    )
