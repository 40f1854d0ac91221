"""The clients of a destination: its registered address, and its sign-in from keys or the environment."""

from __future__ import annotations

import os

import httpx

import ehr
from cds import signing
from cds.errors import Invalid
from cds.sending.models import Destination, DestinationKind

SCOPE = "system/Device.crus system/RiskAssessment.crus system/DiagnosticReport.crus system/Provenance.crus"
RESOURCES = {
    "device": "Device",
    "risk-assessment": "RiskAssessment",
    "diagnostic-report": "DiagnosticReport",
    "provenance": "Provenance",
}
PREFIX = "dicomweb+"


def split_address(address: str) -> tuple[DestinationKind, str]:
    """How an address is spoken to, and the address itself. Raises Invalid."""
    if address.startswith(("dimse://", "dimse+tls://")):
        return DestinationKind.DIMSE, address
    if address.startswith((f"{PREFIX}https://", f"{PREFIX}http://")):
        return DestinationKind.DICOMWEB, address.removeprefix(PREFIX).rstrip("/")
    if address.startswith(("https://", "http://")):
        return DestinationKind.FHIR, address.rstrip("/")
    raise Invalid(
        "an address is a FHIR base URL (https://host/fhir), a DICOMweb one (dicomweb+https://host/dicom-web, "
        "the part before /studies), or a DICOM node (dimse://TITLE@host:port, dimse+tls://…)"
    )


def check_address(destination: Destination) -> None:
    """Raises Invalid when we may not call it. Calls nobody."""
    try:
        if destination.kind == DestinationKind.FHIR:
            ehr.FhirWriter(destination.address, allow_http=destination.allow_http).close()
        elif destination.kind == DestinationKind.DICOMWEB:
            ehr.StowClient(destination.address, allow_http=destination.allow_http).close()
        else:
            dimse_client(destination)
    except ehr.EhrError as error:
        raise Invalid(f"{destination.address}: {error}") from error


def list_problems(destination: Destination) -> list[str]:
    """Ask whether it is there and would take what we send; what is wrong, in words. Sends no results."""
    try:
        if destination.kind == DestinationKind.FHIR:
            with fhir_writer(destination) as writer:
                return writer.list_problems(tuple(RESOURCES[kind] for kind in destination.document_kinds))
        if destination.kind == DestinationKind.DICOMWEB:
            with stow_client(destination) as client:
                client.check()
        else:
            dimse_client(destination).echo()
    except (ehr.EhrError, Invalid) as error:
        return [str(error)]
    return []


def fhir_writer(destination: Destination) -> ehr.FhirWriter:
    """Raises ehr.EhrError, and Invalid when we have no key to sign in with."""
    token: str | ehr.SignIn = _secret(destination)
    if destination.client_id:
        token_url = destination.token_url
        if not token_url:
            with httpx.Client(timeout=10, follow_redirects=False, trust_env=False) as http:
                token_url = ehr.discover_token_url(
                    destination.address, http=http, allow_http=destination.allow_http
                )
        token = signing.sign_in(
            token_url, destination.client_id, scope=destination.scope, allow_http=destination.allow_http
        )
    return ehr.FhirWriter(destination.address, token=token, allow_http=destination.allow_http)


def stow_client(destination: Destination) -> ehr.StowClient:
    """Its secret is a bearer token, or user:password."""
    secret = _secret(destination)
    user, colon, password = secret.partition(":")
    if colon:
        auth = (user, password)
        return ehr.StowClient(destination.address, auth=auth, allow_http=destination.allow_http)
    return ehr.StowClient(destination.address, token=secret, allow_http=destination.allow_http)


def dimse_client(destination: Destination) -> ehr.DimseClient:
    """Calls by our AE title, TESSERA unless another was registered."""
    return ehr.DimseClient(ehr.parse_node(destination.address), title=destination.title or "TESSERA")


def _secret(destination: Destination) -> str:
    """From the environment. Raises ehr.Retriable: what waits is sent once the variable is there."""
    if not destination.secret_env:
        return ""
    found = os.environ.get(destination.secret_env, "")
    if not found:
        raise ehr.Retriable(
            f"the environment variable {destination.secret_env} is not set where the worker runs"
        )
    return found
