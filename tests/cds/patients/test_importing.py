"""Importing a record: nothing twice, nothing lost, and every change seen once."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

import ehr
from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Invalid
from cds.jobs import Job
from cds.jobs.models import OutboxMessage
from cds.patients import importing
from cds.patients.models import Condition, Note, Observation, Patient, SetAside, Source
from tests.factories import (
    NOW,
    TESTS,
    condition,
    encounter,
    identity,
    make_record,
    make_source,
    note,
    observation,
)

LATER = NOW + timedelta(hours=1)
WARD = encounter(NOW, location="Ward 3")
pytestmark = pytest.mark.django_db


def _import(
    record: ehr.PatientRecord, *, source: Source | None = None, now: datetime = NOW
) -> importing.Imported:
    return importing.import_record(record, source=source or make_source(), by=TESTS, now=now)


FULL = make_record(
    observations=[observation("8480-6", 120.0, "mm[Hg]", resource_id="o1", also=(ehr.Snomed("271649006"),))],
    conditions=[condition("233604007", resource_id="c1")],
    medications=[
        ehr.MedicationRecord(
            resource_type="MedicationRequest", resource_id="m1", available_at=NOW, code=ehr.RxNorm("723"),
            status="active"
        )
    ],
    procedures=[
        ehr.ProcedureRecord(
            resource_type="Procedure", resource_id="r1", available_at=NOW, code=ehr.Snomed("399208008"),
            performed_at=NOW
        )
    ],
    allergies=[
        ehr.AllergyRecord(
            resource_type="AllergyIntolerance", resource_id="a1", available_at=NOW,
            code=ehr.Snomed("91936005"),
        )
    ],
    encounters=[encounter(NOW, resource_id="e1", location="Ward 3")],
    notes=[note("Short of breath.", resource_id="n1")],
    family_history=[
        ehr.FamilyHistoryRecord(
            resource_type="FamilyMemberHistory", resource_id="f1", part="0", available_at=NOW,
            relationship=ehr.OtherCode("MTH", "mother", "http://terminology.hl7.org/CodeSystem/v3-RoleCode"),
            condition=ehr.Snomed("22298006", "Myocardial infarction"), onset_age=52.0,
        )
    ],
    genomics=[
        ehr.GenomicRecord(
            resource_type="Observation", resource_id="g1", available_at=NOW, kind="variant", gene="TTN",
            variant="NM_001267550.2:c.1A>G", significance="pathogenic", present=True,
            code=ehr.Loinc("69548-6"),
        )
    ],
)  # fmt: skip


def test_a_whole_record_is_kept() -> None:
    done = _import(FULL)
    assert done.created
    assert done.counts == {"new": 10}
    assert done.by_type["Observation"] == {"new": 2}
    patient = Patient.objects.get()
    assert (patient.family, patient.sex, patient.revision, patient.changed_at) == (
        "Testperson",
        "female",
        1,
        NOW,
    )
    assert patient.identifiers.get().value == "MRN-p1"
    row = patient.observations.get()
    assert (row.code_system, row.code, row.value, row.unit) == ("http://loinc.org", "8480-6", 120.0, "mm[Hg]")
    assert row.also == ["http://snomed.info/sct|271649006"]
    assert patient.familyhistorys.get().onset_age == 52.0
    assert patient.genomicfindings.get().gene == "TTN"
    assert done.note_digests == (patient.notes.get().text_digest,)


def test_the_same_record_again_changes_nothing_and_costs_one_query() -> None:
    source = make_source()
    _import(FULL, source=source)
    with CaptureQueriesContext(connection) as queries:
        again = _import(FULL, source=source, now=LATER)
    assert not again.created
    assert not again.changed
    assert again.counts == {"unchanged": 10}
    assert again.by_type["Observation"] == {"unchanged": 2}
    assert again.patient.revision == 1
    assert again.patient.changed_at == NOW
    selects = [query for query in queries.captured_queries if "SAVEPOINT" not in query["sql"]]
    assert len(selects) == 1
    assert AuditEvent.objects.filter(action="patient.import").count() == 1
    assert OutboxMessage.objects.count() == 1


def test_the_order_of_facts_does_not_matter() -> None:
    facts = [observation("8480-6", 1.0, resource_id="o1"), observation("8480-6", 2.0, resource_id="o2")]
    _import(make_record(observations=facts))
    assert not _import(make_record(observations=facts[::-1])).changed


def test_a_part_of_the_record_again_changes_nothing() -> None:
    _import(FULL)
    again = _import(replace(FULL, observations=(), notes=()))
    assert not again.changed
    assert Observation.objects.count() == 1


def test_a_changed_value_replaces_the_old_and_raises_the_revision_once() -> None:
    _import(FULL)
    two = replace(
        FULL,
        observations=(replace(FULL.observations[0], value=140.0), observation("2708-6", 91.0, "%")),
    )
    done = _import(two, now=LATER)
    assert done.changed
    assert done.counts == {"new": 1, "changed": 1, "unchanged": 9}
    assert (done.patient.revision, done.patient.changed_at) == (2, LATER)
    assert Observation.objects.get(resource_id="o1").value == 140.0
    assert Observation.objects.count() == 2


def test_going_back_to_an_earlier_record_is_a_change_again() -> None:
    _import(FULL)
    _import(replace(FULL, observations=(replace(FULL.observations[0], value=140.0),)))
    back = _import(FULL)
    assert back.changed
    assert Observation.objects.get().value == 120.0
    assert back.patient.revision == 3


def test_equal_digits_of_two_code_systems_are_different_facts() -> None:
    drug = ehr.MedicationRecord(
        resource_type="MedicationRequest", resource_id="m1", available_at=NOW, code=ehr.RxNorm("123456")
    )
    _import(make_record(medications=[drug]))
    assert _import(make_record(medications=[replace(drug, code=ehr.Snomed("123456"))])).counts["changed"] == 1


def test_components_that_are_gone_are_removed() -> None:
    parts = [
        observation("8480-6", 120.0, "mm[Hg]", resource_id="bp", part="8480-6"),
        observation("8462-4", 80.0, "mm[Hg]", resource_id="bp", part="8462-4"),
    ]
    _import(make_record(observations=parts))
    done = _import(make_record(observations=parts[:1]))
    assert done.by_type["Observation"] == {"changed": 1}
    assert [row.part for row in Observation.objects.all()] == ["8480-6"]


def test_a_retracted_resource_is_removed() -> None:
    _import(FULL)
    done = _import(
        make_record(retracted=[("Observation", "g1"), ("Condition", "c1"), ("Condition", "never-held")])
    )
    assert done.counts["removed"] == 2
    assert done.patient.genomicfindings.count() == 0
    assert Condition.objects.count() == 0
    assert done.patient.revision == 2
    assert not _import(make_record(retracted=[("Condition", "c1")])).changed


def test_a_stub_becomes_a_patient_and_a_stub_never_erases_one() -> None:
    stub = ehr.PatientIdentity(resource_id="p1", is_stub=True)
    first = _import(make_record(patient=stub, observations=[observation("8480-6", 1.0)]))
    assert (first.patient.family, first.patient.sex, first.patient.digest) == ("", "unknown", "")
    full = _import(make_record())
    assert full.by_type["Patient"] == {"new": 1}
    assert full.patient.pk == first.patient.pk
    again = _import(make_record(patient=stub, observations=[observation("8480-6", 2.0)]))
    assert Patient.objects.get().family == "Testperson"
    assert again.patient.revision == 3


def test_identifiers_follow_the_resource() -> None:
    _import(make_record())
    new = identity(identifiers=(ehr.Identifier("urn:mrn", "MRN-p1"), ehr.Identifier("", "77")))
    _import(make_record(patient=new))
    assert set(Patient.objects.get().identifiers.values_list("value", flat=True)) == {"MRN-p1", "77"}
    _import(make_record(patient=replace(new, identifiers=(ehr.Identifier("", "77"),))))
    assert set(Patient.objects.get().identifiers.values_list("value", flat=True)) == {"77"}


def test_a_merged_patient_is_noted() -> None:
    done = _import(make_record(patient=identity(replaced_by="p2")))
    assert done.patient.replaced_by == "p2"


def test_the_same_id_at_another_source_is_another_patient() -> None:
    _import(make_record(), source=make_source("a"))
    _import(make_record(), source=make_source("b"))
    assert Patient.objects.count() == 2


@pytest.mark.parametrize(
    ("stays", "unit"),
    [
        ([], "A hospital"),
        ([WARD], "Ward 3"),
        ([WARD, encounter(LATER, location="ICU", kind=ehr.EncounterKind.INTENSIVE_CARE)], "ICU"),
        ([WARD, encounter(LATER, location="GP", kind=ehr.EncounterKind.AMBULATORY)], "Ward 3"),
        ([WARD, encounter(LATER)], "Ward 3"),
    ],
    ids=["none", "a ward", "moved", "a visit is no stay", "nowhere"],
)  # fmt: skip
def test_the_unit_is_where_the_newest_stay_is(stays: list[ehr.EncounterRecord], unit: str) -> None:
    done = _import(make_record(encounters=stays), source=make_source(title="A hospital"))
    assert done.patient.unit is not None
    assert done.patient.unit.name == unit


def test_a_later_stay_moves_the_patient() -> None:
    _import(make_record(encounters=[encounter(NOW, location="Ward 3")]))
    done = _import(make_record(encounters=[encounter(LATER, location="Ward 4")]))
    assert Patient.objects.get(pk=done.patient.pk).unit.name == "Ward 4"  # type: ignore[union-attr]


def test_new_and_changed_notes_are_announced_for_encoding() -> None:
    _import(make_record(notes=[note("One.", resource_id="n1"), note("Two.", resource_id="n2")]))
    done = _import(make_record(notes=[note("One!", resource_id="n1"), note("Two.", resource_id="n2")]))
    assert done.note_digests == (Note.objects.get(resource_id="n1").text_digest,)
    messages = OutboxMessage.objects.filter(job=Job.ENCODE_NOTES.value)
    assert [message.kwargs["patient_id"] for message in messages] == [str(done.patient.pk)] * 2


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (observation("8480-6", float("nan"), resource_id="bad"), "value is not a finite number"),
        (observation("8480-6", float("inf"), resource_id="bad"), "value is not a finite number"),
        (
            observation("8480-6", 1.0, resource_id="bad", code=ehr.OtherCode("x" * 81, "", "urn:local")),
            "code is longer than 80 characters",
        ),
        (observation("8480-6", 1.0, "u" * 41, resource_id="bad"), "unit is longer than 40 characters"),
    ],
)
def test_what_cannot_be_kept_is_set_aside_with_its_reason(fact: ehr.ObservationRecord, reason: str) -> None:
    record = make_record(observations=[fact, observation("2708-6", 91.0, "%")])
    done = _import(record)
    assert done.by_type["Observation"] == {"new": 1, "set_aside": 1}
    kept = SetAside.objects.get()
    assert (kept.kind, kept.identity, kept.reason) == ("Observation", "bad", reason)
    assert Observation.objects.count() == 1


def test_an_unknown_code_is_kept_as_it_is() -> None:
    code = ehr.OtherCode("LOCAL-7", "House test", "urn:oid:1.2.3")
    row = _import(
        make_record(observations=[observation("8480-6", 1.0, code=code)])
    ).patient.observations.get()
    assert (row.code_system, row.code, row.display) == ("urn:oid:1.2.3", "LOCAL-7", "House test")


def test_long_words_are_cut_and_nul_characters_dropped() -> None:
    fact = observation("8480-6", None, value_text="a\x00" + "b" * 900)
    row = _import(make_record(observations=[fact])).patient.observations.get()
    assert row.value_text == "a" + "b" * 499


def test_what_the_reader_set_aside_is_kept_and_counted_once_per_time() -> None:
    aside = ehr.SetAside("a.json#3", "Observation", "o9", "no code")
    _import(make_record(set_aside=[aside]))
    _import(make_record(set_aside=[aside], observations=[observation("8480-6", 1.0)]), now=LATER)
    kept = SetAside.objects.get()
    assert (kept.times, kept.first_at, kept.last_at) == (2, NOW, LATER)


def test_set_aside_without_a_patient() -> None:
    source, item = make_source(), ehr.SetAside("x.json", "Basic", "", "not JSON")
    assert importing.keep_set_aside(source, [item, item], now=NOW) == 1
    assert importing.keep_set_aside(source, [item], now=LATER) == 1
    assert SetAside.objects.get().times == 2
    assert importing.keep_set_aside(source, [], now=LATER) == 0


def test_a_record_of_nobody_is_refused() -> None:
    with pytest.raises(Invalid):
        _import(make_record(patient=ehr.PatientIdentity(resource_id="", is_stub=True)))


def test_the_audit_knows_counts_and_no_values() -> None:
    done = _import(FULL)
    event = AuditEvent.objects.get(action="patient.import")
    assert event.patient_id == done.patient.pk
    assert event.detail == {"source": "ward", "revision": 1, "counts": {"new": 10}}
    assert [problem for check in recording.verify() for problem in check.problems] == []


def test_a_large_record_costs_one_look_up_per_kind() -> None:
    facts = [observation("8480-6", float(n), "mm[Hg]", resource_id=f"o{n}") for n in range(400)]
    _import(make_record(observations=facts))
    facts[7] = replace(facts[7], value=-1.0)
    with CaptureQueriesContext(connection) as queries:
        done = _import(make_record(observations=facts), now=LATER)
    assert done.counts == {"unchanged": 400, "changed": 1}
    assert len(queries.captured_queries) < 25
