"""An identity provider of a hospital, on loopback: discovery, a sign-in that says yes at once, tokens, keys.

It checks what a real one would (redirect URI, PKCE, client authentication), and errs where it is told to.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from ehr.openid import challenge_of

CLIENT, SECRET = "tessera-clinic", "a secret: 50%"


class HospitalProvider:
    """What the provider knows and how it errs.

    claims     what its id_tokens say besides, or instead; None removes one
    discovery  what its discovery says besides, or instead; None removes one
    algorithm  that it signs with
    app_keys   our public keys, where we sign in with a key
    """

    def __init__(self) -> None:
        self.url = ""
        self.claims: dict[str, Any] = {}
        self.discovery: dict[str, Any] = {}
        self.algorithm = "ES256"
        self.app_keys: dict[str, Any] | None = None
        self.keys: dict[str, Any] = {
            "ES256": ECKey.generate_key("P-256", {"kid": "one"}),
            "RS256": RSAKey.generate_key(2048, {"kid": "two"}),
        }
        self.signs_with: Any = None  # another key than the published one
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []

    def configuration(self) -> dict[str, Any]:
        said = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "end_session_endpoint": f"{self.url}/end",
            "code_challenge_methods_supported": ["S256"],
            **self.discovery,
        }
        return {name: value for name, value in said.items() if value is not None}

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser goes next."""
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(8)
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        begun = self.codes.pop(form.get("code", ""), None)
        if begun is None or begun["redirect_uri"] != form.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        if challenge_of(form.get("code_verifier", "")) != begun["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        if not self._is_us(form, authorization):
            return 401, {"error": "invalid_client"}
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "sub": "u-7", "iat": now, "exp": now + 300,
            "nonce": begun["nonce"], "name": "Dr Autumn", "email": "autumn@hospital.example",
            "groups": ["clinicians"], **self.claims,
        }  # fmt: skip
        if "max_age" in begun:
            claims.setdefault("auth_time", now)
        key = self.signs_with or self.keys[self.algorithm]
        header = {"alg": self.algorithm, "kid": key.kid or "one"}
        said = {name: value for name, value in claims.items() if value is not None}
        if self.algorithm == "none":
            parts = [
                base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (header, said)
            ]
            signed = b".".join([*parts, b""]).decode()
        else:
            signed = jwt.encode(header, said, key, algorithms=[self.algorithm])
        return 200, {"access_token": "never-kept", "token_type": "Bearer", "id_token": signed}

    def _is_us(self, form: dict[str, str], authorization: str) -> bool:
        if self.app_keys is not None:
            try:
                keys = KeySet.import_key_set(self.app_keys)  # type: ignore[arg-type]
                token = jwt.decode(form["client_assertion"], keys, algorithms=["ES384", "RS384"])
            except Exception:
                return False
            return token.claims["sub"] == CLIENT and token.claims["aud"] == f"{self.url}/token"
        said = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        return said == urlencode({"": CLIENT})[1:] + ":" + urlencode({"": SECRET})[1:]


def hmac_key(secret: str) -> OctKey:
    """The shared secret as a key, for a token that was signed with it."""
    return OctKey.import_key(secret)


@contextmanager
def hospital_provider() -> Iterator[HospitalProvider]:
    """One that runs, for as long as the block does."""
    provider = HospitalProvider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            provider.asked.append(parts.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/.well-known/openid-configuration":
                self._answer(200, provider.configuration())
            elif parts.path == "/keys":
                public = [key.as_dict(private=False) for key in provider.keys.values() if key.kid]
                self._answer(200, {"keys": [key for key in public if key["kty"] != "oct"]})
            elif parts.path == "/authorize":
                self.send_response(302)
                self.send_header("Location", provider.authorize(asked))
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._answer(404, {})

        def do_POST(self) -> None:
            provider.asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            authorization = self.headers.get("Authorization", "")
            self._answer(*(provider.token(form, authorization) if self.path == "/token" else (404, {})))

        def _answer(self, status: int, said: dict[str, Any]) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
