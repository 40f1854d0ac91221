"""A volume in mL on the real path: an MR arrives, a 3D U-Net measures it, a model and the panel read it.

All scans are simulated: a bright ellipsoid of known size in noise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusion
from cds.features import building
from cds.features.fields import FIELDS
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.risk import evidence, measuring, scoring
from cds.sending import dicom_documents
from cds.studies import receiving
from cds.studies.models import Measurement, Outline, Series
from tests.cds.registry import ward
from tests.cds.registry.rows import make_series
from tests.factories import NOW, make_patient
from web import imaging

pytestmark = pytest.mark.django_db
SPACING = {"slice_mm": 4.0, "spacing_row_mm": 3.0, "spacing_column_mm": 2.0}
MANIFEST = {
    "title": "3D U-Net, taught on simulated scans", "imaging_modalities": ["MR"], "body_parts": ["BRAIN"],
    "views": [""], "descriptions": ["flair"], "moving": False,
    "sizes": [{"name": "tumour_volume", "of": ["tumour"]}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _stores(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"
    measuring._load.cache_clear()


def scan(seed: int, shape: tuple[int, int, int] = (10, 32, 32)) -> fusion.Drawn:
    """A simulated scan [1, D, H, W] and its ellipsoid."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    middle, radius = rng.uniform(-0.25, 0.25, 3), rng.uniform(0.35, 0.6, 3)
    inside = sum(((a - m) / r) ** 2 for a, m, r in zip(axes, middle, radius, strict=True)) <= 1
    values = np.clip(0.25 + 0.5 * inside + rng.normal(0, 0.08, shape), 0, 1).astype(np.float32)
    return fusion.Drawn(values[None], np.asarray(inside)[None])


@pytest.fixture(scope="module")
def trained() -> fusion.Segmenter:
    config = fusion.SegmenterConfig(
        structures=("tumour",), kind=fusion.SegmenterKind.UNET_3D, size=32, slices=12, widths=(8, 16),
        epochs=40, batch_size=4, learning_rate=1e-2,
    )  # fmt: skip
    return fusion.train_segmenter([scan(seed) for seed in range(16)], [], config)


def register(settings: Any, segmenter: fusion.Segmenter, **changes: Any) -> None:
    folder = Path(settings.SEGMENTER_STORE) / "tumour"
    segmenter.save(folder)
    (folder / measuring.MANIFEST).write_text(json.dumps(MANIFEST | changes))


def mr(patient: Any, drawn: fusion.Drawn, **columns: Any) -> Series:
    told = {"modality": "MR", "body_part": "BRAIN", "view": "", "description": "AX T2 FLAIR", **SPACING}
    return make_series(patient, NOW, pixels=drawn.values[0], **{**told, **columns})


def test_a_known_volume_is_measured_shown_and_a_field(settings: Any, trained: fusion.Segmenter) -> None:
    register(settings, trained)
    drawn = scan(99, (14, 48, 40))  # neither a shape nor a spacing it was taught on
    known = float(drawn.masks.sum()) * 4.0 * 3.0 * 2.0 / 1000
    patient = make_patient()
    series = mr(patient, drawn)
    work = receiving.request_encoding(series.study, now=NOW)
    scoring.encode(work.pk)
    work.refresh_from_db()
    assert (work.work_state, work.failure) == (WorkState.DONE, "")
    row = Measurement.objects.get()
    assert (row.name, row.unit, row.method) == ("tumour_volume", "mL", MANIFEST["title"])
    assert row.value == pytest.approx(known, rel=0.15)
    assert Outline.objects.get().structures == ["tumour"]
    fields = building.build_inputs(patient, as_of=NOW, encoders={}).inputs.fields
    assert fields["tumour_volume"] == row.value
    assert [spec.unit for spec in FIELDS if spec.name == "tumour_volume"] == ["mL"]
    (view,) = evidence.measurements(patient, None)
    shown = imaging.measurement(view)
    assert (view.label, shown.value) == ("Brain tumour volume", f"{row.value:.0f} mL")
    assert not view.is_cine
    assert dicom_documents._size(row).unit.meaning == "milliliter"


@pytest.mark.parametrize("unknown", ["slice_mm", "spacing_row_mm"])
def test_without_all_spacing_a_volume_is_unknown_and_says_why(
    settings: Any, trained: fusion.Segmenter, unknown: str
) -> None:
    register(settings, trained)
    patient = make_patient()
    assert measuring.measure(mr(patient, scan(1), **{unknown: None}), now=NOW) == []
    row = Measurement.objects.get()
    assert row.value is None
    assert "spacing of slices or pixels is not known" in row.why
    assert building.build_inputs(patient, as_of=NOW, encoders={}).inputs.fields["tumour_volume"] is None


def test_a_tumour_that_is_not_found_is_not_0_ml(
    settings: Any, trained: fusion.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(settings, trained)
    monkeypatch.setattr(fusion.Segmenter, "probabilities", lambda _, values: np.zeros_like(values))
    measuring.measure(mr(make_patient(), scan(1)), now=NOW)
    row = Measurement.objects.get()
    assert (row.value, row.why) == (None, "no tumour was found")


@pytest.mark.parametrize(
    "columns", [{"description": "AX T1"}, {"modality": "CT"}, {"body_part": "CHEST"}, {"frame_ms": 40.0}]
)
def test_other_series_are_left_alone(
    settings: Any, trained: fusion.Segmenter, columns: dict[str, Any]
) -> None:
    register(settings, trained)
    measuring.measure(mr(make_patient(), scan(1), **columns), now=NOW)
    measuring.measure(mr(make_patient("p2"), scan(1, (6, 32, 32))), now=NOW)  # a localiser
    assert not Measurement.objects.exists()


def test_a_manifest_that_mixes_flat_and_3d_is_refused(settings: Any, trained: fusion.Segmenter) -> None:
    series = mr(make_patient(), scan(1))
    flat = fusion.Segmenter(fusion.SegmenterConfig(structures=("tumour",), size=32, widths=(8, 16)))
    for segmenter, changes, words in (
        (flat, {}, "tumour_volume is measured by a segmenter of kind unet_3d, not unet"),
        (trained, {"sizes": [{"name": "lung_area", "of": ["tumour"]}]}, "kind unet or attention_unet"),
        (trained, {"moving": True}, "`moving` must be false"),
    ):
        register(settings, segmenter, **changes)
        measuring._load.cache_clear()
        (reason,) = measuring.measure(series, now=NOW)
        assert words in reason
