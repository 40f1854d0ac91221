# ruff: noqa: E501 - elements are read by row
"""PS3.15 Annex E: what becomes of each kind of element, and of what hides in pixel data."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

import ehr
from ehr import BadInstance, deidentify_instance
from ehr.dicom import codestreams, profile
from tests.ehr.dicom.making import make_dataset
from tests.shared import shared

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
NAMES = ehr.Pseudonyms(b"0123456789abcdef" * 2)
SHIFT = timedelta(days=-100)


def copy_of(data: Any, **options: Any) -> Any:
    held = io.BytesIO()
    data.save_as(held, enforce_file_format=True)
    known: dict[str, Any] = {"names": NAMES, "person": "R-ME", "shift": SHIFT}
    made = deidentify_instance(held.getvalue(), **{**known, **options})
    return pydicom.dcmread(io.BytesIO(bytes(made.content)))


def test_what_each_kind_of_element_becomes() -> None:
    data = make_dataset(
        RAMP, PatientBirthDate="19500601", AccessionNumber="A1", InstitutionName="Hospital", StationName="C",
        Manufacturer="Maker", StudyDescription="of Mr X", ViewPosition="PA", WindowCenter=40, WindowWidth=400,
        PatientSex="F", PatientAge="075Y", PixelSpacing=[0.5, 0.5], RescaleSlope=1, RescaleIntercept=0, RescaleType="HU",
        TimezoneOffsetFromUTC="+0100", AcquisitionDateTime="20260301101500.5+0100", InstanceCreationDate="20260301",
    )  # fmt: skip
    made = copy_of(data)
    assert (made.PatientName, made.PatientID) == ("R-ME", "R-ME")
    assert (made.StudyDate, made.StudyTime, made.AcquisitionDateTime) == (
        "20251121", "101500", "20251121101500.5+0100",
    )  # fmt: skip
    assert made.TimezoneOffsetFromUTC == "+0100"
    assert (made.ViewPosition, made.WindowCenter, made.RescaleType) == ("PA", 40, "HU")
    assert list(made.PixelSpacing) == [0.5, 0.5]
    for keyword in ("PatientBirthDate", "AccessionNumber", "PatientSex", "Manufacturer"):
        assert not made[keyword].value
    for keyword in ("InstitutionName", "StationName", "StudyDescription", "PatientAge"):
        assert keyword not in made or made[keyword].value in ("", None, "REMOVED")
    assert made.get("InstanceCreationDate") in (None, "19000101")
    assert made.PatientIdentityRemoved == "YES"
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [item.CodeValue for item in made.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107"]
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID == NAMES.uid(data.SOPInstanceUID)
    assert made.PixelData == data.PixelData


def test_characteristics_only_when_asked_for_and_topped() -> None:
    made = copy_of(
        make_dataset(RAMP, PatientSex="F", PatientAge="095Y", PatientWeight=61, EthnicGroup="Of Smithtown"),
        characteristics=True,
    )
    assert (made.PatientSex, made.PatientAge, made.PatientWeight) == ("F", "090Y", 61)
    assert not made.EthnicGroup
    assert [item.CodeValue for item in made.DeidentificationMethodCodeSequence][-1] == "113108"


def test_a_coded_string_that_holds_a_name_is_emptied() -> None:
    made = copy_of(make_dataset(RAMP, BodyPartExamined="SMITH CHEST"), known=frozenset({"Smith"}))
    assert not made.BodyPartExamined
    assert copy_of(make_dataset(RAMP, BodyPartExamined="CHEST")).BodyPartExamined == "CHEST"


def test_the_same_uid_is_the_same_in_every_file_and_standard_ones_stay() -> None:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    one = copy_of(make_dataset(RAMP, StudyInstanceUID="1.2.3", ReferencedImageSequence=Sequence([item])))
    two = copy_of(make_dataset(RAMP, StudyInstanceUID="1.2.3"))
    assert one.StudyInstanceUID == two.StudyInstanceUID != "1.2.3"
    assert one.ReferencedImageSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.1"
    assert one.ReferencedImageSequence[0].ReferencedSOPInstanceUID == NAMES.uid("1.2.3.4")
    other = ehr.Pseudonyms(b"another key, another copy, of 32").uid("1.2.3")
    assert other != one.StudyInstanceUID


def test_codes_keep_the_meaning_we_look_up_and_unknown_ones_go() -> None:
    def code(value: str, scheme: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "Smith's chest"
        return item

    views = Sequence([code("399348003", "SCT"), code("SMITH", "99LOCAL"), code("1", "SCT")])
    made = copy_of(make_dataset(RAMP, ViewCodeSequence=views))
    (kept,) = made.ViewCodeSequence
    assert kept.CodeValue == "399348003"
    assert kept.CodeMeaning.startswith("Antero-posterior")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "shows words"),
        ({"Modality": "US"}, "cannot be ruled out"),
        ({"ConversionType": "WSD"}, "cannot be ruled out"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "BurnedInAnnotation": "NO"}, "cannot be ruled out"),
        ({"RecognizableVisualFeatures": "YES", "BurnedInAnnotation": "NO"}, "face"),
    ],
)  # fmt: skip
def test_pixels_with_words_or_faces_stay(elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInstance, match=reason):
        copy_of(make_dataset(RAMP, **elements))
    assert copy_of(make_dataset(RAMP, **elements), burned_in=True).PixelData


def test_graphics_in_unused_bits_of_pixels_stay_whatever_is_asked() -> None:
    data = make_dataset(RAMP.astype(np.uint16))
    data.add_new(0x60000102, "US", 12)
    with pytest.raises(BadInstance, match="overlay graphics"):
        copy_of(data, burned_in=True)


def test_a_private_sop_class_stays() -> None:
    with pytest.raises(BadInstance, match="SOP Class"):
        copy_of(make_dataset(RAMP, SOPClassUID="1.2.3.4.5"))


def test_comments_in_jpeg_are_blanked_and_no_pixel_changes() -> None:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "Smith, John"
    Image.fromarray(RAMP).save(content, "JPEG", comment=b"Smith, Mary", exif=exif, progressive=True)
    data = make_dataset(RAMP)
    data.PixelData = encapsulate([content.getvalue() + b"Smith!"])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made = copy_of(data)
    (frame,) = generate_frames(made.PixelData, number_of_frames=1)
    assert b"Smith" not in frame
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(frame))), np.asarray(Image.open(content)))


def test_comments_in_jpeg_2000_are_blanked() -> None:
    content = io.BytesIO()
    Image.fromarray(RAMP).save(content, "JPEG2000", no_jp2=True, comment="Smith, John")
    assert b"Smith" in content.getvalue()
    cleaned = codestreams.cleaned(content.getvalue() + b"Smith", str(JPEG2000Lossless))
    assert b"Smith" not in cleaned
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(cleaned))), RAMP)
    boxed = io.BytesIO()
    Image.fromarray(RAMP).save(boxed, "JPEG2000", comment="Smith, John")
    assert b"Smith" not in codestreams.cleaned(boxed.getvalue(), str(JPEG2000Lossless))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"\xffO", b"\xffO\xffR\0\1"]
)
def test_a_damaged_frame_is_refused(content: bytes) -> None:
    for syntax in (str(JPEGBaseline8Bit), str(JPEG2000Lossless)):
        with pytest.raises(BadInstance):
            codestreams.cleaned(content, syntax)


def test_the_table_is_the_profile() -> None:
    """A few rows of PS3.15 table E.1-1, read there."""
    rows = {0x00080050: "Z", 0x00100020: "Z/D", 0x00080080: "X/Z/D", 0x0020000D: "U", 0x00104000: "X"}
    assert {tag: profile.actions()[tag] for tag in rows} == rows
    assert len(profile.actions()) > 600


@pytest.mark.real_data
def test_real_files_show_the_same_picture_before_and_after() -> None:
    done = 0
    for path in sorted(shared("data/dicom").rglob("*.dcm")):
        if path.stat().st_size > 150_000:
            continue
        try:
            made = deidentify_instance(path, names=NAMES, person="R-ME", shift=SHIFT, burned_in=True)
            before = ehr.value_digest(path)
        except ehr.EhrError:
            continue
        assert ehr.value_digest(bytes(made.content)) == before, path.name
        done += 1
    assert done > 20
