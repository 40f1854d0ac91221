"""Free text without what names a patient: by what we know of them, and by shapes.

    known     their own names and numbers, wherever they stand, whatever their case or accents
    shapes    dates, numbers of five digits and more, ids of letters and digits, e-mail and web addresses,
              telephone numbers, streets, "Dr X", "Mr Y", what follows "Name:", "MRN:", "DOB:", ages over 89

A rule is not a reader. A relative or a colleague called by name alone, a rare occupation, a place, a
nickname stay: scrubbed text is not anonymous, and is left out of research copies unless it is asked for.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

from ehr.records import PatientRecord

LEAST_NAME = 2  # letters of a name worth looking for
LEAST_NUMBER = 3  # characters of an id worth looking for
_MONTH = (
    r"(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni?|july?|juli?|aug(?:ust)?|"
    r"sep(?:t(?:ember)?)?|oct(?:ober)?|okt(?:ober)?|nov(?:ember)?|dec(?:ember)?|dez(?:ember)?)\.?"
)
_LABEL = (
    r"(?:patient(?:'s)?(?:[ ]?name)?|name|surname|first[ ]name|mrn|medical[ ]record(?:[ ]number)?|dob|"
    r"date[ ]of[ ]birth|born|ssn|address|phone|tel(?:ephone)?|mobile|fax|e-?mail|account(?:[ ]number)?|"
    r"insurance(?:[ ]number)?|next[ ]of[ ]kin|contact|signed(?:[ ]by)?|dictated[ ]by|author)"
)
_WORD = r"[A-ZÀ-ÖØ-Þ][\w'’À-ÿ-]+"
# In this order: what a line's label announces goes before its parts do. A note is anybody's text, so each
# takes time in proportion to it: a run of letters, digits and hyphens is begun at its first character only.
SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("LABELLED", re.compile(rf"(?im)(?<=\b){_LABEL}[ ]*[:#=][ ]*[^\n;|]+")),
    ("ADDRESS", re.compile(
        r"(?i)(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)+|\b(?:https?://|www\.)\S+"
    )),
    ("DATE", re.compile(r"\b\d{1,4}([-/.])\d{1,2}\1\d{1,4}(?:[T ]\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?Z?)?")),
    ("DATE", re.compile(rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th|\.)?[ ]?(?:of[ ])?{_MONTH}(?:,?[ ]?\d{{2,4}})?\b")),
    ("DATE", re.compile(rf"(?i)\b{_MONTH}[ ]\d{{1,2}}(?:st|nd|rd|th)?(?:,?[ ]\d{{4}})?\b")),
    ("DATE", re.compile(rf"(?i)\b{_MONTH}[ ,]+\d{{4}}\b|\b(?:19|20)\d{{2}}\b")),
    ("AGE", re.compile(r"(?i)\b(?:9\d|1[0-3]\d)(?=[ -]?(?:y(?:ears?)?|yrs?|yo|y/o)[ -]?(?:old|o)?\b)")),
    ("PHONE", re.compile(  # seven digits and more, in groups
        r"(?<![\w.])(?=(?:[^\d\n]?\d){7})\+?\(?\d{1,5}\)?(?:[ .-]\(?\d{2,7}\)?){1,5}(?![\w.])"
    )),
    ("NUMBER", re.compile(r"\b\d[\d-]{4,}\d?\b")),
    ("ID", re.compile(
        r"(?<![\w-])-*+(?!\d{1,3}-(?:years?|yrs?|y|months?|weeks?|days?|hours?|min|h|fold|mm|cm|lead|slice)\b"
        r"(?![\w-]*\d{2}))"
        r"(?=[\w-]*\d{2})(?=[\w-]*[A-Za-z])[A-Za-z0-9][\w-]{3,}\w"
    )),
    ("STREET", re.compile(
        rf"\b\d{{1,5}}[a-z]?[ ](?:{_WORD}[ ]){{1,3}}"
        r"(?:St|Street|Ave|Avenue|Rd|Road|Ln|Lane|Dr|Drive|Blvd|Way|Court|Ct)\b"
        r"|(?<![\w'’-])(?=[\w'’-]*[A-ZÀ-ÖØ-Þ])[\w'’-]+(?i:straße|strasse|str\.|weg|gasse|platz)"
        r"[ ]\d{1,4}[a-z]?\b"
    )),
    ("NAME", re.compile(
        rf"\b(?:Dr|Prof|Mr|Mrs|Ms|Miss|Herr|Frau|Hr|Fr|Sr|Sra|Mme|Mlle)\.?[ ]{_WORD}(?:[ ]{_WORD}){{0,2}}"
    )),
)  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class Known:
    """What identifies one patient, as their own record tells it: words of names, and ids."""

    names: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()

    @property
    def everything(self) -> frozenset[str]:
        return self.names | self.numbers


@dataclass(slots=True)
class Scrubber:
    """Scrubs the texts of one patient; `found` counts what was taken out, by kind."""

    known: Known
    found: Counter[str] = field(default_factory=Counter)
    _names: re.Pattern[str] | None = field(init=False)
    _numbers: re.Pattern[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self._names = _any_of({_folded(one) for one in self.known.names}, r"(?<![^\W\d_])", r"(?![^\W\d_])")
        self._numbers = _any_of({_folded(one) for one in self.known.numbers}, "", "")

    def scrub(self, text: str) -> str:
        """`text` with "[NAME]", "[DATE]" … in place of what was found."""
        for kind, pattern in (("ID", self._numbers), ("NAME", self._names)):
            text = self._replace_folded(text, pattern, kind)
        for kind, shape in SHAPES:
            text, times = shape.subn("90+" if kind == "AGE" else f"[{kind}]", text)
            self.found[kind] += times
        return text

    def _replace_folded(self, text: str, pattern: re.Pattern[str] | None, kind: str) -> str:
        """Replace what matches in the text without case and accents, at the same places of the original."""
        if pattern is None:
            return text
        text = unicodedata.normalize("NFC", text)
        folded = "".join(_folded_letter(letter) for letter in text)
        pieces, at = [], 0
        for match in pattern.finditer(folded):
            pieces += [text[at : match.start()], f"[{kind}]"]
            at = match.end()
            self.found[kind] += 1
        return "".join([*pieces, text[at:]])


def known_of(record: PatientRecord) -> Known:
    """Words of the patient's names and all their ids, in one spelling each."""
    identity = record.patient
    words = re.split(r"[\s,;^·-]+", f"{identity.family} {identity.given}")
    names = {word.strip(".'’()") for word in words}
    numbers = {one.value.strip() for one in identity.identifiers} | {identity.resource_id}
    return Known(
        frozenset(name for name in names if len(name) >= LEAST_NAME),
        frozenset(number for number in numbers if len(number) >= LEAST_NUMBER),
    )


def _any_of(words: set[str], before: str, after: str) -> re.Pattern[str] | None:
    if not words:
        return None
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, longest_first))}){after}")


def _folded(word: str) -> str:
    return "".join(_folded_letter(letter) for letter in unicodedata.normalize("NFC", word))


def _folded_letter(letter: str) -> str:
    """One letter for one letter, so that places stay: lower case, without its accent."""
    base = unicodedata.normalize("NFD", letter)[0].lower()
    return base if len(base) == 1 else letter
