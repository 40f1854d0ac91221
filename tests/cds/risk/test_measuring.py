"""Sizes on the real path: a picture arrives, a segmenter measures it, a model and the panel read the size."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ehr
import fusion
from cds.features import building
from cds.features.fields import FIELDS
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.risk import evidence, measuring, scoring
from cds.studies import clips, receiving
from cds.studies.models import Measurement, Outline, Series
from tests.cds.registry import ward
from tests.cds.registry.rows import make_series
from tests.factories import NOW, make_patient

pytestmark = pytest.mark.django_db
SIDE = 48


@pytest.fixture(autouse=True)
def _stores(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "heartbeat", ward.still_heart)
    settings.IMAGE_BACKBONE, settings.TEXT_BACKBONE = "small_cnn", "hashing"


def chest(ratio: float, side: int = SIDE) -> np.ndarray:
    """Two grey lungs and a bright heart between them, float32 [side, side]; inner chest 0.8 of the width."""
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.zeros((side, side), np.float32)
    picture[(y > 0.1) & (y < 0.8) & (x >= 0.1) & (x < 0.9)] = 0.4
    half = ratio * 0.8 / 2
    picture[(y > 0.45) & (y < 0.78) & (abs(x - 0.5 + 0.5 / side) < half)] = 0.9
    return picture


class ByBrightness:
    """Stands in for a trained network: heart above 0.7, lungs between 0.2 and 0.7."""

    config = fusion.SegmenterConfig(structures=("heart", "lungs"), size=SIDE)

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def probabilities(self, values: np.ndarray) -> np.ndarray:
        heart, lungs = values[0] > 0.7, (values[0] > 0.2) & (values[0] <= 0.7)
        lungs = lungs | heart
        return np.where(np.stack([heart, lungs]), 0.9, 0.1).astype(np.float32)


@pytest.fixture
def register(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """register(digest): a segmenter of that version in the store."""

    def _register(digest: str = "aaaaaaaa", **changes: Any) -> None:
        folder = Path(settings.SEGMENTER_STORE) / "chest"
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "title": "By brightness", "imaging_modalities": ["CR", "DX"], "body_parts": ["CHEST"],
            "views": ["PA"], "moving": False,
            "sizes": [
                {"name": "cardiothoracic_ratio", "of": ["heart", "lungs"]},
                {"name": "lung_area", "of": ["lungs"]},
            ],
        }  # fmt: skip
        (folder / measuring.MANIFEST).write_text(json.dumps(manifest | changes))
        monkeypatch.setattr(fusion.Segmenter, "load", lambda folder: ByBrightness(digest))
        measuring._load.cache_clear()

    return _register


def image(patient: Any, ratio: float, *, days: float = 0.0, **columns: Any) -> Series:
    spacing = {"spacing_row_mm": 7.0, "spacing_column_mm": 7.0}
    return make_series(patient, NOW - timedelta(days=days), pixels=chest(ratio)[None], **(spacing | columns))


def seen(patient: Any, at: Any = NOW) -> dict[str, float | None]:
    return dict(building.build_inputs(patient, as_of=at, encoders={}).inputs.fields)


def test_what_arrives_is_measured_and_becomes_a_field(register: Any) -> None:
    register()
    patient = make_patient()
    series = image(patient, 0.6)
    work = receiving.request_encoding(series.study, now=NOW)
    scoring.encode(work.pk)
    work.refresh_from_db()
    assert (work.work_state, work.failure) == (WorkState.DONE, "")
    ratio = Measurement.objects.get(name="cardiothoracic_ratio")
    assert ratio.value == pytest.approx(0.6, abs=0.03)
    assert (ratio.method, ratio.method_version, ratio.confidence) == (
        "By brightness",
        "aaaaaaaa",
        pytest.approx(0.9),
    )
    drawn = Outline.objects.get(series=series)
    assert (drawn.structures, drawn.method_version) == (["heart", "lungs"], "aaaaaaaa")
    np.testing.assert_array_equal(clips.load_masks(drawn.path)[0, :, :, 0], chest(0.6) > 0.7)
    fields = seen(patient)
    assert fields["cardiothoracic_ratio"] == ratio.value
    assert fields["lung_area"] == pytest.approx(0.8 * 0.7 * (SIDE * 0.7) ** 2, rel=0.08)
    assert fields["measured_ejection_fraction"] is None
    assert "cardiothoracic_ratio" in {spec.name for spec in FIELDS}


def test_without_spacing_an_area_is_unknown_and_says_why(register: Any) -> None:
    register()
    patient = make_patient()
    measuring.measure(image(patient, 0.5, spacing_row_mm=None, spacing_column_mm=None), now=NOW)
    area = Measurement.objects.get(name="lung_area")
    assert area.value is None
    assert "spacing is not known" in area.why
    assert seen(patient)["lung_area"] is None
    assert Measurement.objects.get(name="cardiothoracic_ratio").value is not None


def test_a_size_no_body_has_is_not_believed(register: Any) -> None:
    register()
    measuring.measure(image(make_patient(), 0.1), now=NOW)
    ratio = Measurement.objects.get(name="cardiothoracic_ratio")
    assert ratio.value is None
    assert "outside 0.2 to 0.95" in ratio.why


def test_another_method_makes_rows_of_its_own_and_twice_is_once(register: Any) -> None:
    register("aaaaaaaa")
    series = image(make_patient(), 0.5)
    for _ in range(2):
        assert measuring.measure(series, now=NOW) == []
    register("bbbbbbbb")
    measuring.measure(series, now=NOW + timedelta(hours=1))
    rows = Measurement.objects.filter(name="cardiothoracic_ratio").order_by("made_at")
    assert [row.method_version for row in rows] == ["aaaaaaaa", "bbbbbbbb"]


@pytest.mark.parametrize("columns", [{"view": "LL"}, {"modality": "US"}, {"body_part": "HAND"}])
def test_pictures_it_was_not_made_for_are_left_alone(register: Any, columns: dict[str, Any]) -> None:
    register()
    measuring.measure(image(make_patient(), 0.5, **columns), now=NOW)
    assert not Measurement.objects.exists()


def test_a_later_picture_is_not_known_earlier_and_an_old_one_no_more(register: Any) -> None:
    register()
    patient = make_patient()
    measuring.measure(image(patient, 0.4, days=30), now=NOW)
    measuring.measure(image(patient, 0.6), now=NOW)
    assert seen(patient)["cardiothoracic_ratio"] == pytest.approx(0.6, abs=0.03)
    assert seen(patient, NOW - timedelta(days=1))["cardiothoracic_ratio"] == pytest.approx(0.4, abs=0.03)
    assert seen(patient, NOW - timedelta(days=40))["cardiothoracic_ratio"] is None
    assert seen(patient, NOW + timedelta(days=400))["cardiothoracic_ratio"] is None


def test_the_panel_shows_the_newest_beside_the_one_before(register: Any) -> None:
    register()
    patient = make_patient()
    measuring.measure(image(patient, 0.4, days=30), now=NOW)
    measuring.measure(image(patient, 0.6, spacing_row_mm=None, spacing_column_mm=None), now=NOW)
    rows = {row.name: row for row in evidence.measurements(patient, None)}
    ratio = rows["cardiothoracic_ratio"]
    assert (ratio.value, ratio.earlier) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.4, abs=0.03))
    assert ratio.reference == (None, 0.5)
    assert rows["lung_area"].value is None
    assert rows["lung_area"].why
    before = evidence.measurements(patient, NOW - timedelta(days=1))
    assert {row.name: row.value for row in before}["cardiothoracic_ratio"] == pytest.approx(0.4, abs=0.03)
    assert evidence.measurements(make_patient("p2"), None) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": [{"name": "spleen", "of": ["heart"]}]}, "no size 'spleen'"),
        ({"sizes": [{"name": "lung_area", "of": ["spleen"]}]}, "does not draw spleen"),
        ({"sizes": None}, "cannot be used"),
    ],
)
def test_a_manifest_that_is_wrong_says_what_and_costs_no_score(
    register: Any, changes: dict[str, Any], words: str
) -> None:
    register(**changes)
    series = image(make_patient(), 0.5)
    (reason,) = measuring.measure(series, now=NOW)
    assert words in reason
    work = receiving.request_encoding(series.study, now=NOW)
    scoring.encode(work.pk)
    work.refresh_from_db()
    assert work.work_state == WorkState.DONE


def test_ejection_fraction_of_a_moving_ventricle() -> None:
    """An ellipse that loses a third of its area at constant length: V ~ A^2 / L, so 1 - (2/3)^2."""
    y, x = np.mgrid[0:80, 0:80]
    frames = [((y - 40) / 30) ** 2 + ((x - 40) / (15 * share)) ** 2 < 1 for share in (1.0, 0.8, 2 / 3, 0.9)]
    clip = ehr.Clip(
        frames=np.zeros((4, 80, 80), np.float32), times_ms=np.zeros(4, np.float32), spacing_mm=(1.0, 1.0)
    )
    size = measuring._SIZES["measured_ejection_fraction"]({"lv": np.stack(frames)}, ["lv"], clip)
    assert size.value == pytest.approx(100 * (1 - (2 / 3) ** 2), abs=3)
