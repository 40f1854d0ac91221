"""Whether a resource of ours is FHIR R4 in structure, by models that nobody here wrote (fhir.resources, R4B).

They know elements, cardinalities and types. Required value sets they do not enforce (INTEROP 35): whoever
builds a resource checks the codes it relies on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehr.errors import BadResource

SHOWN = 5  # faults of one resource


def check_structure(resource: Mapping[str, Any]) -> None:
    """Raises BadResource with the element of each fault and its kind; never with a value."""
    from fhir.resources.R4B import get_fhir_model_class  # here: a third of a second, for those who send only
    from pydantic import ValidationError

    kind = str(resource.get("resourceType", ""))
    try:
        model: Any = get_fhir_model_class(kind)
    except ValueError:
        raise BadResource(f"{kind[:60]!r} is no type of FHIR R4") from None
    try:
        model.model_validate(dict(resource))
    except ValidationError as error:
        faults = [".".join(map(str, one["loc"])) + f" ({one['type']})" for one in error.errors()[:SHOWN]]
        raise BadResource(f"a {kind} of ours is not FHIR R4 at {', '.join(faults)}") from None
