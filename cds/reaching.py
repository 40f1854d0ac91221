"""How a hospital's server is reached: how we sign in to it, and what secures the connection.

Kept beside what uses it (a run, a Subscription, a destination) as names only: of a client, of variables of
the environment, of files. No secret is kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings

import ehr
from cds import signing

How = Mapping[str, str]
KEY_SET = "/.well-known/jwks.json"
NAMES = ("client_id", "token_url", "scope", "token_env", "title", "tls_ca", "tls_cert", "tls_key")


def keep(**given: Any) -> dict[str, str]:
    """What of `given` says how a server is reached, as it may be kept."""
    return {name: str(given[name]) for name in NAMES if given.get(name)}


def token(where: str, how: How, *, allow_http: bool = False) -> str | ehr.SignIn:
    """For the FHIR server at `where`: Backend Services, a token of the environment, or "" for none.

    raises  Invalid when we have no key to sign in with; EhrError
    """
    if not how.get("client_id"):
        return secret(how.get("token_env", ""))
    token_url = how.get("token_url", "")
    if not token_url:
        token_url = ehr.discover_token_url(where, allow_http=allow_http)
    return signing.sign_in(
        token_url, how["client_id"], scope=how.get("scope") or "system/*.rs", allow_http=allow_http
    )


def is_about_us(error: ehr.EhrError) -> bool:
    """Whether the server does not know us, or does not let us: it would refuse everything else as well."""
    return isinstance(error, ehr.Refused) and error.status in (401, 403)


def why_not(error: ehr.EhrError, how: How, *, what: str = "what we asked for") -> str:
    """What to change, and on whose side, when a FHIR server refused us.

    what  that was refused: "Patient", say
    """
    if not is_about_us(error):
        return str(error)
    if how.get("launch"):
        return f"it does not let the sign-in of this launch read {what} ({error})"
    if how.get("client_id"):
        return (
            f"it does not let us read {what} ({error}): allow the client {how['client_id']!r} there "
            f"{how.get('scope') or 'system/*.rs'}"
        )
    if how.get("token_env"):
        return f"it does not take our token ({error}): put a fresh one into {how['token_env']}"
    return (
        f"it asks who we are ({error}): run `ingest` with --client-id (see `fhir_key`; our key set is served "
        f"at {KEY_SET}), or with --token-env"
    )


def secret(name: str) -> str:
    """What a variable of the environment holds; "" without a name.

    raises  ehr.Retriable: what waits for it goes on once the variable is there
    """
    if not name:
        return ""
    found = os.environ.get(name, "")
    if not found:
        raise ehr.Retriable(
            f"the environment variable {name} is not set in the process that calls "
            "(for results and tests: a worker)"
        )
    return found


def web_login(given: str) -> dict[str, Any]:
    """A secret as a DICOMweb archive takes it: `user:password`, else a bearer token."""
    user, colon, password = given.partition(":")
    return {"auth": (user, password)} if colon else {"token": given}


def tls_files(how: How) -> ehr.TlsFiles:
    """The files of DICOM over TLS: those named here, else the site's (DICOM_TLS_CA, _CERT, _KEY)."""
    ca = how.get("tls_ca") or settings.DICOM_TLS_CA
    cert, key = how.get("tls_cert", ""), how.get("tls_key", "")
    if not cert:
        cert, key = settings.DICOM_TLS_CERT, settings.DICOM_TLS_KEY
    return ehr.TlsFiles(*(Path(one) if one else None for one in (ca, cert, key)))


def dimse_client(where: str, how: How) -> ehr.DimseClient:
    """A client of a DICOM node. Raises ehr.Refused for an address, title or file that cannot be used."""
    return ehr.DimseClient(ehr.parse_node(where), title=how.get("title") or "TESSERA", tls=tls_files(how))
