"""What a Study holds, as its archive tells before a file is fetched (WADO-RS metadata, PS3.18 10.4.1.1.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ehr.dicom.web import value_of
from ehr.records import MANUFACTURER, OUR_SERIES, WITHOUT_PIXELS

_IMAGE = ("00280010", "7FE00008", "7FE00009", "7FE00010")  # Rows; pixel data of each kind, as a BulkDataURI


@dataclass(frozen=True, slots=True)
class ListedInstance:
    """One instance that an archive has.

    is_picture  False where its Modality is one without pixels and nothing in it speaks of any
    is_ours     a result that Tessera made
    """

    series_uid: str
    sop_uid: str
    modality: str
    is_picture: bool
    is_ours: bool


def read_contents(metadata: Iterable[Mapping[str, Any]]) -> list[ListedInstance]:
    """The instances of WADO-RS metadata; those that do not say who they are are left out."""
    found = []
    for one in metadata:
        modality = value_of(one, "00080060")
        listed = ListedInstance(
            series_uid=value_of(one, "0020000E"),
            sop_uid=value_of(one, "00080018"),
            modality=modality,
            is_picture=modality not in WITHOUT_PIXELS or any(tag in one for tag in _IMAGE),
            is_ours=value_of(one, "00080070") == MANUFACTURER and modality in OUR_SERIES,
        )
        if listed.series_uid and listed.sop_uid:
            found.append(listed)
    return found


def may_hold_others(modalities: Iterable[str]) -> bool:
    """Whether a Study of these modalities may hold more than pictures for us to read, or does not say."""
    told = set(modalities)
    return not told or not told.isdisjoint(WITHOUT_PIXELS | OUR_SERIES.keys())
