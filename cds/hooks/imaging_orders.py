"""Which imaging study an order asks for.

What decides, in this order:

1. a coding of the order in a system that has imaging of its own: SNOMED CT, LOINC, CPT, RadLex. A code
   without its system is nobody's, and a local code says nothing. A laboratory's code (LOINC that we know as
   a measurement, CPT 8xxxx and 99xxx, RxNorm) settles that it is none.
2. the category, by system and code: laboratory and what else is not imaging settles that it is none, whatever
   the words say; imaging settles that it is one, of the kind that the words name.
3. the words the order is written in. Long ones ("ultrasound") speak for themselves, and so do short names
   that are nothing else in an order (MRI, TTE, CTPA, echo). Others of two and three letters (CT, MR, US, XR,
   PET, ...) are other things as often (a cycle threshold, Chlamydia trachomatis, Mister, pets, us), so they
   count only beside a part of the body, a technique or another imaging word.

The words are the caller's: every pattern here takes time that grows no faster than they do, and of one call
no more than MOST_IN_ALL are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cds import catalogue
from cds.hooks.replies import Coding

SNOMED, LOINC, CPT, RADLEX = catalogue.SNOMED, catalogue.LOINC, "http://www.ama-assn.org/go/cpt", "radlex"
DIAGNOSTIC_SECTIONS, OBSERVATION_CATEGORY = "v2-0074", "observation-category"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
SYSTEMS = {  # how each is spelled
    SNOMED: SNOMED, "urn:oid:2.16.840.1.113883.6.96": SNOMED,
    LOINC: LOINC, "urn:oid:2.16.840.1.113883.6.1": LOINC,
    CPT: CPT, "urn:oid:2.16.840.1.113883.6.12": CPT,
    "http://radlex.org": RADLEX, "http://www.radlex.org": RADLEX, "http://playbook.radlex.org": RADLEX,
    "urn:oid:2.16.840.1.113883.6.256": RADLEX,
    RXNORM: RXNORM, "urn:oid:2.16.840.1.113883.6.88": RXNORM,
    "http://terminology.hl7.org/codesystem/v2-0074": DIAGNOSTIC_SECTIONS,
    "http://hl7.org/fhir/v2/0074": DIAGNOSTIC_SECTIONS,
    "http://terminology.hl7.org/codesystem/observation-category": OBSERVATION_CATEGORY,
    "http://hl7.org/fhir/observation-category": OBSERVATION_CATEGORY,
}  # fmt: skip
ORDER_TYPES = frozenset({"ServiceRequest", "ProcedureRequest"})
MOST_WORDS = 1000  # characters of an order's words that are looked at: of its code, and of its categories
MOST_IN_ALL = 20_000  # of those of all orders of one call; each has an equal share
Code = tuple[str, str]  # system as in SYSTEMS, code


@dataclass(frozen=True, slots=True)
class Imaging:
    """A kind of imaging study a model may read.

    modality  fusion's name of the input it becomes; "" for imaging that no model of ours reads
    dicom     DICOM Modality (0008,0060) of its Series
    order     how it is ordered, for a suggestion; None: never suggested (CT irradiates)
    """

    modality: str
    label: str
    codes: frozenset[Code] = frozenset()
    words: tuple[re.Pattern[str], ...] = ()  # all must be found in how it is written
    dicom: tuple[str, ...] = ()
    order: Coding | None = None


def _codes(system: str, *codes: str) -> frozenset[Code]:
    return frozenset((system, code) for code in codes)


# -- words -------------------------------------------------------------------------------------------------
_REGION = (
    r"chest|thora[xc]\w*|lungs?|heart|cardiac|coronary|aort\w+|abd(?:omen|ominal)?|pelvi[sc]|head|brain|skull|neck"
    r"|(?:[ctl][ -])?spine|spinal|lumbar|cervical spine|sacrum|knees?|hips?|shoulders?|wrists?|hands?|elbows?"
    r"|ankles?|foot|feet|legs?|arms?|femur|tibia|humerus|forearm|ribs?|breasts?|carotids?|kidneys?|renal|liver"
    r"|gallbladder|pancreas|spleen|bladder|prostate|scrotum|testic\w+|thyroid|uterus|ovar\w+|fetal|veins?|venous"
    r"|arter\w+|sinus(?:es)?|orbits?|facial|extremit(?:y|ies)|whole[ -]body|skull base|joints?|bones?"
    r"|urinary tract"
)
_TECHNIQUE = (
    r"scans?|imaging|angio\w*|contrast|doppler|duplex|perfusion|views?|portable|guided|guidance|enterography"
    r"|urogra\w+|colonogra\w+|cholangio\w+|myelogra\w+|arthrogra\w+|venogra\w+"
)
# Words that may stand between. None is made of others of these and a gap, and none is a region or technique,
# where a pattern begins too: else what is read once would be read in many ways ("w/wo": w, /, wo).
_BETWEEN = (
    r"of|the|left|right|bilateral|both|upper|lower|low[ -]dose|high[ -]resolution|limited|complete"
    r"|non|wo|w|w/o|with|without|and|iv|screening|follow[ -]up|retroperitoneal"
    r"|transabdominal|transvaginal|\d+"
)
_GAP = r"[\s,:;/()&+-]+"
_BESIDE = rf"(?:{_GAP}(?:{_BETWEEN}))*{_GAP}(?:{_REGION}|{_TECHNIQUE})\b"
# what a laboratory writes: then CT is a cycle threshold or an organism
_LABORATORY = re.compile(
    r"\b(?:naat|pcr|rna|dna|swabs?|cultures?|serum|plasma|assay|antigen|antibod\w+|titers?|smear|specimen|probe"
    r"|amplification|chlamydia|gonorrh\w+|gc|cycle threshold)\b",
    re.IGNORECASE,
)


_WORDS_TOO = {"US", "MR", "PET"}
_CALL_US = re.compile(
    r"\b(?:call|contact|tell|inform|notify|let|to|with|by|from|give|send|see|of) us\b", re.IGNORECASE
)


def _short(*names: str) -> str:
    """Names of two and three letters beside a part of the body or a technique.

    names  in capitals; in other letters they count, too, unless they are words then (us, Mr, pet)
    """
    spelled = "|".join(one if one in _WORDS_TOO else f"(?i:{one})" for one in names)
    return (
        rf"\b(?-i:{spelled})\b{_BESIDE}"
        rf"|\b(?:{_REGION}|{_TECHNIQUE})\b(?:{_GAP}(?:{_BETWEEN}))*{_GAP}(?-i:{spelled})\b(?=\s*(?:$|[,;:(/]|w|scan))"
    )


def _words(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(one, re.IGNORECASE) for one in patterns)


# names that are nothing else in an order; in capitals where a word is written like them (Dexa, a tee shirt)
_ECHO = (
    r"\becho\b(?![ -]?(?:virus|program|project|clinic))|(?-i:\bTTE\b)|(?-i:\bTEE\b)(?! shirt)"  # by the heart
)
_CTPA = r"\bctpa\b|\bct pulmonary angio"
_ALONE = (
    rf"{_ECHO}|{_CTPA}|\bmri\b(?! (?:safety|compatib|clearance|consent|question))"
    r"|\b(?:mrcp|ldct|cbct|mammo)\b"
    r"|(?-i:\bDE?XA\b)(?!\W{0,3}(?:suppress|inj|\d))|(?-i:\bKUB\b)"
    r"|\b(?:v[/-]?q|ventilation[ /-](?:and )?perfusion|hida|muga|bone|dexa|gallium|thallium) scan"
)
_CHEST = rf"\b(?:chest(?! (?:pain|tube|drain))|thora[xc]|lung)|{_CTPA}"
_X_RAY = rf"x-? ?rays?\b|radiogra(?:ph|m)|{_short('XR', 'CR', 'DX')}"
_CT = rf"computed tomogra|\bcat scan|\b(?:angio|pet)[ -]ct\b|{_short('CT', 'CTA', 'HRCT')}|{_CTPA}|\bldct\b"
_LONG = (
    r"x-? ?rays?\b|radiogra(?:ph|m)|tomogra|magnetic resonance|ultraso|sonogra(?:m|ph)|echocardio|angiogra"
    r"|scintigra|mammogra|fluorosc|positron emission|\bpet[/ -]ct\b|\bcxr\b|densitometry|cat scan"
    r"|cystourethrogra|bone density"
)
ANY_IMAGING = re.compile(
    f"{_LONG}|{_ALONE}|{_short('XR', 'CT', 'CTA', 'CTV', 'HRCT', 'MR', 'MRA', 'MRV', 'PET')}"
    f"|{_short('US', 'NM', 'SPECT', 'MG', 'RF')}",
    re.IGNORECASE,
)

# -- codes -------------------------------------------------------------------------------------------------
KINDS: tuple[Imaging, ...] = (
    Imaging(
        "image",
        "Chest radiograph",
        _codes(SNOMED, "399208008")
        | _codes(CPT, "71045", "71046", "71047", "71048")
        | _codes(LOINC, "36643-5", "30745-4", "36554-4"),
        _words(rf"{_X_RAY}|\bcxr\b", rf"{_CHEST}|\bcxr\b"),
        ("CR", "DX", "DR", "RG"),
        Coding("399208008", SNOMED, "Plain chest X-ray"),
    ),
    Imaging(
        "cine",
        "Echocardiogram",
        _codes(SNOMED, "40701008", "433236007", "252418006")
        | _codes(CPT, "93303", "93304", "93306", "93307", "93308")
        | _codes(LOINC, "42148-7"),
        _words(rf"echocardio|{_ECHO}|(?:cardiac|heart) ultraso|ultraso\w{{1,20}} of (?:the )?heart"),
        ("US",),
        Coding("40701008", SNOMED, "Echocardiography"),
    ),
    Imaging(
        "volume",
        "Chest CT",
        _codes(SNOMED, "169069000")
        | _codes(CPT, "71250", "71260", "71270", "71271")
        | _codes(LOINC, "24627-2"),
        _words(_CT, _CHEST),
        ("CT",),
    ),
)
OTHER = Imaging("", "This imaging study")
# Descendants of 363679005 |Imaging (procedure)| that orders are written in; others are known by their words
# or category. Names as in DICOM PS3.16.
IMAGING_PROCEDURES = _codes(
    SNOMED,
    "363679005", "441662001",  # imaging, diagnostic imaging
    "168537006", "77477000", "113091000", "16310003", "44491008", "71651007", "77343006", "169014003",
    "717193008", "105371005", "241686001", "27483000", "116152004", "399331006",
    "413815006", "419545005", "426005005", "241553009", "241539009", "303680000", "303653007", "241547009",
    "241615005", "241620005", "241663008", "426252008", "719178004", "433139009", "446315002", "431609005",
    "105376000", "433231002", "433232009", "433233004", "433235006", "431852008", "439858009", "252421008",
    "47079000", "24135002", "33367005", "252427007", "419416005", "35621002", "35202002", "41440006",
    "443271005", "764704008", "416323006", "241439007", "702767007", "241443006", "22891007", "431511008",
)  # fmt: skip
# LOINC codes of the radiology class; the others (there are thousands) are known by their names, which begin
# with the modality ("XR Wrist 2 Views")
IMAGING_OF_LOINC = _codes(
    LOINC,
    "18748-4", "41806-1", "24725-4", "39142-5", "25045-6", "24590-2", "25056-3", "18756-7", "46358-8",
    "49118-3", "46375-2", "24601-7", "24616-5", "24534-0", "43771-5", "24733-8", "44174-1", "39448-6",
    "39445-2", "38036-0", "28614-6", "24859-1", "24869-0", "24884-9", "25002-7", "24907-8", "24990-4",
    "39453-6", "25010-0", "39036-9", "43468-8", "25061-3", "24604-1",
)  # fmt: skip
_CPT_IMAGING = (  # radiology without radiation oncology and treatment, echocardiography, duplex scans
    (70010, 77092), (78012, 78999), (93303, 93356), (93880, 93893), (93925, 93931), (93970, 93990),
)  # fmt: skip
_CPT_NONE = ((77261, 77799), (79005, 79999), (80000, 89999), (99000, 99999))
_CATEGORIES_IMAGING = (
    _codes(SNOMED, "363679005")
    | _codes(DIAGNOSTIC_SECTIONS, "RAD", "IMG", "CUS", "RUS", "OUS", "VUS", "CT", "NMR", "NMS", "RX", "XRC")
    | _codes(OBSERVATION_CATEGORY, "imaging")
    | _codes(LOINC, "LP29684-5", "18748-4")
)
_CATEGORIES_NONE = _codes(SNOMED, "108252007", "409063005", "409073007", "387713003", "386053000") | _codes(
    OBSERVATION_CATEGORY, "laboratory", "vital-signs", "social-history", "survey", "therapy", "activity"
)
_CATEGORY_IMAGING = re.compile(
    r"\W*(?:diagnostic )?(?:imaging|radiology)(?: (?:studies|procedures?))?\W*", re.I
)
_CATEGORY_NONE = re.compile(
    r"\b(?:lab(?:s|oratory)?|pathology|microbiology|therapy|referral|nursing|diet|counsel\w+|education)\b",
    re.I,
)


# -- deciding ----------------------------------------------------------------------------------------------
def imaging_ordered(orders: Sequence[Mapping[str, Any]]) -> list[Imaging]:
    """The imaging studies that draft orders ask for, each kind once."""
    return imaging_named([order for order in orders if not _is_not_to_be(order)])


def imaging_named(orders: Sequence[Mapping[str, Any]]) -> list[Imaging]:
    """Those that draft orders are about, whether they ask for them or forbid them."""
    about = [order for order in orders if order.get("resourceType") in ORDER_TYPES]
    share = min(MOST_WORDS, MOST_IN_ALL // max(len(about), 1))
    found = [recognise(order, most=share) for order in about]
    return list(dict.fromkeys(one for one in found if one is not None))


def _is_not_to_be(order: Mapping[str, Any]) -> bool:
    """Whether an order says that something must not be done, or no longer holds."""
    return order.get("doNotPerform") is True or order.get("status") in ("revoked", "entered-in-error")


def recognise(order: Mapping[str, Any], *, most: int = MOST_WORDS) -> Imaging | None:
    """What an order is about; None when it is no imaging.

    most  characters that are read of the words of its code, and as many of those of its categories
    """
    codes, written = _said(order.get("code"), most)
    written = _CALL_US.sub(" ", written)
    for kind in KINDS:
        if codes & kind.codes:
            return kind
    by_code = _verdict(_of_code(*code) for code in codes)
    if by_code is False:
        return None
    by_category = _verdict(_of_category(*one) for one in _categories(order.get("category"), most))
    if by_category is False and by_code is None:
        return None
    is_laboratory = _LABORATORY.search(written) is not None
    if is_laboratory and by_code is None and by_category is None:
        return None
    for kind in KINDS:
        if all(word.search(written) for word in kind.words):
            return kind
    return OTHER if by_code or by_category or ANY_IMAGING.search(written) else None


def _verdict(said: Any) -> bool | None:
    """True: imaging; False: something else; None: nothing was said. Imaging wins, as the narrower claim."""
    found = {one for one in said if one is not None}
    return True if True in found else (False if found else None)


def _of_code(system: str, code: str) -> bool | None:
    if system == RADLEX:  # the lexicon of radiology: whatever is ordered by it is imaging
        return True if re.fullmatch(r"RP?ID\d+", code) else None
    if system == RXNORM or (system == LOINC and code in _MEASURED):
        return False
    if system == CPT and re.fullmatch(r"\d{5}", code):
        number = int(code)
        if any(low <= number <= high for low, high in _CPT_NONE):
            return False
        return True if any(low <= number <= high for low, high in _CPT_IMAGING) else None
    return True if (system, code) in IMAGING_PROCEDURES | IMAGING_OF_LOINC else None


_MEASURED = frozenset(
    code for one in catalogue.LATEST if one != catalogue.EJECTION_FRACTION for code in one.loinc
)


def _of_category(codes: set[Code], written: str) -> bool | None:
    if codes & _CATEGORIES_IMAGING:
        return True
    if codes & _CATEGORIES_NONE or any(system == DIAGNOSTIC_SECTIONS for system, _ in codes):
        return False
    if _CATEGORY_IMAGING.fullmatch(written):
        return True
    return False if _CATEGORY_NONE.search(written) else None


def _categories(sent: Any, most: int) -> Iterator[tuple[set[Code], str]]:
    """What each category says; of their words together as many characters as `most`."""
    for concept in sent if isinstance(sent, list) else []:
        codes, written = _said(concept, most)
        most -= len(written)
        yield codes, written


def _said(concept: Any, most: int) -> tuple[set[Code], str]:
    """The codes of a CodeableConcept in systems that we know, and `most` characters of its words."""
    if not isinstance(concept, Mapping):
        return set(), ""
    codings = concept.get("coding")
    held = [one for one in (codings if isinstance(codings, list) else []) if isinstance(one, Mapping)]
    words = [concept.get("text"), *(one.get("display") for one in held)]
    codes = {(_system(one.get("system")), one["code"]) for one in held if isinstance(one.get("code"), str)}
    written = " ; ".join(word[:most] for word in words if isinstance(word, str))[:most]
    return {one for one in codes if one[0]}, written


def _system(said: Any) -> str:
    """A system as in SYSTEMS; "" for one that we do not know."""
    if not isinstance(said, str):
        return ""
    name = said.strip().rstrip("/").lower()
    return SYSTEMS.get(name, RADLEX if name.startswith("http://playbook.radlex.org/") else "")
