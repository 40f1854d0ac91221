"""Signatures on P-384, verified by AWS-LC: the verdict is joserfc's own with OpenSSL, whatever the bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from cds.hooks import signatures

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
FIELD = 2**384 - 2**128 - 2**96 + 2**32 - 1
KEY = ECKey.generate_key("P-384", {"kid": "k"})
KEYS = KeySet.import_key_set({"keys": [KEY.as_dict(private=False)]})
OPENSSL = jws.JWSRegistry(algorithms=signatures.ALGORITHMS, strict_check_header=False)


def token(payload: bytes = b"{}", *, key: Any = KEY, algorithm: str = "ES384") -> jws.CompactSignature:
    said = jws.serialize_compact(
        {"alg": algorithm, "kid": "k"}, payload, key, algorithms=signatures.ALGORITHMS
    )
    return jws.extract_compact(said.encode())


def signed_with(raw: bytes) -> jws.CompactSignature:
    """A token whose signature is these bytes."""
    made = token()
    made.segments["signature"] = urlsafe_b64encode(raw)
    return made


def both(made: jws.CompactSignature, keys: KeySet = KEYS) -> bool:
    """The verdict, the same by both."""
    ours = signatures.is_signed(made, keys)
    assert ours == jws.validate_compact(made, keys, registry=OPENSSL)
    return ours


def number(value: int) -> bytes:
    return value.to_bytes(48, "big")


@given(st.binary(max_size=200))
def test_what_a_key_signed_is_signed(payload: bytes) -> None:
    assert both(token(payload))


def test_what_another_key_signed_is_not() -> None:
    assert not both(token(key=ECKey.generate_key("P-384", {"kid": "k"})))


@given(st.integers(0, 95), st.integers(1, 255))
def test_one_byte_of_the_signature_changed(place: int, change: int) -> None:
    raw = bytearray(urlsafe_b64decode(token().segments["signature"]))
    raw[place] ^= change
    assert not both(signed_with(bytes(raw)))


@pytest.mark.parametrize("r", [0, 1, ORDER - 1, ORDER, ORDER + 1, FIELD, 2**384 - 1])
@pytest.mark.parametrize("s", [0, 1, ORDER - 1, ORDER, ORDER + 1, FIELD, 2**384 - 1])
def test_numbers_at_the_edges(r: int, s: int) -> None:
    assert not both(signed_with(number(r) + number(s)))


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    assert not both(signed_with(raw))


def test_another_length_than_two_numbers() -> None:
    raw = urlsafe_b64decode(token().segments["signature"])
    padded = raw[:48] + b"\0" + raw[48:]  # the same two numbers, and still not two of 48 bytes
    for wrong in (raw[:-1], raw + b"\0", b"\0" + raw, padded, raw[:48], b"", raw * 2):
        assert not both(signed_with(wrong))


def test_a_payload_that_was_changed() -> None:
    made = token(b'{"sub":"a"}')
    made.segments["payload"] = urlsafe_b64encode(b'{"sub":"b"}')
    assert not both(made)


def test_the_other_of_two_keys_at_one_kid_as_joserfc_says() -> None:
    first, second = (ECKey.generate_key("P-384", {"kid": "k"}) for _ in range(2))
    keys = KeySet.import_key_set({"keys": [one.as_dict(private=False) for one in (first, second)]})
    for key in (first, second):
        both(token(key=key), keys)


@pytest.mark.parametrize("curve", ["P-256", "P-521"])
def test_keys_of_other_curves_do_not_fit(curve: str) -> None:
    other = ECKey.generate_key(curve, {"kid": "k"})
    with pytest.raises(JoseError):
        signatures.is_signed(token(), KeySet.import_key_set({"keys": [other.as_dict(private=False)]}))


def test_rsa_goes_on_as_before() -> None:
    key = RSAKey.generate_key(2048, {"kid": "k"})
    keys = KeySet.import_key_set({"keys": [key.as_dict(private=False)]})
    assert both(token(key=key, algorithm="RS384"), keys)
    assert not both(token(key=RSAKey.generate_key(2048, {"kid": "k"}), algorithm="RS384"), keys)


def test_nobody_elses_registry_is_changed() -> None:
    assert type(jws.JWSRegistry.algorithms["ES384"]) is not type(signatures._REGISTRY.algorithms["ES384"])


def test_keys_are_made_ready_once_and_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "MOST_KEYS", 2)
    algorithm: Any = signatures._REGISTRY.algorithms["ES384"]
    for _ in range(5):
        key = ECKey.generate_key("P-384", {"kid": "k"})
        keys = KeySet.import_key_set({"keys": [key.as_dict(private=False)]})
        assert both(token(key=key), keys)
        assert both(token(key=key), keys)
        assert len(algorithm._keys) <= 2
