"""Nothing later than as_of, nothing undated, nothing filled in: what a model is given about a patient."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

import ehr
from cds import catalogue
from cds.features import building, encoding
from cds.features.fields import CHANNELS, FIELDS, GENOMICS
from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.studies import queries as studies_queries
from cds.studies.models import Encoding, Series
from ehr import canonical_unit
from fusion import Modality, PatientInputs
from tests.cds.registry.rows import make_series
from tests.factories import NOW, condition, identity, make_patient, note, observation

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
IMAGE, CINE, TEXT = (
    encoding.pixel_key("tiny:00000000", 32),
    encoding.pixel_key("tiny:00000000", 16),
    "words:0000",
)
ENCODERS = {"image": IMAGE, "cine": CINE, "text": TEXT}


def built(patient: Patient, as_of: Any = NOW, **encoders: str) -> building.Built:
    return building.build_inputs(patient, as_of=as_of, encoders=encoders or ENCODERS)


def inputs(patient: Patient, as_of: Any = NOW, **encoders: str) -> PatientInputs:
    return built(patient, as_of, **encoders).inputs


class TestCatalogue:
    @pytest.mark.parametrize("measured", catalogue.LATEST, ids=lambda measured: measured.name)
    def test_units_are_those_of_ehr(self, measured: catalogue.Measurement) -> None:
        assert {canonical_unit(code) for code in measured.loinc} == {measured.unit}

    def test_no_code_means_two_things(self) -> None:
        codes = [code for measured in catalogue.LATEST for code in measured.loinc]
        assert len(codes) == len(set(codes))
        names = [spec.name for spec in (*FIELDS, *GENOMICS)]
        assert len(names) == len(set(names))

    def test_ranges_hold_something_and_labels_are_words(self) -> None:
        for spec in (*FIELDS, *GENOMICS, *CHANNELS):
            assert spec.low is not None
            assert spec.high is not None
            assert spec.low < spec.high
            assert "_" not in spec.label
            assert catalogue.label_of(spec.name) == spec.label, "a card and the panel call it otherwise"
        for size in catalogue.MEASURED:
            assert catalogue.label_of(size.name) == size.label
            assert "," not in size.label, "labels stand in lists"
            assert catalogue.value_in_words(size.name, 12.0, size.unit) in ("12", "12 cm²", "12 %", "12 mL")


@pytest.mark.django_db
class TestTime:
    """One fact of each kind, known a minute after as_of, or never dated: it must leave no trace."""

    LATER = NOW + timedelta(minutes=1)

    def facts(self, at: Any) -> dict[str, Any]:
        return {
            "observations": [
                observation("2524-7", 4.0, "mmol/L", at=at),
                observation("72166-2", None, at=at, value_code=ehr.Snomed("449868002")),
            ],
            "conditions": [condition("84114007", at=at)],
            "medications": [
                ehr.MedicationRecord(
                    resource_type="MedicationRequest", resource_id="m", available_at=at, code=ehr.RxNorm("1"),
                    status="active"
                )
            ],
            "notes": [note("Short of breath.", at=at)],
            "family_history": [
                ehr.FamilyHistoryRecord(
                    resource_type="FamilyMemberHistory", resource_id="f", available_at=at,
                    relationship=ehr.OtherCode("FTH"), condition=ehr.Snomed("22298006"),
                )
            ],
            "genomics": [
                ehr.GenomicRecord(
                    resource_type="Observation", resource_id="g", available_at=at, kind="variant", gene="TTN",
                    significance="Pathogenic", present=True,
                ),
                ehr.GenomicRecord(
                    resource_type="Observation", resource_id="g2", available_at=at, kind="score", value=1.5
                ),
            ],
        }  # fmt: skip

    def embed(self, patient: Patient) -> None:
        for held in patient.notes.all():
            studies_queries.put_embedding(held.text_digest, TEXT, np.ones((1, 4), np.float32), now=NOW)

    @pytest.mark.parametrize("when", ["later", "undated"])
    def test_what_was_not_known_leaves_no_trace(self, when: str) -> None:
        at = self.LATER if when == "later" else None
        bare, told = make_patient("same"), make_patient("told", **self.facts(at))
        self.embed(told)
        seen, nothing = built(told), built(bare)
        assert seen.inputs.digest() == nothing.inputs.digest()
        assert {one["type"] for one in seen.basis} == {"Patient"}
        assert seen.data_until is None

    def test_the_same_facts_known_in_time_are_all_used(self) -> None:
        patient = make_patient(**self.facts(NOW))
        self.embed(patient)
        seen = built(patient)
        assert seen.inputs.fields["lactate"] == 4.0
        assert seen.inputs.fields["smoker"] == 1.0
        assert seen.inputs.fields["heart_failure"] == 1.0
        assert seen.inputs.fields["active_medications"] == 1.0
        assert seen.inputs.fields["family_cardiac"] == 1.0
        assert seen.inputs.genomics == {"cardiomyopathy_variant": 1.0, "polygenic_risk": 1.5}
        assert [one.text for one in seen.inputs.notes] == ["Short of breath."]
        assert {one["type"] for one in seen.basis} == {
            "Patient", "Observation", "Condition", "MedicationRequest", "DocumentReference",
            "FamilyMemberHistory",
        }  # fmt: skip
        assert seen.data_until == NOW

    def test_issued_later_than_observed_is_known_later(self) -> None:
        late = observation("2524-7", 4.0, "mmol/L", at=NOW + HOUR, effective_at=NOW - HOUR)
        patient = make_patient(observations=[late])
        assert inputs(patient).fields["lactate"] is None
        assert inputs(patient, NOW + HOUR).fields["lactate"] == 4.0

    def test_an_undated_or_later_study_is_never_used(self) -> None:
        patient = make_patient()
        for at in (NOW + HOUR, None):
            series = make_series(patient, at)
            studies_queries.put_embedding(series.pixels_digest, IMAGE, np.ones((1, 4), np.float32), now=NOW)
        seen = inputs(patient)
        assert (seen.images, seen.pending) == ((), frozenset())

    def test_before_birth_there_is_no_age(self) -> None:
        patient = make_patient(patient=identity("baby", birth_date=date(2027, 1, 1)))
        assert inputs(patient).fields["age"] is None

    def test_death_is_no_input(self) -> None:
        alive = make_patient("a")
        digest = inputs(alive).digest()
        alive.deceased, alive.deceased_at = True, NOW - DAY
        alive.save()
        assert inputs(alive).digest() == digest


@pytest.mark.django_db
class TestValues:
    def test_the_latest_in_its_window_and_no_other(self) -> None:
        rates = [observation("8867-4", float(60 + days), "/min", at=NOW - days * DAY) for days in (3, 1, 2)]
        patient = make_patient(observations=rates)
        assert inputs(patient).fields["heart_rate"] == 61.0
        assert inputs(patient, NOW + 20 * DAY).fields["heart_rate"] is None

    def test_synonyms_and_further_codings_are_the_same_measurement(self) -> None:
        second = observation("2708-6", 93.0, "%", at=NOW)
        local = ehr.ObservationRecord(
            resource_type="Observation", resource_id="local", available_at=NOW, effective_at=NOW,
            code=ehr.OtherCode("crp", "", "urn:lab"), also=(ehr.Loinc("1988-5"),), value=80.0, unit="mg/L",
        )  # fmt: skip
        seen = inputs(make_patient(observations=[second, local])).fields
        assert (seen["spo2"], seen["crp"]) == (93.0, 80.0)

    @pytest.mark.parametrize(
        ("value", "unit", "status"),
        [(900.0, "mmol/L", "final"), (4.0, "mg/dL", "final"), (4.0, "mmol/L", "cancelled")],
    )
    def test_implausible_foreign_or_cancelled_values_are_missing(
        self, value: float, unit: str, status: str
    ) -> None:
        patient = make_patient(observations=[observation("2524-7", value, unit, status=status)])
        assert inputs(patient).fields["lactate"] is None

    def test_series_go_back_a_week(self) -> None:
        rates = [observation("8867-4", 70.0, "/min", at=NOW - hours * HOUR) for hours in (0, 5, 167, 169)]
        seen = inputs(make_patient(observations=rates)).series
        assert sorted(point.hours_before for point in seen) == [0.0, 5.0, 167.0]
        assert {point.channel for point in seen} == {"heart_rate"}

    def test_no_conditions_is_missing_and_other_conditions_is_none(self) -> None:
        unknown, known = make_patient(), make_patient(conditions=[condition("38341003")])
        assert inputs(unknown).fields["diabetes"] is None
        assert inputs(known).fields["diabetes"] == 0.0
        assert inputs(known).fields["hypertension"] == 1.0
        assert inputs(known).fields["active_conditions"] == 1.0

    def test_a_condition_counts_while_it_lasts(self) -> None:
        past = condition("233604007", at=NOW - 9 * DAY, clinical_status="resolved", abated_at=NOW - DAY)
        patient = make_patient(conditions=[past])
        assert inputs(patient).fields["pneumonia"] == 0.0
        assert inputs(patient, NOW - 2 * DAY).fields["pneumonia"] == 1.0
        assert inputs(patient, NOW - 20 * DAY).fields["pneumonia"] is None

    def test_icd_10_codes_count_by_their_group(self) -> None:
        patient = make_patient(conditions=[replace(condition("84114007"), code=ehr.Icd10("I50.9"))])
        assert inputs(patient).fields["heart_failure"] == 1.0

    @pytest.mark.parametrize(
        ("gene", "significance", "present", "value"),
        [
            ("TTN", "Pathogenic", True, 1.0),
            ("LMNA", "Likely pathogenic", True, 1.0),
            ("MYH7", "Benign", True, 0.0),
            ("MYH7", "Conflicting interpretations of pathogenicity", True, 0.0),
            ("TTN", "Pathogenic", False, 0.0),
            ("BRCA1", "Pathogenic", True, None),
            ("TTN", "Pathogenic", None, None),
        ],
    )
    def test_variants(self, gene: str, significance: str, present: bool | None, value: float | None) -> None:
        finding = ehr.GenomicRecord(
            resource_type="Observation", resource_id="g", available_at=NOW, kind="variant", gene=gene,
            significance=significance, present=present,
        )  # fmt: skip
        assert inputs(make_patient(genomics=[finding])).genomics["cardiomyopathy_variant"] == value


@pytest.mark.django_db
class TestPixelsAndNotes:
    def test_stored_but_not_embedded_is_pending(self) -> None:
        patient = make_patient(notes=[note("Worse.")])
        image = make_series(patient, NOW - HOUR)
        make_series(patient, NOW - HOUR, modality="US", frames=8, frame_ms=40.0)
        seen = inputs(patient)
        assert seen.pending == {Modality.IMAGE, Modality.CINE, Modality.TEXT}
        assert Modality.IMAGE not in seen.present()
        studies_queries.put_embedding(image.pixels_digest, IMAGE, np.ones((1, 4), np.float32), now=NOW)
        seen = inputs(patient)
        assert seen.pending == {Modality.CINE, Modality.TEXT}
        [held] = seen.images
        assert (held.key, held.hours_before, held.view) == (image.pixels_digest, 1.0, "PA")
        assert held.embeddings["tiny:00000000"].shape == (1, 4)

    def test_another_encoder_version_needs_its_own_embedding(self) -> None:
        patient = make_patient()
        image = make_series(patient, NOW)
        studies_queries.put_embedding(image.pixels_digest, IMAGE, np.ones((1, 4), np.float32), now=NOW)
        for other in (encoding.pixel_key("tiny:11111111", 32), encoding.pixel_key("tiny:00000000", 64)):
            assert inputs(patient, image=other).pending == {Modality.IMAGE}

    def test_what_the_model_does_not_use_is_left_out(self) -> None:
        patient = make_patient(notes=[note("Worse.")])
        make_series(patient, NOW)
        seen = building.build_inputs(patient, as_of=NOW, encoders={}).inputs
        assert seen.pending == frozenset()

    def test_an_encoding_that_failed_is_missing_not_pending(self) -> None:
        patient = make_patient()
        series = make_series(patient, NOW)
        Encoding.objects.create(
            study=series.study,
            pixels_digest="x",
            backbones="active",
            queued_at=NOW,
            work_state=WorkState.FAILED,
        )
        assert inputs(patient).pending == frozenset()

    @pytest.mark.parametrize(
        ("columns", "as_image", "as_cine", "as_volume"),
        [
            ({"modality": "CR"}, True, False, False),
            ({"modality": "DX", "body_part": ""}, True, False, False),
            ({"modality": "DX", "body_part": "HAND"}, False, False, False),
            ({"modality": "CT", "frames": 60}, False, False, False),
            ({"modality": "MR", "frames": 8}, False, False, False),
            ({"modality": "US", "frames": 8, "frame_ms": 33.0}, False, True, False),
            ({"modality": "XA", "frames": 8, "frame_ms": 66.0}, False, True, False),
            ({"modality": "US"}, False, False, False),
            (
                {
                    "modality": "CT",
                    "frames": 60,
                    "slice_mm": 5.0,
                    "spacing_row_mm": 0.7,
                    "spacing_column_mm": 0.7,
                },
                False,
                False,
                True,
            ),
            (
                {
                    "modality": "CT",
                    "frames": 3,
                    "slice_mm": 5.0,
                    "spacing_row_mm": 0.7,
                    "spacing_column_mm": 0.7,
                },
                False,
                False,
                False,
            ),
            ({"modality": "MR", "frames": 20, "slice_mm": 5.0}, False, False, False),
            ({"modality": "CR", "clip_path": ""}, False, False, False),
        ],
    )
    def test_which_series_are_read(
        self, columns: dict[str, Any], as_image: bool, as_cine: bool, as_volume: bool
    ) -> None:
        series = make_series(make_patient(), NOW, **columns)
        assert encoding.is_usable(series, Modality.IMAGE) is as_image
        assert encoding.is_usable(series, Modality.CINE) is as_cine
        assert encoding.is_usable(series, Modality.VOLUME) is as_volume

    def test_views_are_those_of_the_newest_study_and_pixels_read_only_when_asked(
        self, settings: Any, tmp_path: Any
    ) -> None:
        settings.STUDY_STORE = tmp_path
        patient = make_patient()
        old = make_series(patient, NOW - DAY)
        frontal = make_series(patient, NOW - HOUR, pixels=np.full((1, 8, 8), 0.5, np.float32))
        side = make_series(patient, None, view="LL")  # of the same Study
        Series.objects.filter(pk=side.pk).update(study=frontal.study)
        for series in (old, frontal, side):
            studies_queries.put_embedding(series.pixels_digest, IMAGE, np.ones((1, 4), np.float32), now=NOW)
        seen = built(patient)
        views = {image.key: image for image in seen.inputs.images}
        assert views.keys() == {frontal.pixels_digest, side.pixels_digest}
        assert {one["id"] for one in seen.basis if one["type"] == "ImagingStudy"} == {frontal.study.study_uid}
        np.testing.assert_allclose(views[frontal.pixels_digest].read().values, 0.5, atol=1e-4)
        [before] = inputs(patient, NOW - 2 * HOUR).images
        assert before.key == old.pixels_digest

    def test_an_older_radiograph_does_not_stand_in_while_the_newest_waits(self) -> None:
        patient = make_patient()
        old = make_series(patient, NOW - DAY)
        make_series(patient, NOW - HOUR)
        studies_queries.put_embedding(old.pixels_digest, IMAGE, np.ones((1, 4), np.float32), now=NOW)
        seen = inputs(patient)
        assert seen.images == ()
        assert seen.pending == {Modality.IMAGE}

    def test_a_newer_cine_leaves_the_radiograph_in(self) -> None:
        patient = make_patient()
        chest = make_series(patient, NOW - DAY)
        make_series(patient, NOW - HOUR, modality="US", frames=8, frame_ms=40.0)
        studies_queries.put_embedding(chest.pixels_digest, IMAGE, np.ones((1, 4), np.float32), now=NOW)
        assert [image.key for image in inputs(patient).images] == [chest.pixels_digest]

    def test_encoding_twice_computes_once(self, settings: Any, tmp_path: Any) -> None:
        settings.STUDY_STORE = tmp_path
        series = make_series(
            make_patient(), NOW, pixels=np.random.default_rng(0).random((1, 40, 40), np.float32)
        )
        backbone = encoding.get_backbone("small_cnn")
        assert encoding.encode_series(series, backbone, size=32, now=NOW)
        assert not encoding.encode_series(series, backbone, size=32, now=NOW)
        key = encoding.pixel_key(backbone.version, 32)
        assert studies_queries.embeddings([series.pixels_digest], key)[series.pixels_digest].shape == (
            1, backbone.width
        )  # fmt: skip
        text = encoding.get_text_backbone("hashing")
        digest = hashlib.sha256(b"x").hexdigest()
        assert encoding.encode_note("Worse. Much worse.", digest, text, now=NOW)
        assert not encoding.encode_note("Worse. Much worse.", digest, text, now=NOW)
        assert studies_queries.embeddings([digest], text.version)[digest].shape == (2, text.width)
