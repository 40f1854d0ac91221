"""What the screen of SMART servers shows. Who may: `cds.patients.access`."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db.models import Count, QuerySet

from cds.errors import NotFound
from cds.hooks import registering as clients
from cds.launch import registering
from cds.launch.models import SmartServer
from cds.patients import access


@dataclass(frozen=True, slots=True)
class ServerView:
    """An EHR that may launch us, or might; `people` of it have come.

    shares   what to say where another EHR that launches us has the same source; "" where none does
    mixable  what to say where another could come by its codes; "" where none could
    """

    server: SmartServer
    people: int
    shares: str = ""
    mixable: str = ""


def list_servers(viewer: access.Viewer) -> list[ServerView]:
    """Every EHR that was ever registered, those that may launch us first. Raises NotAllowed."""
    access.check_manage_clients(viewer)
    return [_view(server) for server in _counted().order_by("-is_active", "name", "issuer")]


def get_server(viewer: access.Viewer, server_id: UUID) -> ServerView:
    """One of them. Raises NotAllowed, NotFound."""
    access.check_manage_clients(viewer)
    server = _counted().filter(pk=server_id).first()
    if server is None:
        raise NotFound("no such SMART server")
    return _view(server)


def _counted() -> QuerySet[SmartServer]:
    return SmartServer.objects.select_related("source").annotate(people=Count("identities"))


def _view(server: SmartServer) -> ServerView:
    people: int = server.people  # type: ignore[attr-defined]
    others = registering.beside(server.source, server.issuer) if server.is_active else []
    shares = clients.shared(server.source.slug, others)
    return ServerView(server, people, shares, registering.mixable(server))
