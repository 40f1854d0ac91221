"""Pixels and notes become stored embeddings: which Series may be used, by which backbone, under which key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from django.conf import settings

from cds.patients.models import Patient
from cds.statements import Statement
from cds.studies import queries as studies_queries
from cds.studies import receiving
from cds.studies.models import Series
from fusion import (
    Frames,
    ImageBackbone,
    Modality,
    TextBackbone,
    UnknownEncoder,
    VolumeBackbone,
    load_backbone,
    load_text_backbone,
    same_text,
    serve,
    text_backbone_names,
)

RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG"})  # DICOM Modality (0008,0060) of still images
MOVING = frozenset({"US", "XA", "RF", "MR", "IVUS"})  # of cines, when they hold several frames in time
VOLUMES = frozenset({"CT", "MR"})
LEAST_SLICES = 8  # below which a stack is a localiser or a few pictures, not a volume
CHEST = ("CHEST", "THORAX", "LUNG", "HEART", "RIB")  # BodyPartExamined of a radiograph we may use, or ""
PIXELS = (Modality.IMAGE, Modality.CINE, Modality.VOLUME)
MAX_PIXELS = 4  # Series of a modality, newest first


def pixel_key(backbone_version: str, size: int) -> str:
    """Embeddings depend on the side they were resized to as well: `name:sha8@size`."""
    return f"{backbone_version}@{size}"


def split_pixel_key(key: str) -> tuple[str, int]:
    """The backbone version and the size of a `pixel_key`."""
    version, _, size = key.rpartition("@")
    return version, int(size)


def is_usable(series: Series, modality: Modality) -> bool:
    """Whether a decoded Series is a chest radiograph (image), a cine, or even slices of a chest (volume)."""
    if not series.pixels_digest or not series.clip_path or series.failure:
        return False
    part = series.body_part.upper()
    if modality == Modality.VOLUME:
        return (
            series.imaging_modality in VOLUMES
            and any(word in part for word in CHEST)
            and series.frames >= LEAST_SLICES
            and bool(series.slice_mm and series.spacing_row_mm and series.spacing_column_mm)
        )
    if modality == Modality.CINE:
        return series.imaging_modality in MOVING and series.is_cine and bool(series.frame_ms)
    return (
        series.imaging_modality in RADIOGRAPHS
        and not series.is_cine
        and (not part or any(word in part for word in CHEST))
    )


_any = Statement(lambda patient: Series.objects.filter(study__patient=patient).values_list("pk")[:1])


def taken_series(patient: Patient, *, as_of: datetime) -> list[Series]:
    """Every Series of a patient taken by as_of, newest first. An undated study is never used."""
    if _any.row(patient=patient.pk) is None:
        return []
    return list(
        Series.objects.filter(study__patient=patient, study__started_at__lte=as_of)
        .select_related("study")
        .order_by("-study__started_at", "series_uid")
    )


def usable_series(taken: Iterable[Series], modality: Modality) -> list[Series]:
    """The images, cines or volumes among a patient's Series, newest first.

    Images are the views of one Study, the newest with a usable radiograph: a model pools views, and an older
    picture is no view of how the patient is now. Nor does it stand in while the newest waits for its encoder.
    """
    usable = [series for series in taken if is_usable(series, modality)]
    if modality == Modality.IMAGE:
        usable = [series for series in usable if series.study_id == usable[0].study_id]
    return usable[:MAX_PIXELS]


def read_frames(series: Series) -> Frames:
    clip = receiving.load_clip(series)
    return Frames(clip.frames, clip.times_ms, clip.spacing_mm, clip.slice_mm)


# -- backbones -------------------------------------------------------------------------------------------
@lru_cache(maxsize=4)
def get_backbone(name: str) -> ImageBackbone:
    """The image backbone of that name, with the site's weights where it is the site's; once per process.

    It runs in ONNX Runtime unless ENCODER_RUNTIME says otherwise: the same embeddings, to 1e-4, in a third
    of the time.
    """
    backbone = load_backbone(name, weights=image_weights(name))
    if settings.ENCODER_RUNTIME == "torch":
        return backbone
    return serve(backbone, settings.ENCODER_STORE, threads=settings.ENCODER_THREADS)


def image_weights(name: str) -> Path | None:
    """The file of IMAGE_WEIGHTS, for the architecture that IMAGE_BACKBONE names; None for others."""
    is_own = name.partition("+")[0] == settings.IMAGE_BACKBONE.partition("+")[0]
    return settings.IMAGE_WEIGHTS if is_own else None


@lru_cache(maxsize=2)
def get_volume_backbone(name: str) -> VolumeBackbone:
    """The volume backbone of that name, with the site's weights where its 2D backbone is the site's."""
    return VolumeBackbone(name, weights=image_weights(name.partition("/")[0]))


@lru_cache(maxsize=2)
def get_text_backbone(name: str) -> TextBackbone:
    """The text backbone of that name, loaded once per process."""
    return load_text_backbone(text_folder(name))


def text_backbone_of(version: str) -> TextBackbone:
    """The text backbone of that very version. Raises UnknownEncoder where there is none, or another."""
    backbone = get_text_backbone(version.rpartition(":")[0])
    if not same_text(backbone.version, version):
        raise UnknownEncoder(
            f"asked for {version}, and here is {backbone.version}: let TEXT_BACKBONE name the folder the "
            "model was trained with, or put it into TEXT_STORE"
        )
    return backbone


def find_text_folder(name: str) -> Path | None:
    """Where a text encoder lies here; None for those of packages, and where it is not found."""
    try:
        return None if name in ("", *text_backbone_names()) else Path(text_folder(name))
    except UnknownEncoder:
        return None


def text_folder(name: str) -> str:
    """Where a text encoder lies here: TEXT_BACKBONE if it is called so, or its folder in TEXT_STORE.

    name  as versions and runs name it; of a path only the last part counts
    Raises UnknownEncoder.
    """
    if name in text_backbone_names():
        return name
    called = Path(name).name
    for place in (Path(settings.TEXT_BACKBONE), Path(settings.TEXT_STORE) / called):
        if place.name == called and (place / "config.json").is_file():
            return str(place)
    raise UnknownEncoder(
        f"no text encoder {called!r} here: let TEXT_BACKBONE name its folder, or put that folder into "
        f"TEXT_STORE ({settings.TEXT_STORE})"
    )


def encode_series(
    series: Series, backbone: ImageBackbone | VolumeBackbone, *, size: int, now: datetime
) -> bool:
    """Store what `backbone` makes of every frame (of the volume) at `size` pixels a side; False when it is
    already there."""
    key = pixel_key(backbone.version, size)
    if studies_queries.embeddings([series.pixels_digest], key):
        return False
    frames = read_frames(series)
    if isinstance(backbone, VolumeBackbone):
        made = backbone.embed(frames, size)
    else:
        made = backbone.embed(frames.values, size)
    studies_queries.put_embedding(series.pixels_digest, key, made, now=now)
    return True


def encode_note(text: str, digest: str, backbone: TextBackbone, *, now: datetime, key: str = "") -> bool:
    """Store one row a sentence; False when it is already there.

    key  what it is kept under; without, the backbone's version (model versions from before hold a whole path)
    """
    key = key or backbone.version
    if studies_queries.embeddings([digest], key):
        return False
    studies_queries.put_embedding(digest, key, backbone.embed(text), now=now)
    return True
