"""A research copy of one DICOM instance: PS3.15 Annex E, and stricter where the profile trusts a field.

The Basic Profile says what becomes of 650 attributes (`ehr.dicom.profile`). Beyond it no free text leaves at
all: of what the table does not name, only numbers, coded strings of DICOM's shape, UIDs (replaced) and codes
whose meaning we look up ourselves are kept. Private and unknown elements, curves, overlays, thumbnails and
whatever is not picture inside the pixel data go; the file's meta information is written anew. Sequences are
searched to their bottom. Pixels that may show words do not go unless the caller says that they may.

Runs in the decoding process only; asked for by `ehr.dicom.research.deidentify_instance`.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from ehr.dicom import codestreams, guard, methods, profile
from ehr.dicom.advice import AGAIN, OTHER_SYNTAX, REPAIR
from ehr.dicom.dataset import Opened, open_dataset, text, whole
from ehr.errors import BadInstance
from ehr.pseudonyms import TOP_AGE, Pseudonyms, moved

PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
TABLES = profile.tags_of(
    (
        "LUTData",
        *(f"{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue", "Alpha")),
        *(f"Segmented{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue", "Alpha")),
    )
)
MOST_TABLE_BYTES = 65_536 * 2
NATIVE = frozenset({guard.IMPLICIT_LITTLE, guard.EXPLICIT_LITTLE, guard.EXPLICIT_BIG})
NUMBERS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})
BINARY = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})
SHAPES = {
    "CS": re.compile(r"[A-Z0-9_ ]{0,16}"),
    "DA": re.compile(r"\d{8}"),
    "TM": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"),
    "DT": re.compile(r"(\d{8})(\d{0,6}(\.\d{1,6})?)([+-]\d{4})?"),
    "IS": re.compile(r"[+-]?\d{1,11}"),
    "DS": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"),
}
RESCALE_TYPES = frozenset(
    {"OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}
)  # PS3.3 C.11.1.1.2
# EthnicGroup is free text in DICOM: kept where it is a word that many share
ETHNIC_GROUPS = frozenset(
    {
        "ASIAN",
        "BLACK",
        "WHITE",
        "CAUCASIAN",
        "HISPANIC",
        "LATINO",
        "AFRICAN AMERICAN",
        "NATIVE AMERICAN",
        "OTHER",
    }
)
DUMMIES: dict[str, Any] = {"DA": "19000101", "TM": "000000", "DT": "19000101", "IS": "0", "DS": "0", "US": 0}
# Acquired without words as a rule. Everything else that does not say "NO" is kept back.
WORDLESS = frozenset({"CR", "DX", "MG", "CT", "MR", "PT", "NM", "PX", "IO", "RG", "BMD", "XA"})
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SRT = re.compile(r"[A-Z]-[0-9A-F]{4,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    names: Pseudonyms
    person: str
    shift: timedelta
    characteristics: bool
    burned_in: bool
    known: tuple[str, ...]  # upper case


def deidentify(
    source: Path | bytes, asked: dict[str, Any], limits: guard.Limits
) -> tuple[dict[str, Any], bytes]:
    """What the copy is called, and the copy. Raises BadInstance when it cannot be made safe, TooLarge."""
    plan = _Plan(
        names=Pseudonyms(bytes.fromhex(asked["key"])),
        person=asked["person"],
        shift=timedelta(days=asked["shift_days"]),
        characteristics=asked["characteristics"],
        burned_in=asked["burned_in"],
        known=tuple(asked["known"]),
    )
    opened = open_dataset(source, limits, pixels=True)
    try:
        data = opened.dataset
        said = text(data, "BurnedInAnnotation").upper()
        _check_pixels_may_go(data, said, plan)
        _check_identity(data)
        _clean_pixels(opened)
        _clean(data, plan, top=True)
        _stamp(data, plan)
        uids = {name: str(data.get(name)) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
        return {
            "study_uid": uids["StudyInstanceUID"],
            "series_uid": uids["SeriesInstanceUID"],
            "sop_uid": str(data.SOPInstanceUID),
            "burned_in": {"YES": True, "NO": False}.get(said),
        }, _written(data)
    finally:
        opened.close()


def _check_pixels_may_go(data: Dataset, said: str, plan: _Plan) -> None:
    for group in range(0x6000, 0x6020, 2):
        if (group << 16 | 0x0102) in data and (group << 16 | 0x3000) not in data:
            raise BadInstance("overlay graphics lie inside the pixel data: not fit for a research copy")
    if plan.burned_in:
        return
    if said == "YES":
        raise BadInstance("burned-in annotation: the picture shows words")
    if text(data, "RecognizableVisualFeatures").upper() == "YES":
        raise BadInstance("recognizable visual features: the picture may show a face")
    kind = text(data, "ImageType").upper()
    is_capture = text(data, "SOPClassUID").startswith(SECONDARY_CAPTURE) or bool(text(data, "ConversionType"))
    if "SCREEN" in kind or (said != "NO" and (is_capture or text(data, "Modality").upper() not in WORDLESS)):
        raise BadInstance(
            "burned-in annotation cannot be ruled out: the file does not say NO; set BurnedInAnnotation "
            "where there is known to be none"
        )


def _check_identity(data: Dataset) -> None:
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not text(data, keyword):
            raise BadInstance(f"{keyword} is missing: {REPAIR}")
    if text(data, "SOPClassUID") not in UID_dictionary:
        raise BadInstance("its SOP Class is not a standard one: what it holds cannot be judged")


def _clean_pixels(opened: Opened) -> None:
    """Picture and nothing else: no bytes beyond the last pixel, no comments inside compressed frames."""
    data, syntax = opened.dataset, str(opened.dataset.file_meta.TransferSyntaxUID)
    frames = whole(data, "NumberOfFrames") or 1
    if "PixelData" in data and syntax not in NATIVE:
        if not codestreams.can_clean(syntax):
            raise BadInstance(f"transfer syntax {syntax} cannot be searched for comments: {OTHER_SYNTAX}")
        try:
            parts = list(generate_frames(data.PixelData, number_of_frames=frames))
        except (ValueError, RuntimeError):
            raise BadInstance(
                f"the pixel data is damaged, its frames cannot be told apart: {AGAIN}"
            ) from None
        data.PixelData = encapsulate([codestreams.cleaned(part, syntax) for part in parts])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        return
    rows, columns = whole(data, "Rows") or 0, whole(data, "Columns") or 0
    bits = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
    for keyword in PIXELS.values():
        if keyword not in data:
            continue
        samples = rows * columns * (whole(data, "SamplesPerPixel") or 1) * frames
        needed = (samples * bits.get(keyword, whole(data, "BitsAllocated") or 0) + 7) // 8
        if text(data, "PhotometricInterpretation") == "YBR_FULL_422":
            needed = needed * 2 // 3
        held = getattr(data, keyword)
        if needed <= 0 or held is None or len(held) < needed:
            raise BadInstance(f"the pixel data is not as long as rows x columns x frames: {AGAIN}")
        data[keyword].value = held[:needed] + b"\0" * (needed % 2)


def _clean(data: Dataset, plan: _Plan, *, top: bool) -> None:
    for tag in list(data.keys()):
        try:
            kept = _cleaned(data[tag], plan, top=top)
        except (BadInstance, MemoryError, RecursionError):
            raise
        except Exception:  # a value that cannot be read as its VR may be anything: it goes
            kept = None
        if kept is None:
            del data[tag]
        else:
            data[tag] = kept


def _cleaned(element: DataElement, plan: _Plan, *, top: bool) -> DataElement | None:
    """The element as it may leave; None when it may not."""
    tag, vr = int(element.tag), element.VR
    group = tag >> 16
    is_graphics = 0x5000 <= group < 0x5100 or 0x6000 <= group < 0x6100
    if element.tag.is_private or is_graphics or not tag & 0xFFFF or not dictionary_has_tag(tag):
        return None
    if tag in PIXELS:
        return element if top else None
    if plan.characteristics and tag in profile.tags_of(profile.KEPT_CHARACTERISTICS):
        return _characteristic(element, plan)
    if tag in profile.tags_of(profile.MOVED_DATES):
        return _with(element, [_moved(str(one), vr, plan) for one in _values(element)])
    action = profile.actions().get(tag, "")
    if action == "X":
        return None
    if action in ("Z", "X/Z") and keyword_for_tag(tag) not in ("PatientName", "PatientID"):
        return _with(element, [])
    if action == "X/Z/U*" or (not action and vr == "SQ"):
        return _sequence(element, plan)
    if vr == "UI":
        return _with(element, [_other_uid(str(one), plan) for one in _values(element)])
    if action:  # D, or D among others
        return _replaced(element, plan)
    return _unlisted(element, plan)


def _replaced(element: DataElement, plan: _Plan) -> DataElement | None:
    if keyword_for_tag(element.tag) in ("PatientName", "PatientID"):
        return _with(element, [plan.person])
    if element.VR in BINARY or element.VR == "SQ":
        return None
    return _with(element, [DUMMIES.get(element.VR, "REMOVED")])


def _unlisted(element: DataElement, plan: _Plan) -> DataElement | None:
    """What the profile does not name: numbers and coded strings as they are, free text emptied."""
    vr, keyword = element.VR, keyword_for_tag(element.tag)
    if keyword in ("SpecificCharacterSet", "CodingSchemeIdentificationSequence"):
        return None
    if int(element.tag) in TABLES:
        size = len(element.value) if isinstance(element.value, bytes) else 0
        return element if size <= MOST_TABLE_BYTES else None
    if vr in NUMBERS:
        shape = SHAPES.get(vr)
        good = shape is None or all(shape.fullmatch(_printed(one)) for one in _values(element))
        return element if good else _with(element, [])
    if vr == "CS":
        return _with(element, [_coded(str(one), plan) for one in _values(element)])
    if keyword == "RescaleType":
        return _with(element, [str(element.value) if element.value in RESCALE_TYPES else "US"])
    if vr in BINARY or vr in ("DA", "TM", "DT", "AS", "UR"):
        return None
    return _with(element, [])


def _printed(value: Any) -> str:
    """A number string as it stood in the file, blanks left out."""
    return str(getattr(value, "original_string", value)).strip()


def _coded(value: str, plan: _Plan) -> str:
    good = SHAPES["CS"].fullmatch(value) and not any(one in value for one in plan.known)
    return value if good else ""


def _characteristic(element: DataElement, plan: _Plan) -> DataElement | None:
    """Sex, age, size …: kept, in the shape they must have; nobody is older than `TOP_AGE`."""
    keyword, value = keyword_for_tag(element.tag), str(element.value or "").strip()
    if keyword == "PatientAge":
        found = re.fullmatch(r"(\d{3})([DWMY])", value)
        years = int(found[1]) / {"Y": 1, "M": 12, "W": 52, "D": 365}[found[2]] if found else 0
        return _with(element, [f"{TOP_AGE:03}Y" if years >= TOP_AGE else value] if found else [])
    if keyword == "EthnicGroup":
        return _with(element, [value] if value.upper() in ETHNIC_GROUPS else [])
    if element.VR == "CS":
        return _with(element, [_coded(value, plan)])
    return _unlisted(element, plan)


def _moved(value: str, vr: str, plan: _Plan) -> str:
    """A date or moment after the shift; times of day stay; what is neither is emptied."""
    if vr == "SH":  # TimezoneOffsetFromUTC
        return value if re.fullmatch(r"[+-]\d{4}", value) else ""
    found = SHAPES[vr].fullmatch(value.strip())
    if found is None or vr == "TM":
        return value.strip() if found else ""
    day = date(int(value[:4]), int(value[4:6]), int(value[6:8]))
    return moved(day, plan.shift).strftime("%Y%m%d") + value.strip()[8:]


def _other_uid(value: str, plan: _Plan) -> str:
    return value if value in UID_dictionary or not value else plan.names.uid(value)


def _sequence(element: DataElement, plan: _Plan) -> DataElement:
    kept = []
    for item in element.value or []:
        code = _code_of(item)
        if "CodeValue" in item or "LongCodeValue" in item or "URNCodeValue" in item:
            if code is None:
                continue
            item = Dataset({tag: item[tag] for tag in item.keys() if item[tag].VR == "SQ"})  # noqa: SIM118
        _clean(item, plan, top=False)
        if code is not None:
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
        kept.append(item)
    return DataElement(element.tag, "SQ", Sequence(kept))


def _code_of(item: Dataset) -> tuple[str, str, str] | None:
    """(value, scheme, meaning) of a code that DICOM's own value sets hold; None for any other."""
    value, scheme = text(item, "CodeValue"), text(item, "CodingSchemeDesignator")
    if scheme in ("SRT", "SNM3", "99SDM") and SRT.fullmatch(value):
        return value, scheme, "SNOMED-RT code"
    meaning = _meanings(scheme).get(value)
    return (value, scheme, meaning[:64]) if meaning else None


@cache
def _meanings(scheme: str) -> dict[str, str]:
    if scheme not in ("SCT", "DCM", "LN", "UCUM", "FMA", "NCIt", "RADLEX"):
        return {}
    return {code.value: code.meaning for code in getattr(codes, scheme).concepts.values()}


def _values(element: DataElement) -> list[Any]:
    value = element.value
    if value is None or value == "":
        return []
    return list(value) if element.VM > 1 else [value]


def _with(element: DataElement, values: list[Any]) -> DataElement:
    value: Any = values[0] if len(values) == 1 else values or None
    if element.VR == "SQ":
        value = Sequence([])
    return DataElement(element.tag, element.VR, value)


def _stamp(data: Dataset, plan: _Plan) -> None:
    """PS3.15 E.1.1: say that, and how, it was de-identified."""
    data.PatientName = data.PatientID = plan.person
    data.PatientIdentityRemoved = "YES"
    data.LongitudinalTemporalInformationModified = "MODIFIED"
    data.DeidentificationMethod = f"Tessera, PS3.15 {methods.EDITION} table E.1-1, no free text"
    said = []
    for code in methods.applied(characteristics=plan.characteristics):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator = code, "DCM"
        item.CodeMeaning = methods.MEANINGS[code]
        said.append(item)
    data.DeidentificationMethodCodeSequence = Sequence(said)


def _written(data: Dataset) -> bytes:
    """A Part 10 file with meta information of its own."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = "TESSERA"
    data.file_meta, data.preamble = meta, b"\0" * 128
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
