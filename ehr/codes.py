"""Codes as types: a LOINC code cannot be handed where a SNOMED CT code is meant.

`parse_coding` turns a FHIR Coding into the right type; a system we do not know stays `OtherCode` with its
URI, so nothing is lost. A code that breaks its system's shape stays an `OtherCode` of that system as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Code:
    """A concept of a code system. Equality is by system and code; `display` is for people."""

    code: str
    display: str = ""

    system: ClassVar[str] = ""
    shape: ClassVar[re.Pattern[str]] = re.compile(r".+")

    def __post_init__(self) -> None:
        if not self.shape.fullmatch(self.code):
            raise ValueError(
                f"{self.code!r} is not a {type(self).__name__} code (expected {self.shape.pattern})"
            )

    @property
    def uri(self) -> str:
        """The code system's URI."""
        return self.system

    @property
    def key(self) -> str:
        """`system|code`, FHIR's token form."""
        return f"{self.uri}|{self.code}"


@dataclass(frozen=True, slots=True)
class Loinc(Code):
    """https://loinc.org, digits, hyphen, check digit."""

    system: ClassVar[str] = "http://loinc.org"
    shape: ClassVar[re.Pattern[str]] = re.compile(r"(LA|LP|LL)?\d{1,8}-\d")


@dataclass(frozen=True, slots=True)
class Snomed(Code):
    """SNOMED CT identifier, 6 to 18 digits."""

    system: ClassVar[str] = "http://snomed.info/sct"
    shape: ClassVar[re.Pattern[str]] = re.compile(r"[1-9]\d{5,17}")


@dataclass(frozen=True, slots=True)
class RxNorm(Code):
    """RxNorm concept identifier."""

    system: ClassVar[str] = "http://www.nlm.nih.gov/research/umls/rxnorm"
    shape: ClassVar[re.Pattern[str]] = re.compile(r"\d{1,8}")


@dataclass(frozen=True, slots=True)
class Icd10(Code):
    """ICD-10-CM; the dot is optional."""

    system: ClassVar[str] = "http://hl7.org/fhir/sid/icd-10-cm"
    shape: ClassVar[re.Pattern[str]] = re.compile(r"[A-Z]\d[0-9A-Z](\.?[0-9A-Z]{1,4})?")


@dataclass(frozen=True, slots=True)
class OtherCode(Code):
    """A code of a system without a type of its own, local ones included."""

    other_system: str = ""

    @property
    def uri(self) -> str:
        return self.other_system


_TYPES: dict[str, type[Code]] = {kind.system: kind for kind in (Loinc, Snomed, RxNorm, Icd10)}
_TYPES["http://hl7.org/fhir/sid/icd-10"] = Icd10
_TYPES["urn:oid:2.16.840.1.113883.6.1"] = Loinc
_TYPES["urn:oid:2.16.840.1.113883.6.96"] = Snomed
_TYPES["urn:oid:2.16.840.1.113883.6.88"] = RxNorm
_TYPES["urn:oid:2.16.840.1.113883.6.90"] = Icd10


def _usual_spelling(system: str) -> str:
    """The URI without what some senders add: https, a slash at the end."""
    return system.rstrip("/").replace("https://", "http://", 1)


def parse_coding(coding: Mapping[str, Any]) -> Code | None:
    """Read a FHIR Coding; None when it has no code."""
    code, system = str(coding.get("code") or "").strip(), str(coding.get("system") or "").strip()
    return _code(code, system, str(coding.get("display") or "")) if code else None


@lru_cache(maxsize=20_000)  # a hospital says the same few thousand things over and over
def _code(code: str, system: str, display: str) -> Code:
    kind = _TYPES.get(system) or _TYPES.get(_usual_spelling(system))
    if kind is not None and kind.shape.fullmatch(code):
        return kind(code, display)
    return OtherCode(code, display, system)
