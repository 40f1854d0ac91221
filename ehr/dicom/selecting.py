"""Which instances of a Series make its Clip, in which order, at which times, at which spacing.

Runs in the decoding process only. A Series may hold several things; a Clip shows one of them, and says so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from ehr.dicom.dataset import get, items, number, numbers, text, whole

PROJECTIONS = frozenset({"CR", "DX", "DR", "RG", "MG", "PX", "IO", "RF", "XA"})
FRONTAL = frozenset({"PA", "AP", "AP PORTABLE", "POSTERO-ANTERIOR", "ANTERO-POSTERIOR"})
UNEVEN = 0.1  # of the usual step between slices, by which one may differ
UNEVEN_WORDS = "slices unevenly spaced: no volume"
TURNED = 0.01  # of a direction cosine, by which slices of one stack may differ
REPEATED = (  # by results made from an instance: whose it is, which it is, and where its pixels lie
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "ReferringPhysicianName",
    "Modality", "BodyPartExamined", "Laterality", "ImageLaterality", "PatientOrientation",
    "BurnedInAnnotation", "SeriesNumber", "InstanceNumber", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence",
    "DimensionIndexSequence", "DimensionOrganizationType",
)  # fmt: skip
VOLUMES = frozenset({"CT", "MR", "PT"})
PLANE = (  # what tells where a frame of an enhanced instance lies, and how large its pixels are
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
)
CENTIMETRES = 3  # PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.15


@dataclass(slots=True)
class Chosen:
    """Places in the list given, in order of display; times in ms, one per instance, when they are known.

    slice_mm  of a volume whose slices are evenly spaced: the step from one to the next
    """

    order: list[int]
    times_ms: list[float] | None = None
    notes: list[str] = field(default_factory=list)
    slice_mm: float | None = None


def choose(headers: list[Dataset]) -> Chosen:
    """Pick and order the instances of one Series.

    several moving ones  the longest, since joining different clips would show a motion that never was
    radiographs          one, a frontal view before others
    slices or phases     all of the commonest size: by TriggerTime at one position, else along the normal,
                         else by InstanceNumber
    """
    everyone = list(range(len(headers)))
    if len(headers) == 1:
        return Chosen(everyone)

    def by_number(place: int) -> tuple[int, str]:
        found = whole(headers[place], "InstanceNumber")
        return (2**31 if found is None else found, text(headers[place], "SOPInstanceUID"))

    frames = [whole(header, "NumberOfFrames") or 1 for header in headers]
    if max(frames) > 1:
        best = min(everyone, key=lambda place: (-frames[place], by_number(place)))
        return Chosen([best], notes=[_others(len(headers), "the longest clip")])
    if text(headers[0], "Modality").upper() in PROJECTIONS:
        best = min(everyone, key=lambda place: (not _is_frontal(headers[place]), by_number(place)))
        return Chosen([best], notes=[_others(len(headers), "one view")])

    sizes = Counter((whole(header, "Rows"), whole(header, "Columns")) for header in headers)
    size = max(sizes, key=lambda one: (sizes[one], (one[0] or 0) * (one[1] or 0)))
    kept = [
        place
        for place in everyone
        if (whole(headers[place], "Rows"), whole(headers[place], "Columns")) == size
    ]
    notes = (
        []
        if len(kept) == len(everyone)
        else [f"{len(everyone) - len(kept)} instances of another size left out"]
    )
    return _stacked(headers, kept, notes) or Chosen(sorted(kept, key=by_number), notes=notes)


def order_frames(data: Dataset, frames: int) -> Chosen:
    """The frames of one enhanced CT, MR or PET instance as slices, by position and orientation of each
    (PS3.3 C.7.6.16.2.3 and .4); as they come where these are not told or several lie at one place."""
    groups = get(data, "PerFrameFunctionalGroupsSequence") or []
    as_they_come = Chosen(list(range(frames)))
    if frames < 2 or len(groups) != frames or text(data, "Modality").upper() not in VOLUMES:
        return as_they_come
    shared = items(data, "SharedFunctionalGroupsSequence")[:1]
    slices = []
    for group in groups:
        slice_ = Dataset()
        for sequence, keyword in PLANE:
            found = [item for place in (group, *shared) for item in items(place, sequence)]
            value = numbers(found[0], keyword) if found else []
            if value:
                setattr(slice_, keyword, value)
        slices.append(slice_)
    stack = _stacked(slices, as_they_come.order, [])
    if stack is None and all(_depth(one) is not None for one in slices):
        as_they_come.notes.append("several frames lie at one place: no volume")
    return stack or as_they_come


def _stacked(headers: list[Dataset], kept: list[int], notes: list[str]) -> Chosen | None:
    """By TriggerTime at one position, else along the normal; None when the positions do not tell."""
    depths = {place: _depth(headers[place]) for place in kept}
    known = [depth for depth in depths.values() if depth is not None]
    if len(known) == len(kept) and len(kept) > 1:
        if max(known) - min(known) < 0.01:
            triggers = {place: number(headers[place], "TriggerTime") for place in kept}
            times = {place: at for place, at in triggers.items() if at is not None}
            if len(set(times.values())) == len(kept):
                order = sorted(kept, key=lambda place: times[place])
                return Chosen(order, [times[place] - times[order[0]] for place in order], notes)
        elif len({round(depth, 3) for depth in known}) == len(kept):
            order = sorted(kept, key=lambda place: depths[place] or 0.0)
            steps = np.diff([depths[place] or 0.0 for place in order])
            step = float(np.median(steps))
            if float(np.abs(steps - step).max()) > UNEVEN * step:
                return Chosen(order, notes=[*notes, _discord(headers, order) or UNEVEN_WORDS])
            if discord := _discord(headers, order):
                return Chosen(order, notes=[*notes, discord])
            return Chosen(order, slice_mm=step, notes=notes)
    return None


def _others(total: int, shown: str) -> str:
    return f"{shown} shown; {total - 1} more in this Series" if total > 1 else shown


def _is_frontal(header: Dataset) -> bool:
    return text(header, "ViewPosition").upper() in FRONTAL


def _depth(header: Dataset) -> float | None:
    """Distance of the slice along its normal, in mm."""
    position, axes = numbers(header, "ImagePositionPatient"), numbers(header, "ImageOrientationPatient")
    if len(position) != 3 or len(axes) != 6:
        return None
    return float(np.dot(np.cross(axes[:3], axes[3:]), position))


def _discord(headers: list[Dataset], order: list[int]) -> str:
    """Why evenly spaced slices are no block of voxels all the same; "" when they are one."""
    axes = np.array([numbers(headers[place], "ImageOrientationPatient") for place in order])
    if np.abs(axes - axes[0]).max() > TURNED:
        return "slices lie in different planes: no volume"
    spacings = {tuple(numbers(headers[place], "PixelSpacing")) for place in order}
    if len(spacings) > 1:
        return "slices differ in pixel spacing: no volume"
    places = np.array([numbers(headers[place], "ImagePositionPatient") for place in order])
    normal = np.cross(axes[0, :3], axes[0, 3:])
    moves = np.diff(places, axis=0)
    along = moves @ normal
    aside = np.linalg.norm(moves - along[:, None] * normal, axis=1)
    if float(aside.max()) > UNEVEN * float(np.median(along)):
        return "slices are stacked at a slant (tilted gantry): no volume"
    return ""


def times_of(data: Dataset, frames: int) -> tuple[list[float] | None, str]:
    """Times in ms of the frames of one instance, from the first; and what they were read from.

    FrameTimeVector, FrameTime (ms), RecommendedDisplayFrameRate, CineRate (frames/s): PS3.3 C.7.6.5.
    """
    vector = numbers(data, "FrameTimeVector")
    if len(vector) == frames and all(step >= 0 for step in vector) and sum(vector[1:]) > 0:
        at = np.cumsum(vector) - vector[0]
        return [float(one) for one in at], "FrameTimeVector"
    step = number(data, "FrameTime")
    if step and step > 0:
        return [place * step for place in range(frames)], "FrameTime"
    for keyword in ("RecommendedDisplayFrameRate", "CineRate"):
        rate = number(data, keyword)
        if rate and rate > 0:
            return [place * 1000.0 / rate for place in range(frames)], keyword
    return None, ""


def repeated(data: Dataset) -> dict[str, Any]:
    """What a result repeats of its source, as DICOM JSON; what cannot be read as its VR is left out."""
    kept = Dataset()
    for keyword in REPEATED:
        if get(data, keyword) is not None and keyword in data:
            kept[keyword] = data[keyword]
    found: dict[str, Any] = kept.to_json_dict(suppress_invalid_tags=True)
    return found


def slice_step_of(data: Dataset) -> float | None:
    """Step between the frames of one enhanced CT or MR instance, mm: SpacingBetweenSlices (0018,0088)."""
    if text(data, "Modality").upper() not in VOLUMES:
        return None
    for group in items(data, "SharedFunctionalGroupsSequence"):
        for measure in items(group, "PixelMeasuresSequence"):
            step = number(measure, "SpacingBetweenSlices")
            if step is not None and step > 0:
                return step
    return None


def spacing_of(data: Dataset) -> tuple[tuple[float, float] | None, str]:
    """(row, column) spacing in mm and its source, PS3.3 10.7.1.3 and C.8.5.5."""
    measures = [
        measure
        for group in items(data, "SharedFunctionalGroupsSequence")
        for measure in items(group, "PixelMeasuresSequence")
    ]
    for place in (data, *measures):
        found = numbers(place, "PixelSpacing")
        if len(found) == 2 and min(found) > 0:
            return (found[0], found[1]), "PixelSpacing"
    found = numbers(data, "ImagerPixelSpacing")
    if len(found) == 2 and min(found) > 0:
        return (found[0], found[1]), "ImagerPixelSpacing"
    regions = []
    for region in items(data, "SequenceOfUltrasoundRegions"):
        units = {whole(region, "PhysicalUnitsXDirection"), whole(region, "PhysicalUnitsYDirection")}
        row, column = number(region, "PhysicalDeltaY"), number(region, "PhysicalDeltaX")
        if units == {CENTIMETRES} and row and column:
            corners = [
                whole(region, f"RegionLocation{end}") or 0 for end in ("MinX0", "MinY0", "MaxX1", "MaxY1")
            ]
            area = (corners[2] - corners[0]) * (corners[3] - corners[1])
            regions.append((area, (abs(row) * 10, abs(column) * 10)))
    if regions:
        return max(regions)[1], "SequenceOfUltrasoundRegions"
    return None, ""


def remarks_of(data: Dataset) -> list[str]:
    """What a viewer should be told about one instance."""
    notes = []
    if text(data, "BurnedInAnnotation").upper() == "YES":
        notes.append("burned-in annotation")
    if _has_overlay(data):
        notes.append("overlay ignored")
    if text(data, "LossyImageCompression") == "01":
        notes.append("lossy compression")
    if get(data, "ImagerPixelSpacing") and not get(data, "PixelSpacing"):
        notes.append("spacing at the detector, not corrected for magnification")
    return notes


def _has_overlay(data: Dataset) -> bool:
    """Of its own (60xx,3000), or in unused bits of the pixel data, as before 2004 (60xx,0102 above 0)."""
    for tag in data.keys():  # noqa: SIM118 (tags: nothing is converted)
        group, element = tag >> 16, tag & 0xFFFF
        if group & 0xFF01 == 0x6000 and (element == 0x3000 or (element == 0x0102 and data[tag].value)):
            return True
    return False
