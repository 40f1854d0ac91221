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
from cds.errors import Invalid, NotFound
from cds.hooks import client_auth
from cds.hooks.client_auth import check_keys
from cds.hooks.models import HookClient
from cds.patients.models import Source


@transaction.atomic
def register(
    name: str,
    *,
    issuer: str,
    jwks: Any,
    source: Source,
    origins: Sequence[str] = (),
    fhir_servers: Sequence[str] = (),
    tenant: str = "",
    by: recording.Actor,
    now: datetime,
) -> tuple[HookClient, bool]:
    """Let an EHR call, or replace what is registered for its issuer (so keys rotate). Raises Invalid.

    fhir_servers  base addresses from which we may complete a prefetch with the token of a call
    """
    if urlsplit(issuer).scheme not in {"https", "http"} or not urlsplit(issuer).hostname or len(issuer) > 300:
        raise Invalid("an issuer is a URL, exactly as its tokens say it")
    known = {
        "name": name,
        "jwks": check_keys(jwks),
        "origins": [_checked_origin(origin) for origin in origins],
        "fhir_servers": [_checked_server(server) for server in fhir_servers],
        "tenant": tenant,
        "source": source,
    }
    client, is_new = HookClient.objects.update_or_create(
        issuer=issuer,
        defaults={**known, "is_active": True},
        create_defaults={**known, "created_at": now},
    )
    client_auth.forget()
    _record("hook_client.register", client, by=by, now=now)
    return client, is_new


@transaction.atomic
def withdraw(issuer: str, *, by: recording.Actor, now: datetime) -> HookClient:
    """Refuse this EHR from now on; what it sent and was shown stays. Raises NotFound."""
    client = HookClient.objects.filter(issuer=issuer).first()
    if client is None:
        raise NotFound("no client with that issuer")
    client.is_active = False
    client.save(update_fields=["is_active"])
    client_auth.forget()
    _record("hook_client.withdraw", client, by=by, now=now)
    return client


def _checked_origin(origin: str) -> str:
    parts = urlsplit(origin)
    if (
        parts.scheme not in {"https", "http"}
        or not parts.hostname
        or f"{parts.scheme}://{parts.netloc}" != origin
    ):
        raise Invalid(f"an origin is scheme://host[:port] and nothing more, not {origin!r}")
    return origin


def _checked_server(server: str) -> str:
    """A FHIR server's base address: https, or plain http to this very machine outside production."""
    try:
        ehr.check_base_url(server)
    except ehr.Refused as error:
        raise Invalid(f"{error}: {server!r}") from None
    parts = urlsplit(server)
    if parts.query or parts.fragment or len(server) > 300:
        raise Invalid(f"a FHIR server is given by its base address alone, not {server!r}")
    if settings.PRODUCTION and parts.scheme != "https":
        raise Invalid("a FHIR server is called by https only")
    return server.rstrip("/")


def _record(action: str, client: HookClient, *, by: recording.Actor, now: datetime) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="HookClient",
        object_id=client.pk,
        now=now,
        issuer=client.issuer,
        keys=[str(key["kid"]) for key in client.jwks["keys"]],
        source=client.source.slug,
        fhir_servers=list(client.fhir_servers),
    )
