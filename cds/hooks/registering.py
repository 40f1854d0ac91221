"""Which EHRs may call: registered by an operator, never by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.db import transaction

from cds.audit import recording
from cds.errors import Invalid, NotFound
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
    tenant: str = "",
    by: recording.Actor,
    now: datetime,
) -> tuple[HookClient, bool]:
    """Let an EHR call, or replace what is registered for its issuer (so keys rotate). Raises Invalid."""
    if urlsplit(issuer).scheme not in {"https", "http"} or not urlsplit(issuer).hostname or len(issuer) > 300:
        raise Invalid("an issuer is a URL, exactly as its tokens say it")
    client, is_new = HookClient.objects.update_or_create(
        issuer=issuer,
        defaults={
            "name": name,
            "jwks": check_keys(jwks),
            "origins": [_checked_origin(origin) for origin in origins],
            "tenant": tenant,
            "source": source,
            "is_active": True,
        },
        create_defaults={
            "name": name,
            "jwks": check_keys(jwks),
            "origins": [_checked_origin(origin) for origin in origins],
            "tenant": tenant,
            "source": source,
            "created_at": now,
        },
    )
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
    )
