"""The hospital's own accounts: sign-in by OpenID Connect beside the accounts of this site.

The provider says who somebody is (issuer and subject) and which groups they belong to; OIDC_ROLES says which
of those groups are which role here. Nobody without such a group gets an account; an account that loses its
last one loses its roles here and is refused. Roles (and, with OIDC_UNIT_CLAIM, units) follow the provider at
each sign-in. An account is found by issuer and subject alone: never by name or e-mail, so no local account is
ever taken over.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from threading import BoundedSemaphore
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db import IntegrityError, transaction

import ehr
from cds import signing
from cds.audit import recording
from cds.errors import NotAllowed, Unavailable
from cds.launch import discovering
from cds.launch.discovering import cached
from cds.launch.launching import CLOSED, NotThisLaunch
from cds.launch.models import HospitalIdentity
from cds.patients import access

CALLBACK = "/login/hospital/callback"
_exchanges = BoundedSemaphore(discovering.MOST_AT_ONCE)
FRESH_S = 300  # for what needs somebody to show again who they are


@dataclass(frozen=True, slots=True)
class Arrived:
    """Somebody has come. `id_token` is kept in the session to sign out there.

    auth_time  when they showed who they are (auth_time, seconds since 1970); 0 when the provider does not say
    """

    user: User
    id_token: str
    is_new: bool
    auth_time: float


def is_offered() -> bool:
    """Whether this site has a provider."""
    return bool(settings.OIDC_ISSUER)


def begin(*, again: bool = False) -> tuple[str, ehr.Pending]:
    """Where to send the browser, and what its session must remember. Raises NotThisLaunch, Unavailable.

    again  the person has to show once more who they are
    """
    app = _app()
    try:
        return app.begin(_configuration(app), scope=settings.OIDC_SCOPES, again=again)
    except ehr.EhrError as error:
        raise Unavailable(f"the hospital's sign-in could not be found: {error}") from error


def complete(
    code: str,
    pending: ehr.Pending,
    *,
    answered_by: str = "",
    again: bool = False,
    address: recording.Actor,
    now: datetime,
) -> Arrived:
    """The browser is back with a code.

    answered_by  the `iss` that came with it, "" for none
    again    as asked for at `begin`: what the provider says must be of the last FRESH_S
    address  who it comes from, for the audit trail
    raises   NotThisLaunch (what the provider says does not verify), NotAllowed (no role here), Unavailable
    """
    app = _app()
    try:
        configuration = _configuration(app)
        with discovering.room(_exchanges):
            came = app.complete(
                configuration,
                code,
                pending,
                answered_by=answered_by,
                keys=lambda fresh: cached(
                    settings.OIDC_ISSUER, "provider-keys", lambda: app.read_keys(configuration), fresh=fresh
                ),
            )
    except ehr.Permanent as error:
        raise NotThisLaunch(f"the hospital's sign-in was not accepted: {error}") from error
    except discovering.NoRoom as error:
        raise Unavailable(
            "many are signing in with their hospital account just now, and its provider answers slowly: try "
            "again in a while"
        ) from error
    except ehr.EhrError as error:
        raise Unavailable(f"the hospital's sign-in could not be completed: {error}") from error
    auth_time = _auth_time(came.claims)
    if again and time.time() - auth_time > FRESH_S:
        raise NotThisLaunch(
            "the provider did not ask you again who you are, or does not say so (auth_time): sign out there, "
            "then try again"
        )
    try:
        user, is_new = _person(configuration.issuer, came, address=address, now=now)
    except IntegrityError:  # they came twice at once: the other made the account
        user, is_new = _person(configuration.issuer, came, address=address, now=now)
    return Arrived(user, came.id_token, is_new, auth_time)


def sign_out_url(id_token: str) -> str:
    """Where the browser ends its session at the provider, to come back to our sign-in page; "": nowhere."""
    app = _app()
    try:
        return app.sign_out(
            _configuration(app), id_token=id_token, back=settings.PUBLIC_URL + settings.LOGIN_URL
        )
    except ehr.EhrError:
        return ""  # here the session has ended all the same


def roles_in(claims: Mapping[str, Any]) -> frozenset[access.Role]:
    """The roles here that the claims give, by OIDC_ROLES."""
    named = set(values_of(claims, settings.OIDC_ROLE_CLAIM))
    return frozenset(access.Role(role) for group, role in settings.OIDC_ROLES if group in named)


def values_of(claims: Mapping[str, Any], path: str) -> list[str]:
    """The texts at a claim: `groups`, `realm_access.roles`, or a name that holds dots itself."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, str) and one.isprintable()]


def _person(issuer: str, came: ehr.SignedIn, *, address: recording.Actor, now: datetime) -> tuple[User, bool]:
    """The account of whoever came, with the roles they have now; made on first sight, where they have any."""
    roles = roles_in(came.claims)
    with transaction.atomic():
        known = (
            HospitalIdentity.objects.select_related("user")
            .filter(issuer=issuer, subject=came.subject)
            .first()
        )
        user = known.user if known is not None else None
        if user is None and roles:
            user = _new_account(issuer, came, now=now)
        if user is not None and user.is_active:
            _follow(user, roles, came.claims, address=address, now=now)
    if user is not None and not user.is_active:
        raise NotAllowed(CLOSED)
    if user is None or not roles:
        raise NotAllowed(
            "your hospital account belongs to none of the groups that may use this site: ask the people who "
            "run it to add you"
        )
    return user, known is None


def _new_account(issuer: str, came: ehr.SignedIn, *, now: datetime) -> User:
    """A fresh account that no password opens; never one that is there already."""
    digest = hashlib.sha256(f"{issuer} {came.subject}".encode()).hexdigest()[:24]
    user = User.objects.create_user(f"hospital-{digest}")  # without a password none is usable
    HospitalIdentity.objects.create(issuer=issuer, subject=came.subject, user=user, first_at=now)
    return user


def _follow(
    user: User,
    roles: Collection[access.Role],
    claims: Mapping[str, Any],
    *,
    address: recording.Actor,
    now: datetime,
) -> None:
    """Name, roles and units as the provider says; a change of rights is audited."""
    held = access.roles_of(user)
    name = ehr.name_in(claims)
    if name and user.first_name != name:
        user.first_name = name
        user.save(update_fields=["first_name"])
    for role in set(roles) - held:
        access.give_role(user, role)
    user.groups.remove(*Group.objects.filter(name__in=[role.value for role in held - set(roles)]))
    changed: dict[str, Any] = {"roles": sorted(role.value for role in roles)} if set(roles) != held else {}
    if settings.OIDC_UNIT_CLAIM:
        units = access.set_units(user, values_of(claims, settings.OIDC_UNIT_CLAIM))
        changed |= {"units": units} if units is not None else {}
    if changed:
        recording.record(
            by=recording.Actor(f"user:{user.pk}", address=address.address),
            action="account.follow",
            object_type="User",
            object_id=user.pk,
            now=now,
            **changed,
        )


def _auth_time(claims: Mapping[str, Any]) -> float:
    said = claims.get("auth_time")
    is_time = isinstance(said, int | float) and not isinstance(said, bool)
    return min(float(said), time.time()) if is_time and said is not None else 0.0


def _configuration(app: ehr.RelyingParty) -> ehr.ProviderConfiguration:
    return cached(settings.OIDC_ISSUER, "provider", app.discover)


def _app() -> ehr.RelyingParty:
    if not is_offered():
        raise NotThisLaunch("this site has no sign-in of a hospital: use an account of this site")
    key = signing.signing_key() if settings.OIDC_CLIENT_AUTH == "private_key" else None
    if settings.OIDC_CLIENT_AUTH == "private_key" and key is None:
        raise Unavailable(
            "there is no key to sign in with: run `manage.py fhir_key add`, and register its key set"
        )
    try:
        return ehr.RelyingParty(
            settings.OIDC_ISSUER,
            settings.OIDC_CLIENT_ID,
            redirect_uri=settings.PUBLIC_URL + CALLBACK,
            key=key,
            secret=settings.OIDC_CLIENT_SECRET if settings.OIDC_CLIENT_AUTH == "secret" else "",
            origins=settings.OIDC_ORIGINS,
            algorithms=settings.OIDC_ALGORITHMS,
        )
    except ehr.EhrError as error:
        raise Unavailable(f"the hospital's sign-in cannot be used: {error}") from error
