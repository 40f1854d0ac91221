"""Tokens as an attacker makes them: every byte of header, payload and signature as one likes."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

import orjson
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc.jwk import ECKey, RSAKey

from tests.cds.hooks.conftest import BASE, ISSUER, KEY

URL = f"{BASE}/cds-services"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
WIDTH = 48  # bytes of one number of an ES384 signature


def b64(content: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def header(**changes: Any) -> dict[str, Any]:
    """A right header with changes; None removes."""
    return _changed({"alg": "ES384", "typ": "JWT", "kid": "k1"}, changes)


def claims(**changes: Any) -> dict[str, Any]:
    """Right claims with changes; None removes."""
    now = int(time.time())
    right = {"iss": ISSUER, "aud": URL, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())}
    return _changed(right, changes)


def forged(
    top: Any = None, said: Any = None, *, key: Any = KEY, signature: bytes | None = None, digest: Any = None
) -> str:
    """A token. `top` and `said` are objects, or bytes as they shall stand; `signature`: not the key's."""
    first = b64(_bytes(header() if top is None else top))
    second = b64(_bytes(claims() if said is None else said))
    made = sign(f"{first}.{second}".encode(), key, digest) if signature is None else signature
    return f"{first}.{second}.{b64(made)}"


def sign(content: bytes, key: Any = KEY, digest: Any = None) -> bytes:
    """The signature of a key of whatever kind, as JWS writes it."""
    private = key.private_key
    if isinstance(key, RSAKey):
        found: bytes = private.sign(content, padding.PKCS1v15(), digest or hashes.SHA384())
        return found
    r, s = decode_dss_signature(private.sign(content, ec.ECDSA(digest or hashes.SHA384())))
    width = (key.curve_key_size + 7) // 8
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def der(content: bytes, key: ECKey = KEY) -> bytes:
    """An ECDSA signature as ASN.1 writes it, which JWS does not."""
    found: bytes = key.private_key.sign(content, ec.ECDSA(hashes.SHA384()))
    return found


def _changed(right: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**right, **changes}.items() if value is not None}


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else orjson.dumps(value)
