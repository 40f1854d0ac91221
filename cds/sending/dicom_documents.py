"""Stored measurements, masks and heat maps as the DICOM instances an archive gets. No network, no writing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as installed

import numpy as np
from django.conf import settings

import ehr
from cds import catalogue
from cds.errors import Conflict, Invalid
from cds.risk.models import HeatMap
from cds.sending.models import Document, DocumentKind
from cds.studies import clips
from cds.studies.models import Measurement, Outline, Series

LOCAL = "99TESSERA"  # coding scheme of what no standard scheme names
HEART = ehr.Concept("80891009", "SCT", "Heart")
LUNG = ehr.Concept("39607008", "SCT", "Lung")
VENTRICLE = ehr.Concept("87878005", "SCT", "Left ventricle")
BRAIN = ehr.Concept("12738006", "SCT", "Brain")
STRUCTURES = {"heart": HEART, "lungs": LUNG, "lung": LUNG, "lv": VENTRICLE, "left_ventricle": VENTRICLE}
NAMES = {  # of `catalogue.MEASURED`: what it is called, and where it lies
    "cardiothoracic_ratio": (ehr.Concept("cardiothoracic_ratio", LOCAL, "Cardiothoracic ratio"), HEART),
    "lung_area": (ehr.Concept("42798000", "SCT", "Area"), LUNG),
    "measured_ejection_fraction": (
        ehr.Concept("10230-1", "LN", "Left ventricular Ejection fraction"),
        VENTRICLE,
    ),
    "tumour_volume": (ehr.Concept("tumour_volume", LOCAL, "Tumour volume"), BRAIN),
}
UNITS = {
    "1": ehr.Concept("{ratio}", "UCUM", "ratio"),
    "cm2": ehr.Concept("cm2", "UCUM", "square centimeter"),
    "%": ehr.Concept("%", "UCUM", "percent"),
    "mL": ehr.Concept("mL", "UCUM", "milliliter"),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM instance to send."""

    study_uid: str
    sop_uid: str
    content: bytes


class NothingToSay(Exception):
    """There is no size, or nothing inside any mask: no document is sent."""


def build(document: Document) -> Instance:
    """Raises NothingToSay, Conflict (the pictures have changed since), Invalid, NotFound, ehr.Permanent."""
    if document.kind == DocumentKind.HEAT_MAP:
        return _heat_map(HeatMap.objects.select_related(*_OF_MAP).get(pk=int(document.subject)))
    outline = Outline.objects.select_related("series__study").get(pk=int(document.subject))
    if outline.pixels_digest != outline.series.pixels_digest:
        raise Conflict("newer pictures have come to its Series; what is drawn in those is sent instead")
    return _measurements(outline) if document.kind == DocumentKind.MEASUREMENTS else _outlines(outline)


_OF_MAP = ("series__study", "prediction__assessment__version")


def _measurements(outline: Outline) -> Instance:
    rows = Measurement.objects.filter(
        series=outline.series_id,
        pixels_digest=outline.pixels_digest,
        method_version=outline.method_version,
        value__isnull=False,
    )
    sizes = [_size(row) for row in rows.order_by("name") if row.value is not None]
    if not sizes:
        raise NothingToSay("no size is known")
    frames = _frames(outline.frames)
    sources = _sources(outline.series)
    uid, content = ehr.build_measurement_report(sources, frames, sizes, _made_of(outline))
    return Instance(outline.series.study.study_uid, uid, content)


def _outlines(outline: Outline) -> Instance:
    frames = _frames(outline.frames)
    masks = clips.load_masks(outline.path)
    if not masks.any():
        raise NothingToSay("nothing is inside any outline")
    outlined = [
        ehr.Outlined(name, _structure(name), masks[..., place])
        for place, name in enumerate(outline.structures)
    ]
    uid, content = ehr.build_segmentation(_sources(outline.series), frames, outlined, _made_of(outline))
    return Instance(outline.series.study.study_uid, uid, content)


def _heat_map(map_: HeatMap) -> Instance:
    series, assessment = map_.series, map_.prediction.assessment
    frames = clips.frame_sources(series)
    if len(frames) <= map_.frame:
        raise Invalid(_UNKNOWN_FRAMES)
    title = f"Tessera {assessment.version.label}: {map_.prediction.label}"
    lines = [title, "Coloured parts influenced the model; not a finding", settings.REGULATORY_LABEL.upper()]
    heat = np.load(clips.path_of(map_.path), allow_pickle=False)
    picture = ehr.burn(clips.frame(series, map_.frame), heat, lines)
    made = ehr.Made(
        key=f"heat-map {series.pk} {map_.frame} {map_.prediction.outcome} {assessment.version_id}",
        series=f"heat-maps {series.study_id}",
        at=map_.created_at,
        algorithm=f"Tessera {assessment.version.name}",
        version=str(assessment.version.number),
        software=_software(),
        notice=settings.REGULATORY_LABEL,
    )
    frame = _frames([frames[map_.frame]])
    uid, content = ehr.build_capture(
        _sources(series), frame, picture, f"Influenced the model; not a finding. {title}", made
    )
    return Instance(series.study.study_uid, uid, content)


def _size(row: Measurement) -> ehr.SizeOut:
    label = next((one.label for one in catalogue.MEASURED if one.name == row.name), row.name)
    name, site = NAMES.get(row.name, (ehr.Concept(row.name[:16], LOCAL, label[:64]), None))
    assert row.value is not None  # asked for
    unit = UNITS.get(row.unit, ehr.Concept(row.unit, "UCUM", row.unit))
    return ehr.SizeOut(name, row.value, unit, site)


def _structure(name: str) -> ehr.Concept:
    return STRUCTURES.get(name, ehr.Concept(name[:16], LOCAL, name[:64]))


def _made_of(outline: Outline) -> ehr.Made:
    return ehr.Made(
        key=f"outline {outline.series_id} {outline.pixels_digest} {outline.method_version}",
        series=f"measured {outline.series.study_id} {outline.method_version}",
        at=outline.made_at,
        algorithm=outline.method,
        version=outline.method_version,
        software=_software(),
        notice=settings.REGULATORY_LABEL,
    )


_UNKNOWN_FRAMES = (
    "which instance each frame came from is not known: the Study was decoded by an earlier version; ingest "
    "it again and encode it"
)


def _frames(kept: list[list[str | int]]) -> list[tuple[str, int]]:
    if not kept:
        raise Invalid(_UNKNOWN_FRAMES)
    return [(str(uid), int(number)) for uid, number in kept]


def _sources(series: Series) -> ehr.Sources:
    return ehr.read_sources([clips.path_of(one.path) for one in series.instances.order_by("sop_uid")])


def _software() -> str:
    return f"Tessera {installed('tessera')}"
