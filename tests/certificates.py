"""A hospital's authority (CA) and the certificates it signs, for tests of TLS; made anew in each test."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files: a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Signs. `ca` is its own certificate, as a hospital hands it out."""

    def __init__(self, folder: Path, name: str = "Hospital CA") -> None:
        self._folder, self._name = folder, _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = folder / f"{name.replace(' ', '-')}.pem"
        made = _builder(self._name, self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.ca.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))

    def issue(self, name: str) -> Pair:
        """A certificate for an address or host name."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            also: x509.GeneralName = x509.IPAddress(ip_address(name))
        except ValueError:
            also = x509.DNSName(name)
        made = _builder(_name(name), self._name, key.public_key()).add_extension(
            x509.SubjectAlternativeName([also]), critical=False
        )
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.cert.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))
        plain = serialization.NoEncryption()
        pair.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        return pair


def server(pair: Pair, *, asks_for: Path | None = None) -> ssl.SSLContext:
    """What a node with this certificate listens with. `asks_for`: callers show one of this authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    if asks_for is not None:
        context.load_verify_locations(asks_for)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begun = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    begun = begun.serial_number(x509.random_serial_number())
    return begun.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
