"""FHIR Observation → ObservationRecords in canonical units. https://hl7.org/fhir/R4/observation.html

A blood pressure becomes one record per component, `part` being the component's code. A component that cannot
be used is set aside alone. Result: `available_at` is the later of effective[x] and issued (INTEROP 34).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypedDict

from ehr.codes import Code, Loinc
from ehr.errors import BadResource, BadUnit
from ehr.fhir.dates import get_choice, get_span, latest, start_of
from ehr.fhir.elements import (
    Concept,
    Json,
    get_bool,
    get_concept,
    get_concepts,
    get_list,
    get_number,
    get_object,
    get_text,
)
from ehr.fhir.genomics import is_genomic, read_genomics
from ehr.fhir.subject import About, Unused
from ehr.quantities import BY_LOINC
from ehr.records import Fact, ObservationRecord
from ehr.units import to_canonical

UCUM = "http://unitsofmeasure.org"
_SIDES = {
    "valueRange": ("low", "high"),
    "valueRatio": ("numerator", "denominator"),
    "valuePeriod": ("start", "end"),
}
_VALUE = re.compile(r"value[A-Z]\w+")


@dataclass(frozen=True, slots=True)
class _Value:
    """What value[x] said; `sent_unit` is for the reference range, which often leaves its own out."""

    number: float | None = None
    unit: str = ""
    sent_unit: str = ""
    code: Code | None = None
    text: str = ""

    @property
    def says_something(self) -> bool:
        return self.number is not None or self.code is not None or bool(self.text)


class _Common(TypedDict):
    """What an Observation and its components share."""

    resource_type: str
    resource_id: str
    available_at: datetime | None
    status: str
    category: str
    effective_at: datetime | None
    encounter_id: str


def read_observation(about: About) -> list[Fact]:
    """Read an Observation: its value and its components, each a record; genomic ones to GenomicRecords.

    Raises BadResource, Retraction (entered-in-error, cancelled) and Unused (a panel that only groups others).
    """
    resource = about.resource
    status = about.status(retracted=frozenset({"cancelled"}))
    concept = get_concept(resource, "code", "Observation")
    if is_genomic(resource, concept):
        return read_genomics(about, concept)
    if concept is None:
        raise BadResource("Observation.code has neither coding nor text")
    start, end = get_choice(resource, "effective", "Observation")
    issued = get_span(resource, "issued", "Observation")
    categories = get_concepts(resource, "category", "Observation")
    known: _Common = {
        "resource_type": "Observation",
        "resource_id": about.identity,
        "available_at": latest(end or start, issued),
        "status": status or "unknown",
        "category": categories[0].code.code[:40] if categories else "",
        "effective_at": start_of(end or start or issued),
        "encounter_id": about.id_of("encounter"),
    }
    facts: list[Fact] = []
    own = _read_measured(resource, concept, "Observation", known)
    if own is not None:
        facts.append(own)
    components = get_list(resource, "component", "Observation")
    for part in components:
        try:
            facts.append(_read_component(part, known, [fact.part for fact in facts]))
        except BadResource as error:
            about.keep_apart(str(error))
    if not facts and not components:
        if resource.get("hasMember"):
            raise Unused("Observation (panel of others)")
        raise BadResource("Observation has no value[x], dataAbsentReason, component or hasMember")
    return facts


def _read_component(part: Json, known: _Common, taken: list[str]) -> ObservationRecord:
    concept = get_concept(part, "code", "Observation.component")
    if concept is None:
        raise BadResource("Observation.component.code has neither coding nor text")
    name, count = concept.code.code[:70], 1
    while (name if count == 1 else f"{name}#{count}") in taken:
        count += 1
    own = name if count == 1 else f"{name}#{count}"
    record = _read_measured(part, concept, "Observation.component", known, own)
    if record is None:
        raise BadResource("Observation.component has neither value[x] nor dataAbsentReason")
    return record


def _read_measured(
    parent: Json, concept: Concept, element: str, known: _Common, part: str = ""
) -> ObservationRecord | None:
    """The value and range of an Observation or component, with what is `known`; None without a value."""
    try:
        value = _read_value(parent, concept.code, element)
        absent = get_concept(parent, "dataAbsentReason", element)
        if not value.says_something and absent is None:
            return None
        low, high = _read_range(parent, concept.code, element, value)
    except BadUnit as error:
        raise BadResource(f"{element}.value[x]: {error}") from error
    return ObservationRecord(
        **known,
        part=part,
        code=concept.code,
        also=concept.also,
        value=value.number,
        unit=value.unit,
        value_code=value.code,
        value_text=value.text[:500],
        absent_reason=absent.code.code[:60] if absent else "",
        low=low,
        high=high,
    )


def _read_value(parent: Json, code: Code, element: str) -> _Value:
    names = [name for name in parent if name.startswith("value") and _VALUE.fullmatch(name)]
    if not names:
        return _Value()
    if len(names) > 1:
        raise BadResource(f"{element} has more than one value[x]")
    name, value = names[0], parent[names[0]]
    where = f"{element}.{name}"
    if name == "valueQuantity":
        return _read_quantity(get_object(parent, name, element) or {}, code, where)
    if name == "valueCodeableConcept":
        concept = get_concept(parent, name, element)
        return _Value(code=concept.code, text=concept.text) if concept else _Value()
    if name == "valueInteger":
        number = get_number(parent, name, element)
        return _Value() if number is None else _measured(number, "", code)
    if name == "valueBoolean":
        flag = get_bool(parent, name, element)
        if code.code in BY_LOINC:
            raise BadResource(f"{where} where a measured value in {BY_LOINC[code.code].unit} is expected")
        return _Value(float(bool(flag)), "1", text=str(bool(flag)).lower()) if flag is not None else _Value()
    if name in ("valueString", "valueDateTime", "valueTime"):
        return _Value(text=get_text(parent, name, element).strip())
    if name in ("valueRange", "valueRatio", "valuePeriod"):
        return _Value(text=_as_text(name, value, where))
    raise BadResource(f"{where} is not a kind of value Tessera reads")


def _read_quantity(quantity: Json, code: Code, element: str) -> _Value:
    number = get_number(quantity, "value", element)
    if number is None:
        return _Value()
    unit = unit_of(quantity, element)
    value = _measured(number, unit, code)
    comparator = get_text(quantity, "comparator", element)[:2]
    if comparator:  # beyond what could be measured: the limit stands for it, and the text says so
        value = replace(value, text=f"{comparator} {value.number:g} {value.unit}".strip())
    return value


def unit_of(quantity: Json, element: str) -> str:
    """The unit of a Quantity: its UCUM code, else its printed unit, else whatever code it has."""
    code, unit = get_text(quantity, "code", element), get_text(quantity, "unit", element)
    if code and get_text(quantity, "system", element) in (UCUM, "", "urn:oid:2.16.840.1.113883.6.8"):
        return code
    return unit or code


def _measured(number: float, unit: str, code: Code) -> _Value:
    if not isinstance(code, Loinc):
        return _Value(number, unit[:40], unit)
    value, canonical = to_canonical(code.code, number, unit)
    return _Value(value, canonical[:40], unit)


def _read_range(parent: Json, code: Code, element: str, value: _Value) -> tuple[float | None, float | None]:
    """The first reference range; a bound whose unit does not fit is left out, never used."""
    if value.number is None:
        return None, None
    bounds: list[float | None] = []
    ranges = get_list(parent, "referenceRange", element)
    for side in ("low", "high"):
        bound = get_object(ranges[0], side, f"{element}.referenceRange") if ranges else None
        number = get_number(bound, "value", f"{element}.referenceRange.{side}") if bound else None
        if bound is None or number is None:
            bounds.append(None)
            continue
        try:
            unit = unit_of(bound, f"{element}.referenceRange.{side}") or value.sent_unit
            found = _measured(number, unit, code)
        except BadUnit:
            bounds.append(None)
            continue
        bounds.append(found.number if found.unit == value.unit else None)
    return bounds[0], bounds[1]


def _as_text(name: str, value: Any, element: str) -> str:
    if not isinstance(value, dict):
        raise BadResource(f"{element} must be an object")
    sides = {
        "valueRange": ("low", "high"),
        "valueRatio": ("numerator", "denominator"),
        "valuePeriod": ("start", "end"),
    }
    parts = []
    for side in sides[name]:
        if name == "valuePeriod":
            parts.append(get_text(value, side, element))
            continue
        bound = get_object(value, side, element) or {}
        number = get_number(bound, "value", f"{element}.{side}")
        parts.append("" if number is None else f"{number:g} {unit_of(bound, f'{element}.{side}')}".strip())
    return (":" if name == "valueRatio" else " – ").join(parts) if any(parts) else ""
