"""Signatures of the EHRs' tokens, verified: RS384 by joserfc, ES384 by joserfc with the arithmetic of AWS-LC.

A call is a fresh token, so a signature on P-384 is verified for every one. OpenSSL has no fast arithmetic for
that curve; AWS-LC (awscrt) has, and takes less than half as long. All else, which key and which algorithm may
be used, stays joserfc's; the form of a signature is that of RFC 7518 (3.4).
"""

from __future__ import annotations

import hashlib

from awscrt.crypto import EC, ECRawSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.jwk import ECKey, KeySet

ALGORITHMS = ["ES384", "RS384"]
MOST_KEYS = 1000  # of all clients, before all are made ready anew
_BYTES = 48  # of each of the two numbers of a signature


class _Es384(type(jws.JWSRegistry.algorithms["ES384"])):  # type: ignore[misc]
    """joserfc's ES384, whose last step is AWS-LC's."""

    def __init__(self) -> None:
        super().__init__("ES384", "P-384", 384)
        self._keys: dict[tuple[object, object], EC] = {}  # by their point on the curve

    def verify(self, msg: bytes, sig: bytes, key: ECKey) -> bool:
        """Whether `sig`, r and s of 48 bytes each, is the key's for `msg`."""
        if len(sig) != 2 * _BYTES:
            return False
        point = key["x"], key["y"]
        held = self._keys.get(point)
        if held is None:
            held = EC.new_key_from_der_data(
                key.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            )
            if len(self._keys) >= MOST_KEYS:
                self._keys.clear()
            self._keys[point] = held
        der = EC.encode_raw_signature(ECRawSignature(sig[:_BYTES], sig[_BYTES:]))
        return bool(held.verify(hashlib.sha384(msg).digest(), der))


# Headers that are not understood are passed over, as RFC 7515 (4) wants; critical ones are refused.
_REGISTRY = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
_REGISTRY.algorithms = {**_REGISTRY.algorithms, "ES384": _Es384()}  # of this registry alone


def is_signed(claimed: jws.CompactSignature, key: KeySet) -> bool:
    """Whether the token is signed with that key. Raises JoseError, ValueError: its header does not fit it."""
    return bool(jws.validate_compact(claimed, key, registry=_REGISTRY))
