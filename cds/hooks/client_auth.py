"""Which EHR is calling: the JWT it signed, by its registered keys (INTEROP 18-22).

Only ES384 and RS384; the issuer must be registered, the audience must be the very address that was called,
and a token is good for one call (`spending`). A process keeps what it read of a client for two seconds, and
reads it anew at once for a key it does not know, so that keys rotate without a restart; no address found in a
token is ever fetched. Clients: `manage.py hook_client add`.

HOOKS_OPEN serves calls without a token, from loopback to loopback only, for a demo; a warning says so.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson
from django.conf import settings
from django.http import HttpRequest
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from cds.audit import recording
from cds.errors import ClinicError, Invalid
from cds.hooks import spending
from cds.hooks.models import HookClient
from cds.patients import importing
from cds.patients.models import Source

logger = logging.getLogger(__name__)
ALGORITHMS = ["ES384", "RS384"]
KEY_TYPES = {"EC", "RSA"}
PRIVATE_PARTS = {"d", "p", "q", "dp", "dq", "qi", "k"}
SKEW_S = 60  # the official sandbox rounds `iat` up (INTEROP 19)
LONGEST_LIFE_S = 3600  # so that spent tokens need not be kept for ever; clients are told to use five minutes
OPEN_SOURCE = "hooks-open"
KEPT_S = 2.0  # how long a process believes what it read of a client


class Unauthorised(ClinicError):
    """No valid token (401). The message says which rule it broke; `issuer` is as claimed, unverified."""

    def __init__(self, message: str, *, issuer: str = "") -> None:
        super().__init__(message)
        self.issuer = issuer


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, in whose source its patients live. `client` is None in the open demo."""

    client: HookClient | None
    source: Source
    actor: recording.Actor


def verify(request: HttpRequest, *, now: datetime) -> Caller:
    """The caller of this request. Raises Unauthorised."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if not scheme and settings.HOOKS_OPEN and is_loopback(request.META.get("REMOTE_ADDR", "")):
        logger.warning("HOOKS_OPEN: a CDS Hooks call was served without client authentication")
        source = importing.get_source(OPEN_SOURCE, title="Open CDS Hooks demo", now=now)
        return Caller(None, source, recording.client(None, request))
    if scheme.lower() != "bearer" or not token:
        raise Unauthorised("a JWT bearer token is required on every call")
    client, claims = _read_token(token, audience=endpoint(request), now=now)
    try:
        spending.spend(client, claims, keep_until=spending.expires(claims, SKEW_S), now=now)
    except spending.SpentBefore as error:
        raise Unauthorised(str(error), issuer=client.issuer) from None
    return Caller(client, client.source, recording.client(client, request))


def endpoint(request: HttpRequest) -> str:
    """The exact address that was called, as the outside knows it: a token's `aud`."""
    return str(settings.PUBLIC_URL) + request.path


def is_loopback(address: str) -> bool:
    """Whether an address is this very machine."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def is_origin_allowed(origin: str) -> bool:
    """Whether a browser there may call: an active client's origin, or loopback in the open demo."""
    if settings.HOOKS_OPEN and urlsplit(origin).hostname in {"127.0.0.1", "localhost", "::1"}:
        return True
    lists = HookClient.objects.filter(is_active=True).values_list("origins", flat=True)
    return any(origin in origins for origins in lists)


def check_keys(jwks: Any) -> dict[str, Any]:
    """A key set that may be registered: public EC P-384 or RSA keys, each with a `kid`. Raises Invalid."""
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(keys, list) or not keys:
        raise Invalid('a key set is {"keys": [...]} with at least one key')
    for key in keys:
        if not isinstance(key, dict) or key.get("kty") not in KEY_TYPES or not key.get("kid"):
            raise Invalid("each key needs kty EC or RSA, and a kid")
        if PRIVATE_PARTS & key.keys():
            raise Invalid(f"key {key['kid']} holds private parts: register the public key set only")
    try:
        KeySet.import_key_set({"keys": keys})
    except (JoseError, ValueError, KeyError, TypeError) as error:
        raise Invalid(f"not a usable key set: {type(error).__name__}") from None
    return {"keys": keys}


def _read_token(token: str, *, audience: str, now: datetime) -> tuple[HookClient, dict[str, Any]]:
    try:
        claimed = jws.extract_compact(token.encode())
        header, unverified = claimed.headers(), _claims(claimed.payload)
    except (JoseError, ValueError, RecursionError):
        raise Unauthorised("the token is not a signed JWT") from None
    issuer = unverified.get("iss")
    issuer = issuer if isinstance(issuer, str) else ""
    if header.get("alg") not in ALGORITHMS:
        raise Unauthorised("alg must be ES384 or RS384", issuer=issuer)
    if header.get("typ") != "JWT":
        raise Unauthorised("typ must be JWT", issuer=issuer)
    known = _known(issuer, str(header.get("kid") or ""))
    if known is None:
        raise Unauthorised("iss is not a registered client", issuer=issuer)
    client, keys = known
    key = keys.get(str(header.get("kid") or ""))
    if key is None:
        raise Unauthorised("kid is not among the client's registered keys", issuer=issuer)
    try:
        verified = jwt.decode(token, key, algorithms=ALGORITHMS)
    except (JoseError, ValueError):
        raise Unauthorised("the signature does not verify", issuer=issuer) from None
    _check_claims(verified.claims, client, audience=audience, now=now)
    return client, verified.claims


_Known = tuple[HookClient, dict[str, KeySet]]
_kept: dict[str, tuple[float, _Known]] = {}


def forget() -> None:
    """Read every client anew from the next call on."""
    _kept.clear()


def _known(issuer: str, kid: str) -> _Known | None:
    """The active client of an issuer with its keys; read anew after KEPT_S, or for an unknown key."""
    clock = time.monotonic()
    held = _kept.get(issuer)
    if held is not None and clock < held[0] and kid in held[1][1]:
        return held[1]
    client = HookClient.objects.select_related("source").filter(issuer=issuer, is_active=True).first()
    if client is None:
        _kept.pop(issuer, None)
        return None
    same = held is not None and held[1][0].jwks == client.jwks
    keys = held[1][1] if held is not None and same else _import_keys(client)
    _kept[issuer] = (clock + KEPT_S, (client, keys))
    return client, keys


def _import_keys(client: HookClient) -> dict[str, KeySet]:
    found: dict[str, list[Any]] = {}
    for key in client.jwks.get("keys", []):
        found.setdefault(str(key.get("kid") or ""), []).append(key)
    found.pop("", None)
    return {kid: KeySet.import_key_set({"keys": keys}) for kid, keys in found.items()}


def _check_claims(claims: dict[str, Any], client: HookClient, *, audience: str, now: datetime) -> None:
    issuer, clock = client.issuer, now.timestamp()
    times = {name: claims.get(name) for name in ("exp", "iat")}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
            raise Unauthorised(f"{name} must be a number of seconds since 1970", issuer=issuer)
    if claims["exp"] + SKEW_S < clock:
        raise Unauthorised("the token has expired", issuer=issuer)
    if claims["exp"] - SKEW_S > clock + LONGEST_LIFE_S:
        raise Unauthorised(f"exp lies more than {LONGEST_LIFE_S} s ahead", issuer=issuer)
    if claims["iat"] - SKEW_S > clock:
        raise Unauthorised("iat lies in the future", issuer=issuer)
    named = claims.get("aud")
    if audience not in (named if isinstance(named, list) else [named]):
        raise Unauthorised(f"aud must be {audience}", issuer=issuer)
    if client.tenant and claims.get("tenant") != client.tenant:
        raise Unauthorised("tenant is not the registered one", issuer=issuer)
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= 200 or "\x00" in jti:
        raise Unauthorised("jti must be text of 1 to 200 characters", issuer=issuer)


def _claims(payload: bytes) -> dict[str, Any]:
    found = orjson.loads(payload)
    if not isinstance(found, dict):
        raise ValueError("claims are an object")
    return found
