"""OpenID Connect for a relying party: the way to a sign-in, the code's exchange, the id_token.

Sources: OpenID Connect Core 3.1 (code flow; 3.1.3.7: the id_token; 9: client authentication), OpenID Connect
Discovery 4, RP-Initiated Logout 1.0, RFC 7636 (PKCE), RFC 9207 (whose sign-in the browser comes back from).
SMART App Launch builds on it: `ehr.fhir.smart`.

Only addresses of the registered server, or of origins registered beside it, are called, as `json_documents`
calls. Tokens are in no message.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from ehr.addresses import Origin, check_base_url, origin_of
from ehr.errors import Refused
from ehr.fhir.sign_in import ASSERTION_TYPE, Jwk, client_assertion
from ehr.json_documents import call_json

SKEW_S = 60
NAMES_ITSELF = "authorization_response_iss_parameter_supported"  # RFC 9207, 3
ID_TOKEN_ALGORITHMS = (
    "RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384",
)  # never none, never HMAC  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pending:
    """A sign-in on its way through the other side's; kept in the session of the browser it began in."""

    state: str
    nonce: str
    verifier: str


class OpenIdClient:
    """This app as a client of one registered server.

    issuer      as registered
    client_id   what the server calls us
    key         private JWK to sign in with (private_key_jwt)
    secret      or a shared secret (client_secret_basic); neither: a public client, by PKCE alone
    origins     further origins its endpoints may lie on, such as a sign-in server of its own
    algorithms  that its id_tokens may be signed with, of ID_TOKEN_ALGORITHMS
    raises      Refused for an address that may not be called, or another algorithm
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        *,
        redirect_uri: str,
        key: Jwk | None = None,
        secret: str = "",
        origins: Collection[str] = (),
        algorithms: Sequence[str] = ID_TOKEN_ALGORITHMS,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.issuer = issuer.rstrip("/")
        self._allowed: frozenset[Origin] = frozenset({check_base_url(issuer), *map(origin_of, origins)})
        self._client_id, self._redirect_uri, self._key = client_id, redirect_uri, key
        self._secret, self._algorithms = secret, tuple(algorithms)
        if not self._algorithms or set(self._algorithms) - set(ID_TOKEN_ALGORITHMS):
            raise Refused(f"id_tokens are signed with one of {', '.join(ID_TOKEN_ALGORITHMS)}")
        self._transport, self._clock = transport, clock

    def _begin(self, endpoint: str, scope: str, more: Mapping[str, str]) -> tuple[str, Pending]:
        """The address to send the browser to, with state, nonce and PKCE, and what to remember."""
        pending = Pending(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64))
        asked = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._redirect_uri,
            "scope": scope,
            "state": pending.state,
            "nonce": pending.nonce,
            "code_challenge": challenge_of(pending.verifier),
            "code_challenge_method": "S256",
            **more,
        }
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked)}", pending

    def _exchange(self, endpoint: str, code: str, pending: Pending) -> dict[str, Any]:
        """The token endpoint's answer to a code. Raises Refused, Retriable, BadResource, TooLarge."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": pending.verifier,
        }
        if self._key is not None:
            form["client_assertion_type"] = ASSERTION_TYPE
            form["client_assertion"] = client_assertion(
                self._client_id, endpoint, self._key, clock=self._clock
            )
        elif not self._secret:
            form["client_id"] = self._client_id
        basic = (quote_plus(self._client_id), quote_plus(self._secret)) if self._secret else None
        return self._call("POST", endpoint, form, basic)

    def _check_answered(self, said: str, issuers: Collection[str], *, names_itself: bool) -> None:
        """RFC 9207: a code of another sign-in than the one that was begun must not be sent to that one.

        said          the `iss` that came back with the code; "" for none
        names_itself  whether the server's discovery says that it always gives one
        raises        Refused
        """
        if said not in issuers if said else names_itself:
            raise Refused(
                "the code came back from another sign-in than the one that was begun (iss), and was not "
                "sent on"
            )

    def _verified(
        self,
        token: str,
        issuers: Collection[str],
        nonce: str,
        keys: Callable[[bool], Mapping[str, Any]],
    ) -> dict[str, Any]:
        for fresh in (False, True):
            try:
                held = _usable(keys(fresh))
                claims = jwt.decode(token, held, algorithms=list(self._algorithms)).claims
            except (JoseError, ValueError, KeyError, TypeError) as error:
                if fresh:
                    raise Refused(
                        f"the id_token does not verify against the server's keys ({type(error).__name__})"
                    ) from None
            else:
                break
        self._check_claims(claims, issuers, nonce)
        return claims

    def _check_claims(self, claims: dict[str, Any], issuers: Collection[str], nonce: str) -> None:
        """OpenID Connect Core 2 and 3.1.3.7: iss, sub, aud, azp, exp, iat, nonce; RFC 7519: nbf, if there."""
        named, now = claims.get("aud"), self._clock()
        audiences = named if isinstance(named, list) else [named]
        alone = self._client_id if len(audiences) == 1 else None  # azp may be left out, and nothing else
        expires, issued = _seconds(claims.get("exp")), _seconds(claims.get("iat"))
        begins, subject = _seconds(claims.get("nbf", 0)), claims.get("sub")
        wrong = next(
            (
                name
                for name, holds in (
                    ("iss", isinstance(claims.get("iss"), str) and claims["iss"] in issuers),
                    ("aud", self._client_id in audiences),
                    ("azp", claims.get("azp", alone) == self._client_id),
                    (
                        "nonce",
                        secrets.compare_digest(str(claims.get("nonce") or "").encode(), nonce.encode()),
                    ),
                    ("exp", expires is not None and expires + SKEW_S > now),
                    ("iat", issued is not None and issued - SKEW_S <= now),
                    ("nbf", begins is not None and begins - SKEW_S <= now),
                    ("sub", isinstance(subject, str) and 0 < len(subject) <= 255 and subject.isprintable()),
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

    def _call(
        self,
        method: str,
        url: str,
        form: Mapping[str, str] | None,
        basic: tuple[str, str] | None = None,
    ) -> dict[str, Any]:
        return call_json(method, url, form=form, basic=basic, transport=self._transport)


@dataclass(frozen=True, slots=True)
class ProviderConfiguration:
    """What `.well-known/openid-configuration` says, checked. `end_session_endpoint` "": it has none.

    names_itself  its answers always carry `iss` (RFC 9207)
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str = ""
    names_itself: bool = False


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who came. `claims` are those of the verified id_token, which signing out wants to see again."""

    subject: str
    claims: Mapping[str, Any]
    id_token: str = field(default="", repr=False)


class RelyingParty(OpenIdClient):
    """This app towards the OpenID Provider of the hospital's own accounts (OpenID Connect Core 1.2)."""

    def discover(self) -> ProviderConfiguration:
        """Raises Refused (another issuer; an endpoint on an unregistered origin; no PKCE), Retriable …"""
        said = self._get(f"{self.issuer}/.well-known/openid-configuration")
        issuer = said.get("issuer")
        if not isinstance(issuer, str) or issuer.rstrip("/") != self.issuer:
            raise Refused("the provider's discovery names another issuer than the one registered")
        methods = said.get("code_challenge_methods_supported")
        if isinstance(methods, list) and "S256" not in methods:
            raise Refused("the provider does not support PKCE with S256")
        ending = said.get("end_session_endpoint")
        found = {
            name: self._checked(said.get(name), name)
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
        }
        return ProviderConfiguration(
            issuer=issuer,
            end_session_endpoint=self._checked(ending, "end_session_endpoint") if ending else "",
            names_itself=said.get(NAMES_ITSELF) is True,
            **found,
        )

    def begin(
        self, configuration: ProviderConfiguration, *, scope: str, again: bool = False
    ) -> tuple[str, Pending]:
        """Where to send the browser. `again`: the person has to show once more who they are."""
        more = {"prompt": "login", "max_age": "0"} if again else {}
        return self._begin(configuration.authorization_endpoint, scope, more)

    def complete(
        self,
        configuration: ProviderConfiguration,
        code: str,
        pending: Pending,
        *,
        answered_by: str = "",
        keys: Callable[[bool], Mapping[str, Any]] | None = None,
    ) -> SignedIn:
        """Exchange the code and verify who came; the rest as for `SmartApp.complete`. Raises Refused …"""
        self._check_answered(answered_by, {configuration.issuer}, names_itself=configuration.names_itself)
        said = self._exchange(configuration.token_endpoint, code, pending)
        token = said.get("id_token")
        if not isinstance(token, str):
            raise Refused("the provider gave no id_token: allow this app the scope openid")
        keys = keys or (lambda fresh: self.read_keys(configuration))
        claims = self._verified(token, {configuration.issuer}, pending.nonce, keys)
        return SignedIn(str(claims["sub"]), claims, token)

    def read_keys(self, configuration: ProviderConfiguration) -> dict[str, Any]:
        """The key set that id_tokens are signed with. Raises as `discover` does."""
        return self._get(configuration.jwks_uri)

    def sign_out(self, configuration: ProviderConfiguration, *, id_token: str, back: str) -> str:
        """Where a browser ends its session at the provider; "" where that offers no such address."""
        there = configuration.end_session_endpoint
        if not there:
            return ""
        said = {"client_id": self._client_id, "post_logout_redirect_uri": back}
        if id_token:
            said["id_token_hint"] = id_token
        return f"{there}{'&' if urlsplit(there).query else '?'}{urlencode(said)}"


def name_in(claims: Mapping[str, Any]) -> str:
    """What a person is called there, at most 150 characters that can be kept; "" for nothing."""
    said = claims.get("name")
    return "".join(one for one in said if one.isprintable())[:150] if isinstance(said, str) else ""


def challenge_of(verifier: str) -> str:
    """RFC 7636: BASE64URL(SHA-256(verifier)), without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _seconds(value: object) -> float | None:
    """Seconds since 1970; None for anything else."""
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**40
    return float(cast(float, value)) if is_time else None


def _usable(jwks: Mapping[str, Any]) -> KeySet:
    """Its keys that can be read; the others are for other uses (RFC 7517, 5). Raises ValueError for none."""
    found: list[Any] = []
    for key in jwks["keys"]:
        try:
            found += KeySet.import_key_set({"keys": [key]}).keys
        except (JoseError, ValueError, KeyError, TypeError):
            continue
    if not found:
        raise ValueError("no key that can be used")
    return KeySet(found)
