# ruff: noqa: E501 - resources are read by row
"""A hospital's data with identifiers planted wherever they may stand. Each is made up."""

from __future__ import annotations

import base64
import io
import json
import random
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.datadict import DicomDictionary, keyword_dict
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from tests.ehr.dicom.making import make_dataset

TEXT_VRS = {"LO": 40, "SH": 16, "PN": 40, "LT": 60, "ST": 60, "UT": 60, "UC": 40, "UR": 40, "AE": 14}
NESTS = (
    "ReferencedImageSequence", "RequestAttributesSequence", "AcquisitionContextSequence", "SourceImageSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ViewCodeSequence",
    "ModalityLUTSequence", "AnatomicRegionSequence", "OriginalAttributesSequence", "PlaneOrientationSequence",
)  # fmt: skip


@dataclass
class Planter:
    """Makes identifiers and remembers them with the place each was put."""

    chance: random.Random = field(default_factory=lambda: random.Random(20260301))
    planted: dict[str, str] = field(default_factory=dict)

    def word(self, place: str, length: int = 14) -> str:
        """A name that no language has."""
        word = "Zq" + "".join(self.chance.choices(string.ascii_lowercase, k=max(8, length) - 2))
        return self._keep(word, place)

    def number(self, place: str, length: int = 11) -> str:
        return self._keep("9" + "".join(self.chance.choices(string.digits, k=length - 1)), place)

    def uid(self, place: str) -> str:
        return self._keep(generate_uid(entropy_srcs=[str(self.chance.random())]), place)

    def _keep(self, made: str, place: str) -> str:
        self.planted[made] = place
        return made


def plant_instance(planter: Planter, patient_id: str, folder: Path, *, jpeg: bool) -> None:
    """A radiograph with identifiers in standard, private, nested and meta elements, UIDs and pixel data."""
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16), dtype=np.uint8)
    data = make_dataset(pixels)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        setattr(data, keyword, planter.uid(keyword))
    data.BurnedInAnnotation = "NO"
    data.PatientID, data.PatientName = (
        patient_id,
        f"{planter.word('PatientName')}^{planter.word('PatientName')}",
    )
    for tag, (vr, vm, _, _, keyword) in sorted(DicomDictionary.items()):
        group = tag >> 16
        fits = vr in TEXT_VRS and keyword and (vm == "1" or vm.startswith("1-"))
        if fits and keyword not in data and group not in (0, 2, 4) and planter.chance.random() < 0.35:
            data.add_new(tag, vr, planter.word(keyword, min(14, TEXT_VRS[vr])))
    data.PatientBirthDate, data.IssuerOfPatientID = "19370811", "urn:mrn"
    for group in (0x0009, 0x0019, 0x7FE1):
        block = data.private_block(group, f"VENDOR {planter.word('private creator', 10)}", create=True)
        for offset in range(8):
            block.add_new(offset, "LO", planter.word("private"))
        block.add_new(0x20, "OB", planter.word("private binary").encode())
        item = Dataset()
        item.PatientName = planter.word("private sequence")
        block.add_new(0x30, "SQ", Sequence([item]))
    for keyword in NESTS:
        setattr(data, keyword, Sequence([_nested(planter, keyword, 4)]))
    for group in (0x6000, 0x5000):
        data.add_new(group << 16 | 0x3000, "OW", planter.word("graphics").encode())
        data.add_new(group << 16 | (0x0022 if group == 0x6000 else 0x2500), "LO", planter.word("graphics"))
    data.BodyPartExamined = planter.word("coded string", 12)
    data.add_new(0x00091234 | 0x00020000, "UN", planter.word("unknown element").encode() + b"\0")
    if jpeg:
        data.PixelData = encapsulate([_jpeg(planter, pixels)])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    else:
        data.PixelData = pixels.tobytes() + planter.word("after the last pixel").encode().ljust(20, b"\0")
    meta = data.file_meta
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.SourceApplicationEntityTitle = planter.word("meta AE title", 12)
    meta.ImplementationVersionName = planter.word("meta version", 12)
    meta.PrivateInformationCreatorUID = planter.uid("meta UID")
    meta.PrivateInformation = planter.word("meta private").encode()
    data.preamble = planter.word("preamble").encode().ljust(128, b"\0")
    data.save_as(folder / f"{data.SOPInstanceUID}.dcm", enforce_file_format=True)


def _nested(planter: Planter, place: str, depth: int) -> Dataset:
    item = Dataset()
    item.PatientName, item.InstitutionName = planter.word(f"nested {place}"), planter.word(f"nested {place}")
    item.ReferencedSOPInstanceUID = planter.uid(f"nested {place}")
    item.ImageComments = planter.word(f"nested {place}")
    item.CodeMeaning = planter.word(f"nested {place}")
    if depth == 4:
        item.CodeValue, item.CodingSchemeDesignator = planter.word(f"code {place}", 12), "99LOCAL"
    item.private_block(0x0011, "DEEP", create=True).add_new(1, "LO", planter.word(f"nested private {place}"))
    if depth:
        item.add(
            DataElement(
                keyword_dict["ReferencedSeriesSequence"], "SQ", Sequence([_nested(planter, place, depth - 1)])
            )
        )
    return item


def _jpeg(planter: Planter, pixels: np.ndarray) -> bytes:
    """With a comment, Exif data and words after the end."""
    exif = Image.Exif()
    exif[0x010E] = planter.word("Exif")
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", comment=planter.word("JPEG comment").encode(), exif=exif)
    content = held.getvalue() + planter.word("after JPEG").encode()
    return content + b"\0" * (len(content) % 2)


def plant_bundle(planter: Planter, number: int, folder: Path) -> str:
    """A FHIR record with identifiers in every corner; returns the number the DICOM files carry."""
    word, digits = planter.word, planter.number
    who, mrn = f"zq-{digits('Patient.id')}", digits("Patient.identifier")
    family, given = word("family"), word("given")
    subject = {"reference": f"Patient/{who}", "display": f"{family} {given}"}
    narrative = {
        "status": "generated",
        "div": f"<div xmlns='http://www.w3.org/1999/xhtml'>{word('narrative')}</div>",
    }
    extension = [{"url": "http://example.org/x", "valueString": word("extension")}]

    def common(kind: str) -> dict[str, Any]:
        return {
            "resourceType": kind,
            "id": f"{kind.lower()}-{digits(kind + '.id')}",
            "text": narrative,
            "extension": extension,
            "identifier": [{"system": "urn:local", "value": digits(f"{kind}.identifier")}],
            "contained": [
                {"resourceType": "Practitioner", "id": "c", "name": [{"family": word("contained")}]}
            ],
            "subject": subject,
            "note": [{"text": word(f"{kind}.note"), "authorString": word("author")}],
        }

    def local(place: str) -> dict[str, Any]:
        return {
            "coding": [{"system": "urn:local", "code": word(place), "display": word(place)}],
            "text": word(place),
        }

    def sound(code: str, system: str = "http://loinc.org") -> dict[str, Any]:
        return {
            "coding": [{"system": system, "code": code, "display": word("display")}],
            "text": word("text"),
        }

    text = (
        f"{family} {given}, MRN {mrn}, was seen on 12.03.2024 and on March 5, 2024. Phone 555-{digits('phone', 7)}.\n"
        f"Dr {word('doctor in a note')} wrote to {word('mail')}@example.org; id AB{digits('id in a note')}.\n"
        f"Name: {word('labelled name')}\nAddress: {word('street')} 12\n{family.upper()} improved. Case {digits('case')}."
    )
    page = base64.b64encode(text.encode()).decode()
    resources: list[dict[str, Any]] = [
        {
            **common("Patient"), "id": who, "gender": "female", "birthDate": "1931-04-12",
            "identifier": [{"system": "urn:mrn", "value": mrn, "assigner": {"display": word("assigner")}}],
            "name": [{"family": family, "given": [given], "text": word("name.text")}],
            "telecom": [{"system": "phone", "value": digits("telecom")}, {"system": "email", "value": word("email")}],
            "address": [{"line": [word("address")], "city": word("city"), "postalCode": digits("postcode", 8)}],
            "contact": [{"name": {"family": word("contact")}}], "photo": [{"title": word("photo")}],
            "generalPractitioner": [{"display": word("practitioner")}],
        },
        {
            **common("Encounter"), "status": "finished", "class": {"code": "IMP"}, "type": [local("Encounter.type")],
            "period": {"start": "2024-03-01T10:00:00Z", "end": "2024-03-09T10:00:00Z"},
            "location": [{"location": {"display": word("ward")}}],
            "participant": [{"individual": {"display": word("participant")}}],
        },
        {
            **common("Observation"), "status": "final", "code": sound("8480-6"), "effectiveDateTime": "2024-03-02T08:00:00Z",
            "valueQuantity": {"value": 120, "unit": "mm[Hg]", "code": "mm[Hg]"}, "performer": [{"display": word("performer")}],
            "device": {"display": word("device")},
        },
        {
            **common("Observation"), "status": "final", "code": sound("5778-6"),
            "effectiveDateTime": "2024-03-02T08:00:00Z", "valueString": f"seen by {word('valueString')}",
        },
        {
            **common("Observation"), "status": "final", "code": local("local code"),
            "effectiveDateTime": "2024-03-02T08:00:00Z", "valueCodeableConcept": local("coded value"),
        },
        {
            **common("Observation"), "status": "final", "code": sound("5778-6"),
            "effectiveDateTime": "2024-03-02T08:00:00Z", "valueCodeableConcept": local("coded value"),
            "category": [local("category")],
        },
        {
            **common("Observation"), "status": "final", "code": local("local code"), "effectiveDateTime": "2024-03-02",
            "valueQuantity": {"value": 3, "unit": word("unit")},
        },
        {**common("Condition"), "code": sound("73211009", "http://snomed.info/sct"), "recordedDate": "2024-03-02"},
        {**common("Condition"), "code": {"text": f"as {word('Condition.code.text')} said"}, "recordedDate": "2024-03-02"},
        {
            **common("Procedure"), "status": "completed", "code": sound("80146002", "http://snomed.info/sct"),
            "performedDateTime": "2024-03-03", "performer": [{"actor": {"display": word("surgeon")}}],
        },
        {
            **common("MedicationRequest"), "status": "active", "intent": "order", "authoredOn": "2024-03-03",
            "medicationCodeableConcept": local("medication"), "requester": {"display": word("requester")},
        },
        {
            **common("AllergyIntolerance"), "patient": subject, "code": local("allergy"), "criticality": "high",
            "recordedDate": "2024-03-03",
        },
        {
            **common("FamilyMemberHistory"), "status": "completed", "patient": subject, "name": word("relative"),
            "relationship": sound("FTH", "http://terminology.hl7.org/CodeSystem/v3-RoleCode"), "date": "2024-03-03",
            "condition": [{"code": sound("73211009", "http://snomed.info/sct"), "note": [{"text": word("relative")}]}],
        },
        {
            **common("DocumentReference"), "status": "current", "date": "2024-03-04", "type": sound("11506-3"),
            "author": [{"display": word("author")}], "description": word("description"),
            "content": [{"attachment": {"contentType": "text/plain", "data": page, "title": word("title")}}],
        },
        {
            **common("DiagnosticReport"), "status": "final", "code": sound("24627-2"), "issued": "2024-03-04T10:00:00Z",
            "conclusion": text,
        },
    ]  # fmt: skip
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": one} for one in resources],
    }
    (folder / f"{number}.json").write_text(json.dumps(bundle))
    return mrn
