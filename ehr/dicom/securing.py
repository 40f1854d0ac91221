"""DICOM over TLS (PS3.15 annex B) as a caller: whom we trust, who we are, and why a handshake failed."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from ehr.dicom.node import Node
from ehr.errors import Refused
from ehr.trust import new_context

LOOK_S = 5.0
ALERT_S = 2.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files, PEM. All may be left out: then the authorities of this machine count, and we show nothing.

    ca    the hospital's authority (CA), whose certificates are trusted besides
    cert  our certificate with its chain, for nodes that ask who calls
    key   its private key, where it is not in the same file
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or later, host names checked. Raises Refused naming the file that cannot be used."""
    context = new_context()
    if files.key is not None and files.cert is None:
        raise Refused("a private key needs its certificate beside it")
    if files.ca is not None:
        try:
            context.load_verify_locations(files.ca)
        except (OSError, ssl.SSLError) as error:
            raise Refused(f"{files.ca} cannot be used as the authority (CA): {_reason(error)}") from error
    if files.cert is not None:
        try:
            context.load_cert_chain(files.cert, files.key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            named = f"{files.cert}{f' with {files.key}' if files.key else ''}"
            raise Refused(f"{named} cannot be used as our certificate: {_reason(error)}") from error
    return context


def handshake_fault(node: Node, context: ssl.SSLContext) -> str:
    """Why TLS with a node fails, in words that say what to change; "" when that cannot be seen.

    Connects once more: the DICOM library tells only that there was no connection.
    """
    try:
        with (
            socket.create_connection((node.host, node.port), LOOK_S) as plain,
            context.wrap_socket(plain, server_hostname=node.host) as secured,
        ):
            secured.settimeout(ALERT_S)
            secured.recv(1)  # with TLS 1.3 it says only now that it does not take our certificate
    except ssl.SSLCertVerificationError as error:
        if "mismatch" in error.verify_message.lower():
            return (
                f"its certificate is made out for another name than {node.host}: call it by the name that "
                "its certificate bears"
            )
        return f"its certificate is not trusted ({error.verify_message}): name the hospital's CA file"
    except ssl.SSLError as error:
        if error.reason and "CERTIFICATE_REQUIRED" in error.reason:
            return "it asks for our certificate: name one, with its key, that its CA has signed"
        if error.reason and ("WRONG_VERSION" in error.reason or "RECORD" in error.reason):
            return "it does not speak TLS on this port: write dimse:// or take its TLS port"
        if error.reason and "UNKNOWN_CA" in error.reason:
            return "it does not trust our certificate: have our CA added there"
    except OSError:
        pass  # nobody there, or it hung up: that is what is said anyway
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{(error.reason or 'not PEM').replace('_', ' ').lower()}"
    return getattr(error, "strerror", "") or str(error)


def _no_password() -> str:
    raise ValueError("its key asks for a password; give a key without one, readable by us only")
