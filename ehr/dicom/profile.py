"""What PS3.15 Annex E says of each attribute: the Basic Application Level Confidentiality Profile as data.

Table E.1-1, edition 2026c, as `dicom-anonymizer` (Kitware, BSD-3-Clause) carries it; the columns of the two
options used here are below. Runs in the decoding process only.
"""

from __future__ import annotations

from functools import cache

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import tag_for_keyword

# Column "Rtn. Pat. Chars. Opt." = K (keep)
KEPT_CHARACTERISTICS = (
    "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "EthnicGroup", "SmokingStatus",
    "PregnancyStatus", "PatientSexNeutered",
)  # fmt: skip
# Column "Rtn. Long. Modif. Dates Opt." = C (clean: moved here), of what images carry; the last two are "D" in
# the basic profile, for which a moved moment is as good a replacement as any
MOVED_DATES = (
    "StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "ContentDate",
    "ContentTime", "AcquisitionDateTime", "StartAcquisitionDateTime", "EndAcquisitionDateTime",
    "TimezoneOffsetFromUTC", "FrameAcquisitionDateTime", "FrameReferenceDateTime",
)  # fmt: skip
_ACTIONS = {
    "X": table.X_TAGS, "Z": table.Z_TAGS, "D": table.D_TAGS, "U": table.U_TAGS, "X/Z": table.X_Z_TAGS,
    "Z/D": table.Z_D_TAGS, "X/D": table.X_D_TAGS, "X/Z/D": table.X_Z_D_TAGS, "X/Z/U*": table.X_Z_U_STAR_TAGS,
}  # fmt: skip


@cache
def actions() -> dict[int, str]:
    """Tag → X remove, Z empty, D replace, U replace the UID; several where the attribute's Type decides.

    Curves (50xx) and overlays (60xx), which the table gives as ranges, are not in it: they go as groups.
    """
    named = ((tag, action) for action, tags in _ACTIONS.items() for tag in tags if len(tag) == 2)
    return {group << 16 | element: action for (group, element), action in named}


@cache
def tags_of(keywords: tuple[str, ...]) -> frozenset[int]:
    """The tags of these keywords."""
    return frozenset(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)
