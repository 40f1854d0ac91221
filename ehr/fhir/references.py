"""What resources point to and are not whole without: texts in Binaries; drugs, places and endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ehr.errors import BadResource
from ehr.fhir.elements import Json, get_list
from ehr.fhir.scope import reference_of

ID = r"[A-Za-z0-9._-]{1,128}"


def texts_of(resource: Json) -> list[str]:
    """Addresses of the attachments of a note or report that are text and do not carry it themselves."""
    attachments: list[Any] = []
    try:
        if resource.get("resourceType") == "DocumentReference":
            contents = get_list(resource, "content", "DocumentReference")
            attachments = [content.get("attachment") for content in contents]
        elif resource.get("resourceType") == "DiagnosticReport":
            attachments = list(get_list(resource, "presentedForm", "DiagnosticReport"))
    except BadResource:
        return []  # its reader says what is wrong
    return [
        str(one["url"])
        for one in attachments
        if isinstance(one, Mapping)
        and one.get("url")
        and not one.get("data")
        and str(one.get("contentType", "text")).startswith(("text", "application/xhtml"))
    ]


def pointed_to(resource: Json) -> list[str]:
    """References to the Medication, the Locations and the Endpoints that a resource is read with."""
    kind = str(resource.get("resourceType"))
    try:
        if kind.startswith("Medication"):
            found = [reference_of(resource, "medicationReference", kind)]
        elif kind == "Encounter":
            found = [
                reference_of(item, "location", "Encounter.location")
                for item in get_list(resource, "location", kind)
            ]
        elif kind == "ImagingStudy":
            found = [str(item.get("reference", "")) for item in get_list(resource, "endpoint", kind)]
        else:
            return []
    except BadResource:
        return []  # its reader says what is wrong
    return [reference for reference in found if reference]


def name_here(reference: str, base_url: str, kinds: str) -> tuple[str, str] | None:
    """(type, id) of a reference to this server, base_url ending in "/"; None for one elsewhere.

    kinds  the types it may be of, as "Medication|Location"
    """
    match = re.fullmatch(rf"(?:{re.escape(base_url)})?({kinds})/({ID})(?:/_history/{ID})?", reference)
    return (match[1], match[2]) if match else None
