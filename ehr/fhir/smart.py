"""SMART App Launch 2.2 for an app: discovery, the way to the EHR's sign-in, the code's exchange, who came.

Source: SMART App Launch 2.2 (launch sequence; scopes and launch context; client authentication: asymmetric),
OpenID Connect Core 3.1.3.7 (the id_token), RFC 7636 (PKCE). INTEROP 24 to 28.

Only addresses of the registered server, or of origins registered beside it, are called: https outside
loopback, no redirects, the address looked at again when connecting, three seconds, 256 KB. Tokens are in no
message.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from ehr.addresses import Origin, check_base_url, origin_of
from ehr.errors import BadResource, Refused
from ehr.fhir.sign_in import ASSERTION_TYPE, Jwk, client_assertion
from ehr.json_documents import call_json

SKEW_S = 60
ID_TOKEN_ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "ES256",
    "ES384",
    "PS256",
    "PS384",
]  # never none, never HMAC
RESOURCES_V2, RESOURCES_V1 = "patient/*.rs", "patient/*.read"
_FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


@dataclass(frozen=True, slots=True)
class SmartConfiguration:
    """What `.well-known/smart-configuration` says, checked. `id_issuer` is the `iss` of its id_tokens."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    id_issuer: str
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pending:
    """A launch on its way through the EHR's sign-in; kept in the session of the browser it began in."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """Who came, and for whom. The token is for this moment only: never stored, never shown.

    fhir_user    `[Type]/[id]`, or its absolute URL, as the id_token says
    app_context  what a CDS Hooks card's smart link gave along
    """

    fhir_user: str
    name: str
    patient: str
    encounter: str = ""
    need_patient_banner: bool = True
    style_url: str = ""
    app_context: str = ""
    access_token: str = field(default="", repr=False)


class SmartApp:
    """This app towards one registered server.

    issuer     base URL of its FHIR endpoint, as `iss` names it
    client_id  what the server calls us
    key        private JWK to sign in with (private_key_jwt); None: a public client, by PKCE alone
    origins    further origins its endpoints may lie on, such as a sign-in server of its own
    raises     Refused for an address that may not be called
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        *,
        redirect_uri: str,
        key: Jwk | None = None,
        origins: Collection[str] = (),
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.issuer = issuer.rstrip("/")
        self._allowed: frozenset[Origin] = frozenset({check_base_url(issuer), *map(origin_of, origins)})
        self._client_id, self._redirect_uri, self._key = client_id, redirect_uri, key
        self._transport, self._clock = transport, clock

    def discover(self) -> SmartConfiguration:
        """Raises Refused (an endpoint on an unregistered origin; no PKCE), Retriable, BadResource, "
        "TooLarge."""
        said = self._get(f"{self.issuer}/.well-known/smart-configuration")
        methods = said.get("code_challenge_methods_supported")
        if isinstance(methods, list) and "S256" not in methods:
            raise Refused("the server does not support PKCE with S256, which SMART App Launch 2 requires")
        if not said.get("jwks_uri") or not said.get("issuer"):
            said = {**self._get(f"{self.issuer}/.well-known/openid-configuration"), **said}
        found = {
            name: self._checked(said.get(name), name)
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
        }
        listed = said.get("capabilities")
        return SmartConfiguration(
            id_issuer=str(said.get("issuer") or self.issuer),
            capabilities=frozenset(map(str, listed)) if isinstance(listed, list) else frozenset(),
            **found,
        )

    def begin(self, configuration: SmartConfiguration, *, launch: str = "") -> tuple[str, Pending]:
        """The address to send the browser to, and what to remember until it comes back.

        launch  the EHR's handle; "": standalone, the EHR lets the person choose a patient
        """
        pending = Pending(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64))
        asked = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._redirect_uri,
            "scope": scopes_for(configuration, standalone=not launch),
            "state": pending.state,
            "nonce": pending.nonce,
            "aud": self.issuer,
            "code_challenge": challenge_of(pending.verifier),
            "code_challenge_method": "S256",
        }
        if launch:
            asked["launch"] = launch
        there = configuration.authorization_endpoint
        return f"{there}{'&' if urlsplit(there).query else '?'}{urlencode(asked)}", pending

    def complete(
        self,
        configuration: SmartConfiguration,
        code: str,
        pending: Pending,
        *,
        keys: Callable[[bool], Mapping[str, Any]] | None = None,
    ) -> LaunchContext:
        """Exchange the code and verify who came.

        keys    the server's key set, cached by the caller; called with True for a fresh one when a `kid` is
                unknown. None: it is read each time
        raises  Refused when the server refuses the code, or what it says of the person does not verify;
                Retriable, BadResource, TooLarge
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": pending.verifier,
        }
        if self._key is None:
            form["client_id"] = self._client_id
        else:
            form["client_assertion_type"] = ASSERTION_TYPE
            form["client_assertion"] = client_assertion(
                self._client_id, configuration.token_endpoint, self._key, clock=self._clock
            )
        said = self._call("POST", configuration.token_endpoint, form)
        if str(said.get("token_type", "")).lower() != "bearer" or not isinstance(
            said.get("access_token"), str
        ):
            raise BadResource("the token endpoint answered without a bearer access_token")
        token = said.get("id_token")
        if not isinstance(token, str):
            raise Refused("the server gave no id_token: allow this app the scopes openid and fhirUser")
        keys = keys or (lambda fresh: self.read_keys(configuration))
        claims = self._verified(token, configuration, pending.nonce, keys)
        patient, encounter = str(said.get("patient") or ""), str(said.get("encounter") or "")
        if not _FHIR_ID.fullmatch(patient):
            raise Refused("the server named no patient: allow this app the scope launch, or launch/patient")
        return LaunchContext(
            fhir_user=str(claims.get("fhirUser") or claims.get("profile") or ""),
            name=str(claims.get("name") or "")[:150],
            patient=patient,
            encounter=encounter if _FHIR_ID.fullmatch(encounter) else "",
            need_patient_banner=said.get("need_patient_banner") is not False,
            style_url=str(said.get("smart_style_url") or ""),
            app_context=str(said.get("appContext") or "")[:2000],
            access_token=said["access_token"],
        )

    def read_keys(self, configuration: SmartConfiguration) -> dict[str, Any]:
        """The key set that the server's id_tokens are signed with. Raises as `discover` does."""
        return self._get(configuration.jwks_uri)

    def read_style(self, url: str) -> dict[str, Any]:
        """A `smart_style_url` of the server. Raises as `discover` does."""
        return self._get(self._checked(url, "smart_style_url"))

    def _verified(
        self,
        token: str,
        configuration: SmartConfiguration,
        nonce: str,
        keys: Callable[[bool], Mapping[str, Any]],
    ) -> dict[str, Any]:
        for fresh in (False, True):
            try:
                held = KeySet.import_key_set(keys(fresh))  # type: ignore[arg-type]
                claims = jwt.decode(token, held, algorithms=ID_TOKEN_ALGORITHMS).claims
            except (JoseError, ValueError, KeyError, TypeError) as error:
                if fresh:
                    raise Refused(
                        f"the id_token does not verify against the server's keys ({type(error).__name__})"
                    ) from None
            else:
                break
        self._check_claims(claims, configuration, nonce)
        return claims

    def _check_claims(self, claims: dict[str, Any], configuration: SmartConfiguration, nonce: str) -> None:
        """OpenID Connect Core 3.1.3.7: iss, aud, azp, exp, iat, nonce."""
        named, now = claims.get("aud"), self._clock()
        audiences = named if isinstance(named, list) else [named]
        expires, issued = _seconds(claims.get("exp")), _seconds(claims.get("iat"))
        wrong = next(
            (
                name
                for name, holds in (
                    ("iss", claims.get("iss") in (configuration.id_issuer, self.issuer)),
                    ("aud", self._client_id in audiences),
                    ("azp", len(audiences) == 1 or claims.get("azp") == self._client_id),
                    ("nonce", secrets.compare_digest(str(claims.get("nonce") or ""), nonce)),
                    ("exp", expires is not None and expires + SKEW_S > now),
                    ("iat", issued is not None and issued - SKEW_S <= now),
                )
                if not holds
            ),
            "",
        )
        if wrong:
            raise Refused(f"the id_token's {wrong} is not what it must be")

    def _checked(self, url: object, what: str) -> str:
        if not isinstance(url, str) or not url:
            raise Refused(f"the server's discovery names no {what}")
        origin = check_base_url(url)
        if origin not in self._allowed:
            raise Refused(
                f"the {what} lies on {origin[0]}://{origin[1]}, which is not registered for this "
                f"server: register "
                "that origin, too, if it is the hospital's"
            )
        return url

    def _get(self, url: str) -> dict[str, Any]:
        return self._call("GET", url, None)

    def _call(self, method: str, url: str, form: Mapping[str, str] | None) -> dict[str, Any]:
        return call_json(method, url, form=form, transport=self._transport)


def scopes_for(configuration: SmartConfiguration, *, standalone: bool) -> str:
    """INTEROP 26: SMART 2 scopes, or those of version 1 where the server lists only `permission-v1`."""
    is_old = (
        "permission-v1" in configuration.capabilities and "permission-v2" not in configuration.capabilities
    )
    who = "launch/patient" if standalone else "launch"
    return f"openid fhirUser {who} {RESOURCES_V1 if is_old else RESOURCES_V2}"


def challenge_of(verifier: str) -> str:
    """RFC 7636: BASE64URL(SHA-256(verifier)), without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def fhir_user_of(said: str, issuer: str) -> tuple[str, str]:
    """(type, id) of a `fhirUser`, relative or absolute at the server itself. Raises Refused."""
    path = said.removeprefix(issuer.rstrip("/") + "/")
    found = re.fullmatch(r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(/_history/[^/]+)?", path)
    if found is None:
        raise Refused("the id_token's fhirUser names nobody of this server")
    return found[1], found[2]


def _seconds(value: object) -> float | None:
    """Seconds since 1970; None for anything else."""
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**40
    return float(cast(float, value)) if is_time else None
