"""Reading the fields of a JSON object strictly: what is missing or of another kind is named (INTEROP 8)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cds.errors import Invalid


class BadRequest(Invalid):
    """The request breaks the specification; `expression` is the path of the field that does."""

    def __init__(self, message: str, *, expression: str = "", code: str = "invalid") -> None:
        super().__init__(message)
        self.expression = expression
        self.code = code


def text(sent: Mapping[str, Any], name: str, *, within: str = "") -> str:
    """Text that must be there and not be empty."""
    path = f"{within}.{name}" if within else name
    value = sent.get(name)
    if value is None or value == "":
        raise BadRequest(f"{name} is required", expression=path, code="required")
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be text", expression=path)
    return value


def short(sent: Mapping[str, Any], name: str, limit: int, where: str) -> str:
    """The same, of at most `limit` characters."""
    value = text(sent, name, within=where)
    if len(value) > limit:
        raise BadRequest(
            f"{name} has at most {limit} characters", expression=f"{where}.{name}", code="too-long"
        )
    return value


def an_object(sent: Mapping[str, Any], name: str, *, within: str = "") -> dict[str, Any]:
    """An object that must be there."""
    path = f"{within}.{name}" if within else name
    value = sent.get(name)
    if value is None:
        raise BadRequest(f"{name} is required", expression=path, code="required")
    if not isinstance(value, dict):
        raise BadRequest(f"{name} must be an object", expression=path)
    return value


def bundle(sent: Mapping[str, Any], name: str, *, within: str) -> list[dict[str, Any]]:
    """The resources of a Bundle that must be there, each with its type."""
    held, path = an_object(sent, name, within=within), f"{within}.{name}"
    entries = held.get("entry", [])
    if held.get("resourceType") != "Bundle" or not isinstance(entries, list):
        raise BadRequest(f"{name} must be a Bundle", expression=path)
    resources = [entry.get("resource") if isinstance(entry, dict) else None for entry in entries]
    for place, resource in enumerate(resources):
        if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
            raise BadRequest("an entry holds a resource", expression=f"{path}.entry[{place}].resource")
    return [resource for resource in resources if isinstance(resource, dict)]


def moment(written: str, where: str) -> datetime:
    """An ISO 8601 moment with its time zone."""
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        raise BadRequest("not an ISO 8601 moment", expression=where) from None
    if at.tzinfo is None:
        raise BadRequest("a moment needs its time zone", expression=where)
    if not 1900 < at.year < 2200:
        raise BadRequest("a moment within reason", expression=where)
    return at
