"""Who is meant by a reference: `Patient/123`, an absolute URL, a Bundle's `urn:uuid:…`, a contained `#id`.

FHIR R4 §2.3 (References) and bundle.html#references. A server's base URL is not compared: everything read in
one go comes from one source, and ids are ids within that source.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import orjson

from ehr.errors import BadResource
from ehr.fhir.elements import MAX_ID, Json, get_list, get_object, get_text

_REFERENCE = re.compile(r"(?:.*/)?([A-Z][A-Za-z]{2,40})/([^/\s?#]+)(?:/_history/[^/\s?#]+)?", re.DOTALL)
_NO_ID = re.compile(r"[\s/?#\0]")
_URN = re.compile(r"urn:(?:uuid|oid):(\S+)")
MAX_REMEMBERED = 100_000
MAX_REMEMBERED_BINARY = 256 * 2**20  # characters of base64 in all


@dataclass(slots=True)
class Scope:
    """The resources that references may point to.

    by_url   fullUrl of the entries of the Bundle being read
    by_id    "Type/id" of what may be asked for later: Medication, Location, Observation, Binary
    outer    the scope around it: the folder's, when a Bundle of it is being read
    """

    by_url: dict[str, Json] = field(default_factory=dict)
    by_id: dict[str, Json] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)  # fullUrl → id
    outer: Scope | None = None
    _binary_size: int = 0

    def remember(self, resource: Json, full_url: str = "") -> None:
        """Make `resource` findable by its fullUrl, and by its type and id."""
        kind, own = resource.get("resourceType"), resource.get("id")
        if full_url:
            self.by_url[full_url] = resource
            self.ids[full_url] = identify(resource, full_url)
        if kind == "Binary":
            data = resource.get("data")
            self._binary_size += len(data) if isinstance(data, str) else 0
            if self._binary_size > MAX_REMEMBERED_BINARY:
                return
        if isinstance(own, str) and len(self.by_id) < MAX_REMEMBERED:
            self.by_id[f"{kind}/{own}"] = resource

    def find(self, reference: str, container: Json) -> Json | None:
        """The resource that `reference`, standing in `container`, points to; None when it is not here."""
        if reference.startswith("#"):
            for item in get_list(container, "contained", str(container.get("resourceType"))):
                if item.get("id") == reference[1:]:
                    return item
            return None
        if reference in self.by_url:
            return self.by_url[reference]
        match = _REFERENCE.fullmatch(reference)
        found = self.by_id.get(f"{match[1]}/{match[2]}") if match else None
        return found or (self.outer.find(reference, container) if self.outer else None)

    def id_of(self, reference: str) -> tuple[str, str]:
        """(resource type or "", id) that `reference` means; ("", "") when it cannot be told."""
        if reference in self.by_url:
            return str(self.by_url[reference].get("resourceType")), self.ids[reference]
        parts = _parts_of(reference) if len(reference) <= 500 else _parts_of.__wrapped__(reference)
        return parts or (self.outer.id_of(reference) if self.outer else ("", ""))


@lru_cache(maxsize=10_000)  # a patient's resources all name the same patient and few encounters
def _parts_of(reference: str) -> tuple[str, str] | None:
    match = _REFERENCE.fullmatch(reference)
    return (match[1], match[2]) if match and len(match[2]) <= MAX_ID else None


def identify(resource: Json, full_url: str = "") -> str:
    """The id of a resource: its own, else the one in its fullUrl, else a digest of its content."""
    own = resource.get("id")
    if own is not None:
        if not isinstance(own, str) or not 0 < len(own) <= MAX_ID or _NO_ID.search(own):
            raise BadResource(f"{resource.get('resourceType')}.id is not a FHIR id")
        return own
    match = _URN.fullmatch(full_url) or re.fullmatch(r".*/([^/\s?#]+)", full_url)
    if match and len(match[1]) <= MAX_ID:
        return match[1]
    try:
        content = orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # nested too deeply, or not JSON at all
        raise BadResource("the resource has no id and cannot be digested") from error
    return f"sha256-{hashlib.sha256(content).hexdigest()[:40]}"


def reference_of(parent: Json, name: str, element: str) -> str:
    """The literal reference in `parent[name]`; "" when absent."""
    value = get_object(parent, name, element)
    return get_text(value, "reference", f"{element}.{name}").strip() if value else ""


def patient_of(resource: Json, scope: Scope) -> str:
    """The id of the patient a resource is about. Raises BadResource when that cannot be told."""
    kind = str(resource.get("resourceType"))
    for name in ("subject", "patient"):
        value = resource.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise BadResource(f"{kind}.{name} must be an object")
        reference = get_text(value, "reference", f"{kind}.{name}").strip()
        if not reference:
            raise BadResource(f"{kind}.{name} has no literal reference (an identifier or a name only)")
        if reference.startswith("#"):
            raise BadResource(f"{kind}.{name} is a contained resource, which has no identity of its own")
        target, identity = scope.id_of(reference)
        if not identity:
            raise BadResource(
                f"{kind}.{name} refers to something that is not in the Bundle and is not Patient/[id]"
            )
        if target != "Patient":
            raise BadResource(f"{kind}.{name} is a {target[:40]}, not a Patient")
        return identity
    raise BadResource(f"{kind} names no patient")
