"""Nothing later than the prediction time enters a prediction, for every type that is read (INTEROP 34).

Each type has plants: resources that could not be known at NOW, taken in by the same door as everything else.
They must leave no trace in what a model is given and in what a screen shows as of NOW. A type that is read
and has no plant here fails the test.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.contrib.auth.models import User

from cds import ingesting
from cds.patients import queries, rows
from cds.patients.models import Patient
from cds.studies import queries as studies_queries
from cds.studies.models import Series, Study
from ehr.fhir.resources import READERS
from tests.cds.features.test_features import ENCODERS, TEXT, built
from tests.factories import NOW, TESTS, make_source, make_user

Json = dict[str, Any]
BEFORE, AFTER, MUCH_LATER = ((NOW + timedelta(days=n)).isoformat() for n in (-2, 2, 9))
END = NOW + timedelta(days=10)


def coded(system: str, code: str) -> Json:
    return {"coding": [{"system": system, "code": code}]}


LOINC, SNOMED, RXNORM = (
    "http://loinc.org",
    "http://snomed.info/sct",
    "http://www.nlm.nih.gov/research/umls/rxnorm",
)
LACTATE: Json = {
    "status": "final",
    "code": coded(LOINC, "2524-7"),
    "valueQuantity": {"value": 9, "code": "mmol/L", "system": "http://unitsofmeasure.org"},
}
HEART_FAILURE: Json = {"code": coded(SNOMED, "84114007")}
DRUG: Json = {"status": "active", "medicationCodeableConcept": coded(RXNORM, "4603")}
TEXT_OF_NOTE = {"contentType": "text/plain", "data": base64.b64encode(b"He will die.").decode()}
DOCUMENT: Json = {"status": "current", "content": [{"attachment": TEXT_OF_NOTE}]}
REPORT: Json = {"status": "final", "code": coded(LOINC, "24627-2"), "conclusion": "Embolism."}
VARIANT: Json = {
    "status": "final",
    "code": coded(LOINC, "69548-6"),
    "valueCodeableConcept": coded(LOINC, "LA9633-4"),
    "component": [
        {"code": coded(LOINC, "48018-6"), "valueCodeableConcept": {"text": "TTN"}},
        {"code": coded(LOINC, "53037-8"), "valueCodeableConcept": {"text": "Pathogenic"}},
    ],
}
IMPLICATION: Json = {
    "status": "final",
    "code": coded("http://hl7.org/fhir/uv/genomics-reporting", "diagnostic-implication"),
    "component": [{"code": coded(LOINC, "53037-8"), "valueCodeableConcept": {"text": "Pathogenic"}}],
    "derivedFrom": [{"reference": "Observation/v1"}],
}
SCORE: Json = {
    "status": "final",
    "category": [coded("http://terminology.hl7.org/CodeSystem/v2-0074", "GE")],
    "code": {"text": "Polygenic risk score, coronary artery disease"},
    "valueQuantity": {"value": 1.7},
}
RELATIVE: Json = {
    "status": "completed",
    "relationship": {"text": "father"},
    "condition": [{"code": coded(SNOMED, "22298006")}],
}
STAY: Json = {"status": "in-progress", "class": {"code": "IMP"}}
STUDY: Json = {
    "status": "available",
    "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}],
    "modality": [{"code": "DX"}],
}
ALLERGY: Json = {"patient": {"reference": "Patient/p1"}, "code": coded(SNOMED, "91936005")}

# resource type → what could not be known at NOW, each time another date that tells so
PLANTS: dict[str, dict[str, Json]] = {
    "AllergyIntolerance": {"recorded later": {**ALLERGY, "onsetDateTime": BEFORE, "recordedDate": AFTER}},
    "Condition": {
        "began later": {**HEART_FAILURE, "onsetDateTime": AFTER},
        "recorded later": {**HEART_FAILURE, "onsetDateTime": BEFORE, "recordedDate": AFTER},
        "undated": HEART_FAILURE,
    },
    "DiagnosticReport": {
        "issued later": {**REPORT, "effectiveDateTime": BEFORE, "issued": AFTER},
        "of a later moment": {**REPORT, "effectiveDateTime": AFTER},
    },
    "DocumentReference": {
        "written later": {**DOCUMENT, "context": {"period": {"start": BEFORE}}, "date": AFTER},
        "of a period that had not ended": {
            **DOCUMENT,
            "context": {"period": {"start": BEFORE, "end": AFTER}},
        },
    },
    "Encounter": {
        "began later": {**STAY, "period": {"start": AFTER}},
        "planned": {**STAY, "status": "planned", "period": {"start": AFTER, "end": MUCH_LATER}},
    },
    "FamilyMemberHistory": {"asked later": {**RELATIVE, "date": AFTER}, "undated": RELATIVE},
    "ImagingStudy": {"taken later": {**STUDY, "started": AFTER}},
    "MedicationAdministration": {
        "given later": {**DRUG, "status": "in-progress", "effectiveDateTime": AFTER}
    },
    "MedicationRequest": {
        "ordered later": {**DRUG, "authoredOn": AFTER},
        "ordered later, said to be from before": {
            **DRUG,
            "authoredOn": AFTER,
            "dosageInstruction": [{"timing": {"repeat": {"boundsPeriod": {"start": BEFORE}}}}],
        },
    },
    "MedicationStatement": {
        "told later": {**DRUG, "effectivePeriod": {"start": BEFORE}, "dateAsserted": AFTER},
        "taken later": {**DRUG, "effectivePeriod": {"start": AFTER}},
    },
    "Observation": {
        "issued later": {**LACTATE, "effectiveDateTime": BEFORE, "issued": AFTER},
        "observed later": {**LACTATE, "effectiveDateTime": AFTER},
        "over a time that had not ended": {**LACTATE, "effectivePeriod": {"start": BEFORE, "end": AFTER}},
        "undated": LACTATE,
        "a variant read later": {**VARIANT, "effectiveDateTime": BEFORE, "issued": AFTER},
        "an implication issued later": {**IMPLICATION, "effectiveDateTime": BEFORE, "issued": AFTER},
        "an implication of a variant read later": {**IMPLICATION, "issued": BEFORE},
        "a polygenic score issued later": {**SCORE, "effectiveDateTime": BEFORE, "issued": AFTER},
        "a polygenic score of a later sample": {**SCORE, "effectiveDateTime": AFTER},
    },
    "Patient": {"died later": {"gender": "male", "birthDate": "1950-06-01", "deceasedDateTime": AFTER}},
    "Procedure": {
        "done later": {"status": "completed", "code": coded(SNOMED, "232717009"), "performedDateTime": AFTER},
        "not over yet": {
            "status": "in-progress",
            "code": coded(SNOMED, "232717009"),
            "performedPeriod": {"start": BEFORE, "end": AFTER},
        },
    },
}
# What a plant points to, taken in beside it.
BESIDE: dict[str, Json] = {
    "an implication of a variant read later": {
        **VARIANT,
        "resourceType": "Observation",
        "id": "v1",
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": BEFORE,
        "issued": AFTER,
    },
}
CASES = [(kind, name) for kind, plants in PLANTS.items() for name in plants]
FACTS = ("observations", "conditions", "medications", "notes", "procedures", "allergies", "stays")


@pytest.mark.parametrize("kind", [*READERS, "Patient"])
def test_every_type_that_is_read_has_a_plant(kind: str) -> None:
    assert PLANTS.get(kind), f"{kind} is read and nobody checks that its future stays out of predictions"


def test_every_kind_of_fact_has_a_plant(tmp_path: Path, db: None) -> None:
    entries = [plant(kind, name, number) for number, (kind, name) in enumerate(CASES) if kind != "Patient"]
    patient = take_in(tmp_path, *entries)
    bare = [
        kind.model.__name__ for kind in rows.KINDS if not kind.model._default_manager.filter(patient=patient)
    ]
    assert bare == []


@pytest.mark.django_db
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_the_future_leaves_no_trace(kind: str, name: str, tmp_path: Path) -> None:
    beside = [BESIDE[name]] if name in BESIDE else []
    planted = take_in(tmp_path / "planted", plant(kind, name), *beside, source="planted")
    bare = take_in(tmp_path / "bare", source="bare")
    embed_everything(planted)
    at_the_time, nothing = built(planted), built(bare)
    assert at_the_time.inputs.digest() == nothing.inputs.digest()
    assert at_the_time.basis == nothing.basis
    assert at_the_time.data_until is None
    assert at_the_time.inputs.pending == frozenset()
    assert shown(planted, NOW) == shown(bare, NOW)
    if name != "undated":
        is_used = built(planted, END).inputs.digest() != built(bare, END).inputs.digest()
        assert is_used or shown(planted, END) != shown(bare, END) or kind == "Patient", "the plant is dead"


def plant(kind: str, name: str, number: int = 0) -> Json:
    subject = {} if kind == "Patient" else {"subject": {"reference": "Patient/p1"}}
    return {
        "resourceType": kind,
        "id": "p1" if kind == "Patient" else f"x{number}",
        **subject,
        **PLANTS[kind][name],
    }


def take_in(folder: Path, *resources: Json, source: str = "ward") -> Patient:
    folder.mkdir(exist_ok=True)
    patient = {"resourceType": "Patient", "id": "p1", "gender": "male", "birthDate": "1950-06-01"}
    kept = resources if any(one["id"] == "p1" for one in resources) else (patient, *resources)
    entries = [{"resource": one} for one in kept]
    (folder / "record.json").write_text(
        json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})
    )
    tally = ingesting.ingest_fhir(folder, source=make_source(source), by=TESTS, now=NOW)
    assert tally.refused == []
    patient_row = Patient.objects.get(source__slug=source)
    for study in Study.objects.filter(patient=patient_row):
        Series.objects.create(
            study=study,
            series_uid=f"{study.study_uid}.1",
            imaging_modality="DX",
            pixels_digest="d" * 64,
            clip_path="x",
            frames=1,
        )
    return patient_row


def embed_everything(patient: Patient) -> None:
    for held in patient.notes.all():
        studies_queries.put_embedding(held.text_digest, TEXT, np.ones((1, 4), np.float32), now=NOW)
    studies_queries.put_embedding("d" * 64, ENCODERS["image"], np.ones((1, 4), np.float32), now=NOW)


def onlooker(name: str) -> User:
    found = make_user("admin", name=name)
    found.is_superuser = True
    return found


def shown(patient: Patient, as_of: Any) -> Json:
    view = queries.get_record(onlooker(f"{patient.source.slug} {as_of:%d}"), patient, as_of=as_of)
    told = {name: getattr(view, name) for name in (*FACTS, "family_history", "genomics")}
    return {**told, "sex": view.sex, "age": view.age_years}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "known", "later"),
    [
        (
            "Encounter",
            {**STAY, "period": {"start": BEFORE}},
            {"location": [{"location": {"display": "Hospice"}, "period": {"start": AFTER}}]},
        ),
        ("Encounter", {**STAY, "period": {"start": BEFORE}}, {"period": {"start": BEFORE, "end": AFTER}}),
        ("Condition", {**HEART_FAILURE, "onsetDateTime": BEFORE}, {"abatementDateTime": AFTER}),
        (
            "AllergyIntolerance",
            {**ALLERGY, "onsetDateTime": BEFORE, "clinicalStatus": coded("", "active")},
            {"meta": {"lastUpdated": BEFORE}},
        ),
    ],
    ids=["moved later", "left later", "over later", "written before"],
)
def test_what_came_to_a_known_fact_later_is_not_shown_before(
    kind: str, known: Json, later: Json, tmp_path: Path
) -> None:
    subject = {"resourceType": kind, "id": "x1", "subject": {"reference": "Patient/p1"}}
    before = take_in(tmp_path / "before", {**subject, **known}, source="before")
    after = take_in(tmp_path / "after", {**subject, **known, **later}, source="after")
    assert shown(before, NOW) == shown(after, NOW)
    assert built(before).inputs.digest() == built(after).inputs.digest()
    if "meta" not in later:
        assert shown(before, END) != shown(after, END), "it says nothing"


class TestEndingsWithoutADate:
    """Over by now, nobody says since when: today's status must not be read into the past."""

    RESOLVED: Json = {
        **HEART_FAILURE,
        "onsetDateTime": "2020-01-01",
        "recordedDate": "2020-01-02",
        "clinicalStatus": coded("http://terminology.hl7.org/CodeSystem/condition-clinical", "resolved"),
    }

    @pytest.mark.django_db
    def test_a_condition_that_is_over_by_now_is_unknown_before(self, tmp_path: Path) -> None:
        patient = take_in(tmp_path, {**plant("Condition", "undated"), **self.RESOLVED})
        before = built(patient, NOW - timedelta(days=30))
        assert before.inputs.fields["heart_failure"] is None
        assert before.inputs.fields["active_conditions"] is None
        assert before.basis == [{"type": "Patient", "id": "p1"}]
        assert built(patient, NOW).inputs.fields["heart_failure"] == 0.0, "we hold since NOW that it is over"

    @pytest.mark.django_db
    def test_it_is_over_since_its_source_last_wrote_it(self, tmp_path: Path) -> None:
        written = {"meta": {"lastUpdated": (NOW - timedelta(days=40)).isoformat()}}
        patient = take_in(tmp_path, {**plant("Condition", "undated"), **self.RESOLVED, **written})
        assert built(patient, NOW - timedelta(days=30)).inputs.fields["heart_failure"] == 0.0
        assert built(patient, NOW - timedelta(days=50)).inputs.fields["heart_failure"] is None

    @pytest.mark.django_db
    def test_what_surely_goes_on_outweighs_what_may_have(self, tmp_path: Path) -> None:
        active = {**HEART_FAILURE, "onsetDateTime": "2020-01-01", "clinicalStatus": coded("", "active")}
        patient = take_in(
            tmp_path,
            {**plant("Condition", "undated"), **self.RESOLVED},
            {**plant("Condition", "undated", 1), **active},
        )
        assert built(patient, NOW - timedelta(days=30)).inputs.fields["heart_failure"] == 1.0

    @pytest.mark.django_db
    def test_how_many_drugs_is_unknown_while_one_may_have_been_stopped(self, tmp_path: Path) -> None:
        stopped = {**DRUG, "status": "stopped", "authoredOn": "2020-01-01"}
        patient = take_in(tmp_path, {**plant("MedicationRequest", "ordered later"), **stopped})
        assert built(patient, NOW - timedelta(days=30)).inputs.fields["active_medications"] is None
        assert built(patient, NOW).inputs.fields["active_medications"] == 0.0
        view = queries.get_record(onlooker("a"), patient, as_of=NOW - timedelta(days=30))
        assert [one.status for one in view.medications] == ["unknown"]

    @pytest.mark.django_db
    def test_an_allergy_that_is_over_by_now_is_unknown_before(self, tmp_path: Path) -> None:
        dates = {"onsetDateTime": "2020-01-01", "recordedDate": "2020-01-02"}
        over = {**ALLERGY, **dates, "clinicalStatus": coded("", "resolved")}
        patient = take_in(
            tmp_path, {**plant("AllergyIntolerance", "recorded later"), **over, "recordedDate": "2020-01-02"}
        )
        for as_of, status in ((NOW - timedelta(days=30), "unknown"), (NOW, "resolved")):
            view = queries.get_record(onlooker(f"a {status}"), patient, as_of=as_of)
            assert [one.status for one in view.allergies] == [status]

    @pytest.mark.django_db
    def test_the_same_record_again_does_not_move_the_moment(self, tmp_path: Path) -> None:
        resource = {**plant("Condition", "undated"), **self.RESOLVED}
        patient = take_in(tmp_path, resource)
        ingesting.ingest_fhir(tmp_path, source=patient.source, by=TESTS, now=END)
        assert patient.conditions.get().over_at == NOW
