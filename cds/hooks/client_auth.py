"""Which EHR is calling: the JWT it signed, by its registered keys (INTEROP 18-22).

Only ES384 and RS384; the issuer must be registered, the audience must be the very address that was called,
and a token is good for one call (`spending`). A process keeps what it read of a client for two seconds, and
reads it anew at once for a key it does not know, so that keys rotate without a restart. Keys are pasted, or
read from the client's registered JWKS URL (`key_sets`); no address found in a token is ever fetched.
Clients: `manage.py hook_client add`, or the screen /ehrs.

HOOKS_OPEN serves calls without a token, from loopback to loopback only, for a demo; a warning says so. A
token of an issuer that nobody registered is then passed over, as the official CDS Hooks sandbox sends one
with every call (ES256, which is refused elsewhere): it is not verified and grants nothing. Tokens of
registered issuers are verified there as anywhere.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Any

import orjson
from django.conf import settings
from django.http import HttpRequest
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from cds.audit import recording
from cds.errors import ClinicError, Unavailable
from cds.hooks import budget, key_sets, signatures, spending
from cds.hooks.budget import Budget
from cds.hooks.models import HookClient
from cds.hooks.spending import SKEW_S
from cds.patients import importing
from cds.patients.models import Source

logger = logging.getLogger(__name__)
MOST_BYTES = 8192
LONGEST_LIFE_S = 3600  # so that spent tokens need not be kept for ever; clients are told to use five minutes
OPEN_SOURCE = "hooks-open"


class Unauthorised(ClinicError):
    """No valid token (401). The message says which rule it broke; `issuer` is as claimed, unverified.

    client  who signed it, where that is known: the token was right, and came a second time
    """

    def __init__(self, message: str, *, issuer: str = "", client: HookClient | None = None) -> None:
        super().__init__(message)
        self.issuer, self.client = issuer, client


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, in whose source its patients live. `client` is None in the open demo."""

    client: HookClient | None
    source: Source
    actor: recording.Actor


def _is_from_this_machine(request: HttpRequest) -> bool:
    """Whether it comes over loopback, and not from elsewhere by way of a proxy that stands here."""
    return is_loopback(request.META.get("REMOTE_ADDR", "")) and "HTTP_X_FORWARDED_FOR" not in request.META


def verify(request: HttpRequest, *, now: datetime) -> Caller:
    """The caller of this request. Raises Unauthorised."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer" and bool(token)
    is_open = settings.HOOKS_OPEN and _is_from_this_machine(request)
    if is_open and (not scheme or (is_bearer and _is_of_nobody(token))):
        logger.warning("HOOKS_OPEN: a CDS Hooks call was served without client authentication")
        source = importing.get_source(OPEN_SOURCE, title="Open CDS Hooks demo", now=now)
        return Caller(None, source, recording.client(None, request))
    if not is_bearer:
        raise Unauthorised("a JWT bearer token is required on every call")
    known_at = time.monotonic()
    client, claims = _read_token(token, audience=endpoint(request), time_left=budget.of(request), now=now)
    try:
        keep_until = spending.expires(claims)
        spending.spend(client, claims, keep_until=keep_until, now=now, known_at=known_at)
    except spending.SpentBefore as error:
        raise Unauthorised(str(error), issuer=client.issuer, client=client) from None
    _note_call(client, now)
    return Caller(client, client.source, recording.client(client, request))


def _note_call(client: HookClient, now: datetime) -> None:
    """When a client called last, to the minute: each process writes it once a minute at most."""
    if client.last_call_at is None or now - client.last_call_at > timedelta(minutes=1):
        client.last_call_at = now
        HookClient.objects.filter(pk=client.pk).update(last_call_at=now)


def endpoint(request: HttpRequest) -> str:
    """The exact address that was called, as the outside knows it: a token's `aud`."""
    return str(settings.PUBLIC_URL) + request.path


def is_loopback(address: str) -> bool:
    """Whether an address is this very machine."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _is_of_nobody(token: str) -> bool:
    """Whether a token claims an issuer that was never registered here. Raises Unauthorised: it is no JWT."""
    issuer = _parse(token)[3]
    return not HookClient.objects.filter(issuer=issuer).exists()


def _parse(token: str) -> tuple[jws.CompactSignature, dict[str, Any], dict[str, Any], str]:
    """A token taken apart, nothing of it verified: signature, header, claims, issuer ("" for none)."""
    if len(token) > MOST_BYTES:
        raise Unauthorised(f"a token has at most {MOST_BYTES} characters")
    try:
        claimed = jws.extract_compact(token.encode())
        header, claims = _object(claimed.headers()), _object(orjson.loads(claimed.payload or b""))
    except (JoseError, ValueError, TypeError, RecursionError):
        raise Unauthorised("the token is not a signed JWT") from None
    issuer = claims.get("iss")
    return claimed, header, claims, issuer if isinstance(issuer, str) and "\x00" not in issuer else ""


def _read_token(
    token: str, *, audience: str, time_left: Budget, now: datetime
) -> tuple[HookClient, dict[str, Any]]:
    claimed, header, claims, issuer = _parse(token)
    _check_header(header, issuer)
    kid = header["kid"]
    known = _known(issuer, _tenant_of(claims, issuer), kid)
    client = known[0]
    if "jku" in header and not (client.jwks_url and header["jku"] == client.jwks_url):
        why = "" if client.jwks_url else ", for the keys of this client were pasted"
        raise Unauthorised(f"jku is not the registered JWKS URL{why}: leave it out", issuer=issuer)
    key = known[1].get(kid) if not client.jwks_url else _key_by_url(known, kid, time_left=time_left, now=now)
    if key is None:
        raise Unauthorised(
            "kid is not among the client's registered keys: sign with one of them, or register the new key",
            issuer=issuer,
        )
    try:
        is_signed = signatures.is_signed(claimed, key)
    except (JoseError, ValueError) as error:
        raise Unauthorised(
            f"the token's header does not fit the registered key of that kid ({type(error).__name__})",
            issuer=issuer,
        ) from None
    if not is_signed:
        raise Unauthorised(
            "the signature does not verify with the registered key of that kid: register the key that signs",
            issuer=issuer,
        )
    _check_claims(claims, client, audience=audience, now=now)
    return client, claims


def _check_header(header: dict[str, Any], issuer: str) -> None:
    """INTEROP 19 and 20. Keys and addresses in it (jwk, x5c, x5u, jku) are never used."""
    if header.get("alg") not in signatures.ALGORITHMS:
        raise Unauthorised("alg must be ES384 or RS384: sign with a key of P-384, or RSA", issuer=issuer)
    if header.get("typ") != "JWT":
        raise Unauthorised("typ must be JWT", issuer=issuer)
    if "crit" in header or "b64" in header:
        raise Unauthorised("no critical header is understood here: leave out crit and b64", issuer=issuer)
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise Unauthorised("kid must name one of the client's registered keys", issuer=issuer)


def _tenant_of(claims: dict[str, Any], issuer: str) -> str:
    """The tenant a token speaks for; "" for none."""
    tenant = claims.get("tenant")
    if tenant is not None and not isinstance(tenant, str):
        raise Unauthorised("tenant is not text: send it exactly as registered", issuer=issuer)
    return tenant or ""


def _key_by_url(known: _Known, kid: str, *, time_left: Budget, now: datetime) -> KeySet | None:
    """The key of a client whose set is kept at an address; the set is read anew where that is due.

    raises  Unauthorised when there is none, with what to change; Unavailable while the set is being read
    """
    client, keys = known
    if kid in keys and not key_sets.is_old(client, now, key_sets.BELIEVED_S):
        if key_sets.is_old(client, now, key_sets.FRESH_S):
            key_sets.ask(client, now=now)  # goes on beside this call
        return keys[kid]
    state = key_sets.ask(client, now=now, wait_s=min(key_sets.WAIT_S, time_left.left() / 2))
    if state is key_sets.Reading.DONE:
        forget()
        key = _known(client.issuer, client.tenant, kid)[1].get(kid)
        if key is not None:
            return key
    raise _unknown(state, client, is_known=kid in keys)


def _unknown(state: key_sets.Reading, client: HookClient, *, is_known: bool) -> ClinicError:
    """Why there is no key to verify with, and what to do about it."""
    what = (
        f"the client's key set was read last more than {key_sets.BELIEVED_S // 3600} h ago"
        if is_known
        else "kid is not in the client's key set"
    )
    match state:
        case key_sets.Reading.UNDER_WAY:
            return Unavailable(f"{what}, which is being read anew: try again")
        case key_sets.Reading.FAILED:
            held = HookClient.objects.filter(pk=client.pk).values_list("keys_problem", flat=True).first()
            why = (
                f"{what}, and its JWKS URL does not answer as it should ({held}): mend that, or register keys"
            )
        case key_sets.Reading.DONE:
            why = f"{what}, which was just read anew: publish the key at the registered JWKS URL"
        case _:
            why = (
                f"{what}, which is read anew every {key_sets.REFETCH_S} s at most: publish a new key at "
                "least that long before signing with it"
            )
    return Unauthorised(why, issuer=client.issuer)


_Known = tuple[HookClient, dict[str, KeySet]]
_Tenants = dict[str, _Known]
_kept: dict[str, tuple[float, _Tenants]] = {}


def forget() -> None:
    """Read every client anew from the next call on."""
    _kept.clear()


def _known(issuer: str, tenant: str, kid: str) -> _Known:
    """The active client of an issuer and tenant with its keys; read anew after KEPT_S, or for an unknown key.

    raises  Unauthorised
    """
    clock = time.monotonic()
    until, tenants = _kept.get(issuer, (0.0, {}))
    if clock < until:
        found = _of_tenant(tenants, tenant)
        if found is not None and kid in found[1]:
            return found
    rows = HookClient.objects.select_related("source").filter(issuer=issuer)
    tenants = {one.tenant: (one, _keys_of(one, tenants.get(one.tenant))) for one in rows}
    if not any(one.is_active for one, _ in tenants.values()):
        _kept.pop(issuer, None)
        raise Unauthorised("iss is not a registered client: it must be exactly as registered", issuer=issuer)
    _kept[issuer] = (clock + spending.KEPT_S, tenants)
    found = _of_tenant(tenants, tenant)
    if found is None:
        raise Unauthorised(
            "tenant is not the registered one, or one of them: send it exactly as registered", issuer=issuer
        )
    return found


def _of_tenant(tenants: _Tenants, tenant: str) -> _Known | None:
    """The active client that a tenant's tokens speak for.

    One that is registered without a tenant takes tokens of any, as long as no tenant of its issuer is
    registered: from then on nobody's patients may be taken for those of another tenant.
    """
    found = tenants.get(tenant)
    if found is None and len(tenants) == 1:
        found = tenants.get("")
    return found if found is not None and found[0].is_active else None


def _keys_of(client: HookClient, before: _Known | None) -> dict[str, KeySet]:
    return before[1] if before is not None and before[0].jwks == client.jwks else _import_keys(client)


def _import_keys(client: HookClient) -> dict[str, KeySet]:
    found: dict[str, list[Any]] = {}
    for key in client.jwks.get("keys", []):
        found.setdefault(str(key.get("kid") or ""), []).append(key)
    found.pop("", None)
    return {kid: KeySet.import_key_set({"keys": keys}) for kid, keys in found.items()}


def _check_claims(claims: dict[str, Any], client: HookClient, *, audience: str, now: datetime) -> None:
    issuer, clock = client.issuer, now.timestamp()
    times = {name: claims.get(name) for name in ("exp", "iat", *({"nbf"} & claims.keys()))}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
            raise Unauthorised(f"{name} must be a number of seconds since 1970", issuer=issuer)
    if claims["exp"] + SKEW_S < clock:
        raise Unauthorised(
            "the token has expired: sign a new one for each call, and compare clocks", issuer=issuer
        )
    if claims["exp"] - SKEW_S > clock + LONGEST_LIFE_S:
        raise Unauthorised(
            f"exp lies more than {LONGEST_LIFE_S} s ahead: five minutes are enough", issuer=issuer
        )
    if claims["iat"] - SKEW_S > clock:
        raise Unauthorised(f"iat lies in the future, by more than {SKEW_S} s: compare clocks", issuer=issuer)
    if "nbf" in claims and claims["nbf"] - SKEW_S > clock:
        raise Unauthorised(f"nbf lies in the future, by more than {SKEW_S} s: compare clocks", issuer=issuer)
    named = claims.get("aud")
    if audience not in (named if isinstance(named, list) else [named]):
        raise Unauthorised(f"aud must be {audience}", issuer=issuer)
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= 200 or "\x00" in jti:
        raise Unauthorised("jti must be text of 1 to 200 characters", issuer=issuer)


def _object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("a header, and claims, are objects")
    return found
