"""The clients of a destination: its registered address, and its sign-in from keys or the environment."""

from __future__ import annotations

import ehr
from cds import reaching
from cds.errors import Invalid
from cds.sending.models import Destination, DestinationKind

SCOPE = "system/Device.crus system/RiskAssessment.crus system/DiagnosticReport.crus system/Provenance.crus"
RESOURCES = {
    "device": "Device",
    "risk-assessment": "RiskAssessment",
    "diagnostic-report": "DiagnosticReport",
    "provenance": "Provenance",
}
CLASSES = {  # SOP Classes
    "measurements": "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "outlines": "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "heat-map": "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
}
WELL = {  # what `list_problems` has seen when there is none
    DestinationKind.FHIR: "it answers, lets us in, and offers what is needed; writing shows when results go",
    DestinationKind.DICOMWEB: "it answers and lets us in; whether we may store shows when results go",
    DestinationKind.DIMSE: "it takes what we send: every kind of object was agreed on",
}
WITHOUT_RISK = "; with --kind diagnostic-report --kind provenance instead, the number stands in the report"
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
                found = writer.list_problems(tuple(RESOURCES[kind] for kind in destination.document_kinds))
            lacks = "RiskAssessment: the server does not"
            return [one + WITHOUT_RISK if one.startswith(lacks) else one for one in found]
        if destination.kind == DestinationKind.DICOMWEB:
            with stow_client(destination) as client:
                client.check()
            return []
        node, kinds = dimse_client(destination), destination.document_kinds
        untaken = node.list_untaken([CLASSES[kind] for kind in kinds])
        return [f"{name}: {node.node.title} does not take this kind of object" for name in untaken]
    except (ehr.EhrError, Invalid) as error:
        return [str(error)]


def fhir_writer(destination: Destination) -> ehr.FhirWriter:
    """Raises ehr.EhrError, and Invalid when we have no key to sign in with."""
    token = reaching.token(destination.address, _how(destination), allow_http=destination.allow_http)
    return ehr.FhirWriter(destination.address, token=token, allow_http=destination.allow_http)


def stow_client(destination: Destination) -> ehr.StowClient:
    """Its secret is a bearer token, or user:password."""
    login = reaching.web_login(reaching.secret(destination.secret_env))
    return ehr.StowClient(destination.address, allow_http=destination.allow_http, **login)


def dimse_client(destination: Destination) -> ehr.DimseClient:
    """Calls by our AE title, TESSERA unless another was registered; over TLS where the address says so."""
    return reaching.dimse_client(destination.address, _how(destination))


def _how(destination: Destination) -> dict[str, str]:
    names = ("client_id", "token_url", "scope", "title", "tls_ca", "tls_cert", "tls_key")
    return reaching.keep(
        token_env=destination.secret_env, **{name: getattr(destination, name) for name in names}
    )
