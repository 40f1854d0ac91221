"""What the screen of EHR clients shows. Who may: `cds.patients.access`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cds.errors import NotFound
from cds.hooks import registering
from cds.hooks.models import HookClient
from cds.patients import access


@dataclass(frozen=True, slots=True)
class KeyView:
    """A public key that calls may be signed with, and since when it has been here (None: not noted)."""

    kid: str
    algorithm: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class ClientView:
    """An EHR that may call, or might.

    shares  what to say where another EHR that calls has the same source; "" where none does
    """

    client: HookClient
    keys: tuple[KeyView, ...]
    shares: str = ""


def list_clients(viewer: access.Viewer) -> list[ClientView]:
    """Every EHR that was ever registered, those that may call first. Raises NotAllowed."""
    access.check_manage_clients(viewer)
    rows = HookClient.objects.select_related("source").order_by("-is_active", "name", "issuer")
    return [_view(client) for client in rows]


def get_client(viewer: access.Viewer, client_id: UUID) -> ClientView:
    """One of them. Raises NotAllowed, NotFound."""
    access.check_manage_clients(viewer)
    client = HookClient.objects.select_related("source").filter(pk=client_id).first()
    if client is None:
        raise NotFound("no such EHR client")
    return _view(client)


def _view(client: HookClient) -> ClientView:
    keys = tuple(_key(client, key) for key in client.jwks.get("keys", []))
    others = registering.beside(client.source, client.issuer) if client.is_active else []
    return ClientView(client, keys, registering.shared(client.source.slug, others))


def _key(client: HookClient, key: dict[str, str]) -> KeyView:
    since = client.keys_since.get(key["kid"])
    algorithm = "ES384" if key.get("kty") == "EC" else "RS384"
    return KeyView(key["kid"], algorithm, datetime.fromisoformat(since) if since else None)
