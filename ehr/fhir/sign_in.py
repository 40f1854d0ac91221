"""Signing in to a FHIR server: a token somebody gave us, or SMART Backend Services (INTEROP 30).

Backend Services (SMART App Launch 2.2, "Client authentication: asymmetric"): we sign a short-lived assertion
with our private key; the server, which has our public keys, answers with an access token.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Literal, Protocol
from urllib.parse import urljoin

import httpx
import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from ehr.addresses import check_base_url
from ehr.bodies import read_body, why
from ehr.errors import Refused, Retriable, SignInRefused, TooLarge
from ehr.fhir.waiting import is_busy, retry_after
from ehr.trust import trusted

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_S = 240  # the specification allows five minutes
LIFE_S = 300.0  # of a token whose server does not say
EARLY_S = 30.0  # a token is renewed this long before it ends
PUBLIC = {"EC": ("kty", "crv", "x", "y"), "RSA": ("kty", "n", "e")}
LEAST_RSA_BITS = 2048
DISCOVERY_S = 10.0
MAX_ANSWER_BYTES = 256 * 1024  # a token, or a SMART configuration
ANSWER_S = 30.0  # for all of it to come
ACCEPT = {"Accept": "application/json"}
Jwk = Mapping[str, Any]


class SignIn(Protocol):
    """Where bearer tokens come from."""

    def bearer(self, *, renew: bool = False) -> str:
        """A token that is good now; with `renew`, a fresh one because the last was refused."""


class GivenToken:
    """A token that somebody gave us: it cannot be renewed."""

    def __init__(self, token: str) -> None:
        self._token = token

    def bearer(self, *, renew: bool = False) -> str:
        """The token, "" for none."""
        return self._token


class BackendServices:
    """Tokens by `private_key_jwt` from one authorisation server. Safe to share between calls, not threads.

    token_url  the token endpoint, which is also the assertion's audience (see `discover_token_url`)
    client_id  what the server calls us
    key        private JWK with a `kid`: EC on P-384 (ES384), or RSA of 2048 bits or more (RS384)
    raises     Refused for another kind of key or an address we may not call; SignInRefused when the server
               refuses, or answers without a token
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        key: Jwk,
        *,
        scope: str = "system/*.rs",
        allow_http: bool = False,
        timeout_s: float = 10,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_base_url(token_url, allow_http=allow_http)
        self._token_url, self._client_id, self._scope = token_url, client_id, scope
        _signing_key(key)
        self._key, self._kid = key, str(key["kid"])
        self._http = httpx.Client(
            timeout=timeout_s,
            transport=transport,
            verify=trusted(),
            follow_redirects=False,
            trust_env=False,
        )
        self._clock = clock
        self._token, self._ends = "", 0.0

    def bearer(self, *, renew: bool = False) -> str:
        """A token that is good for some seconds more. Raises SignInRefused or Retriable."""
        if renew or self._clock() >= self._ends - EARLY_S:
            self._token, life = self._ask()
            self._ends = self._clock() + life
        return self._token

    def _ask(self) -> tuple[str, float]:
        form = {
            "grant_type": "client_credentials",
            "scope": self._scope,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": client_assertion(
                self._client_id, self._token_url, self._key, clock=self._clock
            ),
        }
        try:
            with self._http.stream("POST", self._token_url, data=form, headers=ACCEPT) as answer:
                body = _read(answer, "the token endpoint")
        except httpx.HTTPError as error:
            raise Retriable(f"the token endpoint cannot be reached: {why(error)}") from error
        if is_busy(answer.status_code):
            raise Retriable(
                f"the token endpoint answered {answer.status_code}", retry_after_s=retry_after(answer)
            )
        said = _json(body)
        if answer.status_code != 200:
            reason = " ".join(
                str(said[name])[:200] for name in ("error", "error_description") if name in said
            )
            raise SignInRefused(
                f"sign-in was refused ({answer.status_code} {reason}): check that the server knows the "
                f"client {self._client_id!r}, allows it {self._scope!r}, and has our key {self._kid!r}",
                status=answer.status_code,
            )
        token, kind = said.get("access_token"), str(said.get("token_type", "")).lower()
        if not isinstance(token, str) or not token or kind != "bearer":
            raise SignInRefused(
                f"the token endpoint {self._token_url} answered without a bearer access_token: is it the one "
                "of the server's smart-configuration?"
            )
        try:
            return token, float(said.get("expires_in", LIFE_S))
        except (TypeError, ValueError):
            return token, LIFE_S


class Bearer(httpx.Auth):
    """Puts the token on each request; a 401 is answered once with a fresh token."""

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The steps of httpx.Auth."""
        token = self._sign_in.bearer()
        if not token:
            yield request
            return
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401 and (again := self._sign_in.bearer(renew=True)) != token:
            request.headers["Authorization"] = f"Bearer {again}"
            yield request


def client_assertion(
    client_id: str, token_url: str, key: Jwk, *, clock: Callable[[], float] = time.time
) -> str:
    """The JWT that says who we are (private_key_jwt): good for four minutes, and once. Raises Refused."""
    algorithm, signing = _signing_key(key)
    header = {"alg": algorithm, "kid": str(key["kid"]), "typ": "JWT"}
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": token_url,
        "exp": int(clock()) + ASSERTION_S,
        "jti": str(uuid.uuid4()),
    }
    return jwt.encode(header, claims, signing, algorithms=[algorithm])


def discover_token_url(
    base_url: str, *, allow_http: bool = False, transport: httpx.BaseTransport | None = None
) -> str:
    """The token endpoint that a FHIR server names in `.well-known/smart-configuration`.

    Raises Refused when it names none, or one that we may not call, and Retriable.
    """
    check_base_url(base_url, allow_http=allow_http)
    where = urljoin(base_url.rstrip("/") + "/", ".well-known/smart-configuration")
    try:
        with (
            httpx.Client(
                timeout=DISCOVERY_S,
                transport=transport,
                verify=trusted(),
                follow_redirects=False,
                trust_env=False,
            ) as http,
            http.stream("GET", where, headers=ACCEPT) as answer,
        ):
            body = _read(answer, "smart-configuration")
    except httpx.HTTPError as error:
        raise Retriable(f"smart-configuration cannot be read: {why(error)}") from error
    found = _json(body).get("token_endpoint") if answer.status_code == 200 else None
    if not isinstance(found, str):
        raise Refused(
            f"the server's .well-known/smart-configuration ({answer.status_code}) names no token_endpoint; "
            "give its address yourself",
            status=answer.status_code,
        )
    check_base_url(found, allow_http=allow_http)
    return found


def new_key(kind: Literal["EC", "RSA"] = "EC") -> dict[str, Any]:
    """A new private JWK with a random `kid`: P-384 for ES384, or 3072 bits for RS384."""
    kid = uuid.uuid4().hex[:16]
    if kind == "EC":
        return {**ECKey.generate_key("P-384").as_dict(private=True), "kid": kid, "alg": "ES384", "use": "sig"}
    return {**RSAKey.generate_key(3072).as_dict(private=True), "kid": kid, "alg": "RS384", "use": "sig"}


def public_keys(keys: Iterable[Jwk]) -> dict[str, list[dict[str, Any]]]:
    """The JSON Web Key Set to serve: public parts only, whatever else a key holds."""
    return {
        "keys": [
            {name: key[name] for name in PUBLIC[str(key["kty"])]}
            | {"kid": key["kid"], "use": "sig", "alg": _signing_key(key)[0], "key_ops": ["verify"]}
            for key in keys
        ]
    }


def _signing_key(key: Jwk) -> tuple[str, ECKey | RSAKey]:
    """(algorithm, key). Raises Refused for a key that ES384 and RS384 cannot sign with."""
    told = "a Backend Services key is a private JWK with a kid: EC on P-384, or RSA of 2048 bits or more"
    if not key.get("kid") or not key.get("d"):
        raise Refused(told)
    material = {k: v for k, v in key.items() if k not in ("alg", "use", "key_ops")}
    try:
        if key.get("kty") == "EC" and key.get("crv") == "P-384":
            return "ES384", ECKey.import_key(material)
        if key.get("kty") == "RSA":
            found = RSAKey.import_key(material)
            if found.raw_value.key_size >= LEAST_RSA_BITS:
                return "RS384", found
    except (JoseError, ValueError, KeyError) as error:
        raise Refused(told) from error
    raise Refused(told)


def _read(answer: httpx.Response, said: str) -> bytes:
    """The body of an answer. Raises SignInRefused for one that is no answer of ours to expect, Retriable."""
    try:
        return read_body(answer, said, limit=MAX_ANSWER_BYTES, within_s=ANSWER_S)
    except TooLarge as error:
        raise SignInRefused(str(error), status=answer.status_code) from error


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
