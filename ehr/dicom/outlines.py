"""Masks out as DICOM Segmentation (PS3.3 A.51): binary, one segment a structure, at the size of the source.

Pictures in a frame of reference (CT, MR) go through highdicom as they are. Where there is none (radiographs,
ultrasound) it takes only one frame; the others are added here, each saying which source frame it is of.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.uid import SecondaryCaptureImageStorage

from ehr.dicom.outputs import (
    FAMILY,
    STRUCTURE,
    Concept,
    Frames,
    Made,
    common,
    derived_uid,
    finished,
    highdicom,
    line,
    used,
)
from ehr.dicom.sources import Sources
from ehr.errors import BadInstance, TooLarge
from ehr.records import MANUFACTURER, OUR_SERIES

SEG_SERIES = int(OUR_SERIES["SEG"])
LARGEST = 256 * 2**20  # bytes of all frames and segments of one SEG before packing
Pixels = NDArray[np.uint8]  # [T, H, W, segments] of 0 and 1


@dataclass(frozen=True, slots=True)
class Outlined:
    """One structure: what it is, and bool [T, H, W], one mask for each of the frames given."""

    label: str
    kind: Concept
    masks: NDArray[np.bool_]


def build_segmentation(
    sources: Sources, frames: Frames, outlined: Sequence[Outlined], made: Made
) -> tuple[str, bytes]:
    """Masks as a SEG: (SOP Instance UID, Part 10 file). A frame in which a structure is empty is left out.

    outlined  masks of another size than the source (it was shrunk for the network) are brought back to it
    raises    BadInstance when every mask is empty or a frame is not of `sources`, TooLarge
    """
    instances = used(sources, frames)
    first = next(iter(instances.values()))
    rows, columns = int(first.Rows), int(first.Columns)
    inside = int(first.get("NumberOfFrames") or 1)
    if len(instances) > 1 and any(int(one.get("NumberOfFrames") or 1) > 1 for one in instances.values()):
        raise BadInstance("the frames of a SEG must come from one multi-frame instance, or from single ones")
    placed = "FrameOfReferenceUID" in first and _has_places(first)
    by_number = placed and inside > 1  # highdicom wants every frame of an enhanced instance, in its order
    depth = inside if by_number else len(frames)
    if depth * rows * columns * len(outlined) > LARGEST:
        raise TooLarge(f"the masks of {depth} frames of {rows} x {columns} are too large for one SEG")
    pixels: Pixels = np.zeros((depth, rows, columns, len(outlined)), np.uint8)
    for which, structure in enumerate(outlined):
        for place, ((_, number), mask) in enumerate(zip(frames, structure.masks, strict=True)):
            pixels[number - 1 if by_number else place, :, :, which] = fitted(mask, rows, columns)
    if not pixels.any():
        raise BadInstance("there is nothing inside any mask")
    segments = [_segment(number, one, made) for number, one in enumerate(outlined, 1)]
    if placed:
        document = _document(list(instances.values()), pixels, segments, made)
    else:
        document = _document([_as_single(first)], pixels[:1], segments, made, omit_empty_frames=False)
        _put_frames(document, pixels, frames, instances)
        document.PatientOrientation = first.get("PatientOrientation") or None
    for number, item in enumerate(document.DimensionOrganizationSequence, 1):
        item.DimensionOrganizationUID = derived_uid("dimensions", made.key, str(number))
    for item in document.DimensionIndexSequence:
        item.DimensionOrganizationUID = document.DimensionOrganizationSequence[0].DimensionOrganizationUID
    return finished(document, instances, made)


def fitted(mask: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.bool_]:
    """A mask at another size: each pixel takes the nearest one of the mask."""
    if mask.shape == (rows, columns):
        return mask
    at = [
        ((np.arange(wanted) + 0.5) * there / wanted).astype(int)
        for wanted, there in zip((rows, columns), mask.shape, strict=True)
    ]
    return mask[np.ix_(*at)]


def _has_places(first: Dataset) -> bool:
    """Whether its frames have a position in their frame of reference."""
    groups = (
        first.get("PerFrameFunctionalGroupsSequence") or first.get("SharedFunctionalGroupsSequence") or []
    )
    return "ImagePositionPatient" in first or any("PlanePositionSequence" in group for group in groups)


def _segment(number: int, one: Outlined, made: Made) -> Any:
    hd = highdicom()
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=line(one.label),
        segmented_property_category=STRUCTURE.coded,
        segmented_property_type=one.kind.coded,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=line(made.algorithm),
            family=FAMILY.coded,
            version=line(made.version),
            source=MANUFACTURER,
        ),
        tracking_uid=derived_uid("segment", made.key, one.label),
        tracking_id=line(f"{one.label} by {made.algorithm}"),
    )


def _document(
    images: list[Dataset],
    pixels: Pixels,
    segments: list[Any],
    made: Made,
    *,
    omit_empty_frames: bool = True,
) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that a segment is empty: an outline may be
        hd = highdicom()
        document: Dataset = hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            omit_empty_frames=omit_empty_frames,
            series_number=SEG_SERIES,
            content_label="SEGMENTATION",
            content_description=line(made.notice),
            series_description=line(f"Outlines, {made.notice}"),
            **common(made, "seg"),
        )
    return document


def _as_single(first: Dataset) -> Dataset:
    """The header without its frames, and without a frame of reference in which it has no place."""
    single = copy.deepcopy(first)
    single.SOPClassUID = (
        SecondaryCaptureImageStorage  # highdicom would look for frames; `_put_frames` names it
    )
    for keyword in ("NumberOfFrames", "FrameOfReferenceUID", "PositionReferenceIndicator"):
        if keyword in single:
            delattr(single, keyword)
    return single


def _put_frames(document: Dataset, pixels: Pixels, frames: Frames, instances: dict[str, Dataset]) -> None:
    """One frame for each mask that is not empty, in place of those of the first source frame."""
    pattern = document.PerFrameFunctionalGroupsSequence[0]
    groups, kept = [], []
    for place, (uid, number) in enumerate(frames):
        for which in range(pixels.shape[3]):
            if not pixels[place, :, :, which].any():
                continue
            group = copy.deepcopy(pattern)
            reference = group.DerivationImageSequence[0].SourceImageSequence[0]
            reference.ReferencedSOPClassUID = instances[uid].SOPClassUID
            reference.ReferencedSOPInstanceUID = uid
            if int(instances[uid].get("NumberOfFrames") or 1) > 1:
                reference.ReferencedFrameNumber = number
            content = group.FrameContentSequence[0]
            content.StackID, content.InStackPositionNumber = "1", place + 1
            content.DimensionIndexValues = [which + 1, place + 1]
            segment = Dataset()
            segment.ReferencedSegmentNumber = which + 1
            group.SegmentIdentificationSequence = Items([segment])
            groups.append(group)
            kept.append(pixels[place, :, :, which])
    document.PerFrameFunctionalGroupsSequence = Items(groups)
    document.NumberOfFrames = len(kept)
    document.PixelData = pack_bits(np.stack(kept).ravel(), pad=True)
    for shared in document.SharedFunctionalGroupsSequence:
        shared.pop("SegmentIdentificationSequence", None)  # highdicom puts an only segment there
    document.DimensionIndexSequence = Items(
        [
            _index("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Referenced Segment Number"),
            _index("InStackPositionNumber", "FrameContentSequence", "In Stack Position Number"),
        ]
    )
    _refer(document, instances)


def _index(pointer: str, group: str, label: str) -> Dataset:
    item = Dataset()
    item.DimensionIndexPointer, item.FunctionalGroupPointer = tag_for_keyword(pointer), tag_for_keyword(group)
    item.DimensionDescriptionLabel = label
    return item


def _refer(document: Dataset, instances: dict[str, Dataset]) -> None:
    """The Common Instance Reference module names every source instance, not only the first."""
    (series,) = document.ReferencedSeriesSequence
    series.ReferencedInstanceSequence = Items([_instance(one) for one in instances.values()])
    if "SourceImageSequence" in document:
        document.SourceImageSequence = Items([_instance(one) for one in instances.values()])


def _instance(one: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
    return item
