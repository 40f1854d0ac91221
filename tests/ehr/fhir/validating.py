"""Judging what we emit by validators that nobody here wrote.

fhir.resources (R4B models) knows structure; fhirkit, generated from the R4 definitions, checks it on its own;
Pyrofile checks required value sets and references (what lies at the hospital it cannot know). The tests of
`test_accompanying` show that they see faults.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import fhirkit
from fhir.resources.R4B import get_fhir_model_class
from pyrofile_validator import Validator

ELSEWHERE = ("does not resolve in local validation set", "is not loaded")  # at the hospital; IHE's profile


@lru_cache(maxsize=1)
def _pyrofile() -> Validator:
    return Validator()


def list_faults(resource: dict[str, Any]) -> list[str]:
    """Everything any of the three objects to."""
    faults = [f"fhirkit: {issue}" for issue in fhirkit.validate(resource)]
    for one in _pyrofile().validate_resource(resource).issues:
        if not one.message.endswith(ELSEWHERE):
            faults.append(f"Pyrofile: {one.path} {one.message}")
    try:
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    except ValueError as error:
        faults.append(f"fhir.resources: {error}")
    return faults
