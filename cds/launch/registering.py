"""Which EHRs may launch us, and whom of theirs we know: registered by an operator, never by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import DatabaseError, InterfaceError, transaction

import ehr
from cds.audit import recording
from cds.errors import Invalid, NotFound
from cds.hooks import registering as clients
from cds.launch import ending
from cds.launch.models import SmartIdentity, SmartServer
from cds.patients import importing
from cds.patients.models import Source

EMBEDDERS, EMBEDDERS_S = "smart-embedders", 5
_known_embedders: list[str] = []  # as they were when the database last answered


@transaction.atomic
def register(
    name: str,
    *,
    issuer: str,
    client_id: str,
    source: Source | str,
    is_confidential: bool = False,
    has_own_redirect: bool = False,
    origins: Sequence[str] = (),
    embedders: Sequence[str] = (),
    by: recording.Actor,
    now: datetime,
) -> tuple[SmartServer, bool]:
    """Answer an EHR's launches, or replace what is registered for its issuer.

    source     its patients belong to it: a slug is made a source where there is none yet
    has_own_redirect  its sign-in leads back to an address of its own (`SmartServer.redirect_path`)
    origins    further origins of its sign-in endpoints, such as https://login.hospital.example
    embedders  web origins that may show the panel in a frame
    returns    the server, and whether it is new
    raises     Invalid
    """
    known = {
        "name": clients.check_name(name),
        "client_id": check_client_id(client_id),
        "is_confidential": is_confidential,
        "has_own_redirect": has_own_redirect,
        "origins": [check_origin(origin) for origin in origins],
        "embedders": [check_embedder(origin) for origin in embedders],
        "is_active": True,
    }
    issuer = check_issuer(issuer)
    known["ends_in_slash"] = issuer.endswith("/")
    if isinstance(source, str):
        source = importing.get_source(importing.check_slug(source), now=now)
    known["source"] = source
    server, is_new = SmartServer.objects.update_or_create(
        issuer=issuer.removesuffix("/"), defaults=known, create_defaults={**known, "created_at": now}
    )
    _record("smart_server.register", server, by=by, now=now)
    return server, is_new


@transaction.atomic
def withdraw(issuer: str, *, by: recording.Actor, now: datetime) -> SmartServer:
    """Answer an EHR's launches no more, and end the sessions that it launched. Raises NotFound."""
    server = get_server(issuer)
    server.is_active = False
    server.save(update_fields=["is_active"])
    _record("smart_server.withdraw", server, by=by, now=now, sessions=ending.end_launched_by(server))
    return server


@transaction.atomic
def link(
    server: SmartServer, fhir_user: str, user: User, *, by: recording.Actor, now: datetime
) -> SmartIdentity:
    """Say that a person of the EHR is this local account, with its roles and units. Raises Invalid."""
    try:
        kind, identity = ehr.fhir_user_of(fhir_user, server.issuer)
    except ehr.EhrError:
        raise Invalid("a person of an EHR is named [Type]/[id], such as Practitioner/123") from None
    found, _ = SmartIdentity.objects.update_or_create(
        server=server,
        fhir_user=f"{kind}/{identity}",
        defaults={"user": user},
        create_defaults={"user": user, "first_at": now},
    )
    _record("smart_server.link", server, by=by, now=now, user=user.pk)
    return found


def list_people(server: SmartServer) -> list[SmartIdentity]:
    """The people of an EHR who have come, or were linked, with their accounts."""
    return list(server.identities.select_related("user").order_by("fhir_user"))


def get_server(issuer: str) -> SmartServer:
    """The registered EHR of that issuer; NotFound."""
    found = SmartServer.objects.select_related("source").filter(issuer=issuer.rstrip("/")).first()
    if found is None:
        raise NotFound("no such EHR is registered: `manage.py smart_server list` shows those that are")
    return found


def list_servers() -> list[SmartServer]:
    """Every EHR that may launch us, by name."""
    return list(SmartServer.objects.select_related("source").filter(is_active=True).order_by("name"))


def beside(source: Source | str, issuer: str) -> list[str]:
    """Other EHRs that launch us with patients of that source, by name and address.

    Patient 1 of one of them is patient 1 of the other here: right for one hospital with two addresses, and a
    danger for two.
    """
    slug = source if isinstance(source, str) else source.slug
    others = SmartServer.objects.filter(source__slug=slug, is_active=True)
    others = others.exclude(issuer=issuer.removesuffix("/")).order_by("name", "issuer")
    return [f"{one.name} ({one.address})" for one in others]


def mixable(server: SmartServer) -> str:
    """What to say of an EHR whose codes another registered one could come by; "" where none could.

    One that is hostile may lead a launch of its own on to this one's sign-in, and have us hand it this one's
    code (mix-up, RFC 9700, 4.4): of no use without our key, and no code comes to an address of another's.
    """
    others = SmartServer.objects.filter(is_active=True).exclude(pk=server.pk)
    if server.is_confidential or server.has_own_redirect or not server.is_active or not others.exists():
        return ""
    return (
        "another registered EHR could come by its sign-in codes (mix-up, RFC 9700), for we are a public "
        "client and both lead back to one address: give it a redirect URI of its own, or sign in with our "
        "key. One that names itself when it leads back (iss, RFC 9207) is safe already"
    )


def list_embedders(*, ask: bool = True) -> list[str]:
    """Web origins that may show us in a frame; read anew every few seconds.

    Without `ask`, and while the database is away: those it last told this process.
    """
    global _known_embedders
    held: list[str] | None = cache.get(EMBEDDERS)
    if held is None and not ask:
        return _known_embedders
    if held is None:
        try:
            lists = list(SmartServer.objects.filter(is_active=True).values_list("embedders", flat=True))
            held = _known_embedders = sorted({origin for origins in lists for origin in origins})
        except (DatabaseError, InterfaceError):
            held = _known_embedders
        cache.set(EMBEDDERS, held, EMBEDDERS_S)
    return held


def check_issuer(issuer: str) -> str:
    """The EHR's FHIR base address, to the letter. Raises Invalid."""
    try:
        ehr.check_base_url(issuer)
    except ehr.EhrError as error:
        raise Invalid(
            f"{error}: the issuer is the EHR's FHIR base address, as its launches name it"
        ) from error
    if len(issuer) > 300 or not issuer.isprintable() or " " in issuer:
        raise Invalid("an issuer is a URL of at most 300 characters")
    if issuer.endswith("//"):
        raise Invalid("an issuer ends in one slash or none, as the EHR's launches name it")
    return issuer


def check_client_id(client_id: str) -> str:
    """What the EHR calls us. Raises Invalid."""
    if not client_id.strip() or len(client_id) > 200:
        raise Invalid("a client id is what the EHR calls us, at most 200 characters")
    return client_id.strip()


def check_origin(said: str) -> str:
    """Another origin of its sign-in, the port filled in. Raises Invalid."""
    try:
        scheme, host, port = ehr.check_base_url(said)
    except ehr.EhrError as error:
        raise Invalid(f"{error}: an origin of the sign-in is https://host or https://host:port") from error
    if urlsplit(said).path.strip("/"):
        raise Invalid(f"an origin is scheme, host and port only: {scheme}://{host}")
    return f"{scheme}://{host}:{port}"


def check_embedder(said: str) -> str:
    """A web origin that may show us in a frame. Raises Invalid."""
    try:
        parts = urlsplit(said)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or "*" in said:
        raise Invalid(f"{said[:100]!r} is not a web origin: give scheme://host or scheme://host:port")
    if ";" in said or "," in said or " " in said:
        raise Invalid("a web origin holds no spaces, commas or semicolons")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _record(action: str, server: SmartServer, *, by: recording.Actor, now: datetime, **detail: Any) -> None:
    cache.delete(EMBEDDERS)
    recording.record(
        by=by,
        action=action,
        object_type="SmartServer",
        object_id=server.pk,
        now=now,
        issuer=server.issuer,
        **detail,
    )
