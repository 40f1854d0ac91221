"""Reading the elements of a FHIR JSON object, whose shape nobody has checked yet.

An element of the wrong JSON type raises `BadResource` naming the element and the rule (FHIR R4 §2.6.2, JSON
representation); an absent one is None, "" or an empty list. Texts lose what no database stores (NUL, lone
surrogates).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ehr.codes import Code, Loinc, OtherCode, RxNorm, Snomed, parse_coding
from ehr.errors import BadResource
from ehr.quantities import BY_LOINC

Json = Mapping[str, Any]

MAX_ID = 128  # FHIR allows 64 characters; some servers hand out longer ones (docs/oddities.md)
MAX_CODE = 80
MAX_KEPT = 300  # of a display or a system
_Coding = tuple[str, str, str]  # code, system, display


def get_object(parent: Json, name: str, element: str) -> Json | None:
    """The object `parent[name]`; None when absent."""
    value = parent.get(name)
    if value is None or type(value) is dict:
        return value
    if not isinstance(value, Mapping):
        raise BadResource(f"{element}.{name} must be an object")
    return value


def get_list(parent: Json, name: str, element: str) -> list[Json]:
    """The list of objects `parent[name]`; empty when absent. A lone object counts as a list of one."""
    value = parent.get(name)
    if value is None:
        return []
    if type(value) is not list:
        if isinstance(value, Mapping):
            return [value]
        raise BadResource(f"{element}.{name} must be a list of objects")
    for item in value:
        if type(item) is not dict and not isinstance(item, Mapping):
            raise BadResource(f"{element}.{name} must be a list of objects")
    return value


def get_text(parent: Json, name: str, element: str) -> str:
    """The string `parent[name]`; "" when absent."""
    value = parent.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadResource(f"{element}.{name} must be a string")
    return value if value.isascii() and "\0" not in value else storable(value)


def get_texts(parent: Json, name: str, element: str) -> list[str]:
    """The list of strings `parent[name]`; empty when absent."""
    value = parent.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadResource(f"{element}.{name} must be a list of strings")
    return [storable(item) for item in value]


def get_number(parent: Json, name: str, element: str) -> float | None:
    """The finite number `parent[name]`; None when absent."""
    value = parent.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadResource(f"{element}.{name} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadResource(f"{element}.{name} must be a finite number")
    return number


def get_bool(parent: Json, name: str, element: str) -> bool | None:
    """The boolean `parent[name]`; None when absent."""
    value = parent.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadResource(f"{element}.{name} must be true or false")
    return value


def storable(text: str) -> str:
    """`text` without NUL and without lone surrogates, which neither UTF-8 nor PostgreSQL can hold."""
    if text.isascii():
        return text.replace("\0", "") if "\0" in text else text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


@dataclass(frozen=True, slots=True)
class Concept:
    """A CodeableConcept: the coding Tessera goes by, the others, and the text."""

    code: Code
    also: tuple[Code, ...]
    text: str

    @property
    def codes(self) -> tuple[Code, ...]:
        return (self.code, *self.also)

    def has(self, codes: frozenset[str]) -> bool:
        """Whether one of the codings is in `codes` (keys `system|code`)."""
        return any(code.key in codes for code in self.codes)


def get_concept(parent: Json, name: str, element: str) -> Concept | None:
    """The CodeableConcept `parent[name]`; None when absent or without coding and text."""
    value = get_object(parent, name, element)
    return None if value is None else read_concept(value, f"{element}.{name}")


def get_concepts(parent: Json, name: str, element: str) -> list[Concept]:
    """The CodeableConcepts of the list `parent[name]` that say something."""
    found = (read_concept(item, f"{element}.{name}") for item in get_list(parent, name, element))
    return [concept for concept in found if concept is not None]


def read_concept(value: Json, element: str) -> Concept | None:
    """Read a CodeableConcept. First LOINC of a known quantity, LOINC, SNOMED CT or RxNorm, then as sent."""
    codings = tuple(_texts_of(coding, f"{element}.coding") for coding in get_list(value, "coding", element))
    text = get_text(value, "text", element)
    is_usual = len(text) <= MAX_KEPT and len(codings) <= 10
    return _concept(codings, text) if is_usual else _concept.__wrapped__(codings, text)


@lru_cache(maxsize=5_000)  # a hospital says the same few thousand things over and over
def _concept(codings: tuple[_Coding, ...], text: str) -> Concept | None:
    codes: list[Code] = []
    for coding in codings:
        code = _code(coding)
        if code is not None and code not in codes:
            codes.append(code)
    if not codes:
        if not text.strip():
            return None
        codes.append(OtherCode(text.strip()[:MAX_CODE], text[:300]))
    codes.sort(key=_rank)
    return Concept(codes[0], tuple(codes[1:]), text or codes[0].display)


def read_coding(value: Json, element: str) -> Code | None:
    """Read a Coding; None when it has no code."""
    return _code(_texts_of(value, element))


def _texts_of(value: Json, element: str) -> _Coding:
    code, system = get_text(value, "code", element).strip(), get_text(value, "system", element)
    if len(code) > MAX_CODE:
        raise BadResource(f"{element}.code is longer than {MAX_CODE} characters")
    # zero-width spaces stand inside some displays, so that long names may wrap (docs/oddities.md)
    display = get_text(value, "display", element).replace("\u200b", "")[:MAX_KEPT]
    return code, system[:MAX_KEPT], display


def _code(coding: _Coding) -> Code | None:
    code, system, display = coding
    return parse_coding({"code": code, "system": system, "display": display})


def _rank(code: Code) -> int:
    if isinstance(code, Loinc):
        return 0 if code.code in BY_LOINC else 1
    return 2 if isinstance(code, Snomed | RxNorm) else 3
