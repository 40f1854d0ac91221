"""A site's own codes → LOINC, SNOMED CT, RxNorm or ICD-10, by a table that people keep (INTEROP 33).

CSV with a header, UTF-8 (a byte order mark is fine), one local code a line:

    system          the local code system as it is sent, such as urn:oid:1.2.3 or http://lab.example/codes
    code            the local code, as it is sent
    target_system   LOINC, SNOMED, RxNorm or ICD-10
    target_code     its code there; check digits are checked
    unit            of measured values, optional: their UCUM unit, where none is sent or one of the house
    factor          optional: what the value is multiplied by; `unit` is the unit after that
    display         optional: what it is called

Further columns, such as a comment, are passed over. The local code stays with the fact as a further coding.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ehr.codes import Code, Icd10, Loinc, RxNorm, Snomed
from ehr.errors import BadUnit, Permanent
from ehr.records import Fact, NoteRecord, ObservationRecord, PatientRecord, SetAside
from ehr.units import canonical_unit, to_canonical

REQUIRED = ("system", "code", "target_system", "target_code")
OPTIONAL = ("unit", "factor", "display")
TARGETS: dict[str, type[Code]] = {"LOINC": Loinc, "SNOMED": Snomed, "RXNORM": RxNorm, "ICD-10": Icd10}
MAX_LINES = 200_000
MAX_TOLD = 50
_CODED = ("observations", "conditions", "medications", "procedures", "allergies", "genomics")
_F = TypeVar("_F", bound=Fact)


class BadCodeMap(Permanent):
    """The table cannot be used. `problems` names line and column of each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        told = "; ".join(self.problems[:3])
        more = f" (and {len(self.problems) - 3} more)" if len(self.problems) > 3 else ""
        super().__init__(f"the code map cannot be used: {told}{more}")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a local code means."""

    code: Code
    unit: str = ""
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class CodeMap:
    """The table, read and checked. `digest` is the SHA-256 of the file: another table, another reading."""

    entries: Mapping[str, Meaning] = field(default_factory=dict)  # "system|code" → what it means
    digest: str = ""

    def __len__(self) -> int:
        return len(self.entries)

    def apply(self, record: PatientRecord) -> PatientRecord:
        """`record` with its local codes mapped.

        A value whose unit does not fit keeps its local code, and that is set aside with the reason: nothing
        is lost, and nothing is taken for what it is not.
        """
        if not self.entries:
            return record
        told: list[SetAside] = []
        changed: dict[str, Any] = {}
        for name in _CODED:
            facts = getattr(record, name)
            mapped = tuple(self._fact(fact, told) for fact in facts)
            if any(new is not old for new, old in zip(mapped, facts, strict=True)):
                changed[name] = mapped
        changed["notes"] = tuple(self._note(note) for note in record.notes)
        changed["family_history"] = tuple(
            replace(one, condition=self._code(one.condition)) for one in record.family_history
        )
        return replace(record, **changed, set_aside=(*record.set_aside, *told))

    def _code(self, code: Code) -> Code:
        found = self.entries.get(code.key)
        return found.code if found else code

    def _note(self, note: NoteRecord) -> NoteRecord:
        return replace(note, kind=self._code(note.kind)) if note.kind else note

    def _fact(self, fact: _F, told: list[SetAside]) -> _F:
        changes: dict[str, Any] = {}
        code, also = getattr(fact, "code", None), getattr(fact, "also", ())
        known = [one for one in (code, *also) if one is not None and one.key in self.entries]
        if code is not None and known and type(code) not in TARGETS.values():
            found = self.entries[known[0].key]
            changes["code"] = found.code
            if hasattr(fact, "also"):
                changes["also"] = tuple(one for one in (code, *also) if one != found.code)
        if isinstance(fact, ObservationRecord):
            if fact.value_code is not None:
                changes["value_code"] = self._code(fact.value_code)
            if "code" in changes and fact.value is not None:
                try:
                    changes |= _measured(fact, self.entries[known[0].key])
                except BadUnit as error:
                    reason = f"mapped to {changes['code'].key}, but {error}; kept under its local code"
                    told.append(SetAside("code map", fact.resource_type, fact.resource_id, reason[:500]))
                    return fact
        return replace(fact, **changes) if changes else fact


def _measured(fact: ObservationRecord, found: Meaning) -> dict[str, Any]:
    """Value, unit and range in the canonical unit of what the local code means. Raises BadUnit."""
    factor = 1.0 if found.factor is None else found.factor
    unit = found.unit if found.unit and (found.factor is not None or not fact.unit) else fact.unit
    assert fact.value is not None
    try:
        value, canonical = to_canonical(found.code.code, fact.value * factor, unit)
    except BadUnit:
        if not found.unit or unit == found.unit:
            raise
        unit = found.unit  # what was sent is a spelling of its own
        value, canonical = to_canonical(found.code.code, fact.value * factor, unit)
    low, high = (
        None if bound is None else to_canonical(found.code.code, bound * factor, unit)[0]
        for bound in (fact.low, fact.high)
    )
    return {"value": value, "unit": canonical, "low": low, "high": high}


def read_code_map(content: bytes) -> CodeMap:
    """Read a table. Raises BadCodeMap naming line and column of everything that is wrong."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadCodeMap([f"line {line}: not UTF-8; save the table as CSV UTF-8"]) from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    problems: list[str] = []
    entries: dict[str, Meaning] = {}
    lines: dict[str, int] = {}
    try:
        missing = [name for name in REQUIRED if name not in (rows.fieldnames or ())]
        if missing:
            raise BadCodeMap([f"line 1: no column {', '.join(missing)}; there must be {', '.join(REQUIRED)}"])
        for row in rows:
            line = rows.line_num
            cells = {name: (row.get(name) or "").strip() for name in (*REQUIRED, *OPTIONAL)}
            if not any(cells.values()):
                continue
            found = _read_row(cells, line, problems)
            key = f"{cells['system']}|{cells['code']}"
            if key in lines:
                problems.append(f"line {line}, column code: the same code as line {lines[key]}")
            lines[key] = line
            if found is not None:
                entries[key] = found
            if len(problems) >= MAX_TOLD or line > MAX_LINES:
                problems.append(f"line {line}: read no further")
                break
    except csv.Error as error:
        problems.append(f"line {rows.line_num}: not CSV ({error})")
    if problems:
        raise BadCodeMap(problems)
    return CodeMap(entries, hashlib.sha256(content).hexdigest())


def _read_row(cells: Mapping[str, str], line: int, problems: list[str]) -> Meaning | None:
    def wrong(column: str, what: str) -> None:
        problems.append(f"line {line}, column {column}: {what}")

    before = len(problems)
    for name in REQUIRED:
        if not cells[name]:
            wrong(name, "is empty")
    kind = TARGETS.get(cells["target_system"].upper())
    if kind is None and cells["target_system"]:
        wrong("target_system", f"is one of {', '.join(TARGETS)}")
    if kind in (Loinc, Snomed) and not _has_check_digit(kind, cells["target_code"]):
        wrong("target_code", f"is not a {cells['target_system']} code (form or check digit)")
    elif kind is not None and cells["target_code"] and not kind.shape.fullmatch(cells["target_code"]):
        wrong("target_code", f"is not a {cells['target_system']} code")
    factor = None
    if cells["factor"]:
        try:
            factor = float(cells["factor"])
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor) or factor <= 0:
            wrong("factor", "is not a number above 0, with a point and no comma")
        elif not cells["unit"]:
            wrong("unit", "is needed beside a factor: the unit after it")
    if len(problems) > before or kind is None:
        return None
    if cells["unit"] and canonical_unit(cells["target_code"]) is not None:
        try:
            to_canonical(cells["target_code"], 1.0, cells["unit"])
        except BadUnit as error:
            if "outside what is possible" not in str(error):
                wrong("unit", str(error))
                return None
    return Meaning(kind(cells["target_code"], cells["display"]), cells["unit"], factor)


def _has_check_digit(kind: type[Code], code: str) -> bool:
    if not kind.shape.fullmatch(code):
        return False
    if not code[0].isdigit():
        return True  # LOINC parts and answers (LP, LA) are numbered otherwise
    digits = [int(character) for character in code if character.isdigit()]
    return _luhn(digits) if kind is Loinc else _verhoeff(digits)


def _luhn(digits: list[int]) -> bool:
    """LOINC's check digit, mod 10 (LOINC Users' Guide, appendix)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


_PERMUTED = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _verhoeff(digits: list[int]) -> bool:
    """SNOMED CT's check digit: Verhoeff's, over the dihedral group of ten (SNOMED CT TIG, "Check-digit")."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        for _ in range(place % 8):
            digit = _PERMUTED[digit]
        check = _multiply(check, digit)
    return check == 0


def _multiply(a: int, b: int) -> int:
    """In the dihedral group D5."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5
