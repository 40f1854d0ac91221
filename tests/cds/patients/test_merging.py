"""Two Patients who are one person: the record is with the surviving one, and goes back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from cds.audit.models import AuditEvent
from cds.features import building
from cds.patients import access, importing, merging
from cds.patients.models import Observation, Patient, SetAside
from cds.studies import receiving
from tests.cds.registry.rows import make_series
from tests.factories import NOW, TESTS, encounter, identity, make_record, make_source, make_user, observation

pytestmark = pytest.mark.django_db


def take(resource_id: str, *observations: str, **link: Any) -> importing.Imported:
    """Import a patient with lactates of these ids."""
    facts = [observation("2524-7", 4.0, "mmol/L", resource_id=one, at=NOW) for one in observations]
    record = make_record(resource_id, patient=identity(resource_id, **link), observations=facts)
    done = importing.import_record(record, source=make_source(), by=TESTS, now=NOW)
    receiving.follow_mergers(done.merged, now=NOW, by=TESTS)
    return done


def where() -> dict[str, str]:
    return dict(Observation.objects.values_list("resource_id", "patient__resource_id"))


def row(resource_id: str) -> Patient:
    return Patient.objects.get(resource_id=resource_id)


def test_what_the_old_one_said_moves_the_record_whichever_is_read_first() -> None:
    take("old", "o1")
    take("new", "n1")
    done = take("old", "o1", replaced_by="new")
    assert done.patient == row("new")
    assert where() == {"o1": "new", "n1": "new"}
    take("older", "x1", replaced_by="newest")
    assert where()["x1"] == "older", "nobody's name is known there yet"
    take("newest")
    assert where()["x1"] == "newest"


def test_what_the_surviving_one_says_counts_as_well_and_an_unknown_id_is_remembered() -> None:
    take("old", "o1")
    take("new", replaces=("old", "never-seen"))
    assert where() == {"o1": "new"}
    assert take("never-seen", "o9").patient == row("new")
    assert where()["o9"] == "new"


def test_a_model_reads_the_whole_record_and_the_revision_rises() -> None:
    take("old", "o1")
    take("new")
    before = row("new").revision
    take("old", "o1", replaced_by="new")
    assert row("new").revision > before
    built = building.build_inputs(row("new"), as_of=NOW, encoders={})
    assert built.inputs.fields["lactate"] == 4.0


def test_what_comes_for_the_old_id_afterwards_is_the_surviving_ones() -> None:
    take("new")
    take("old", replaced_by="new")
    done = take("old", "o1", "o2", replaced_by="new")
    assert (done.patient, done.changed) == (row("new"), True)
    again = take("old", "o1", "o2", replaced_by="new")
    assert (again.patient, again.changed) == (row("new"), False)
    stub = make_record("old", patient=identity("old", is_stub=True), retracted=[("Observation", "o2")])
    importing.import_record(stub, source=make_source(), by=TESTS, now=NOW)
    assert where() == {"o1": "new"}


def test_it_goes_back_when_the_link_is_gone() -> None:
    take("new", "n1")
    take("old", "o1", replaced_by="new")
    take("old", "o1", "o2", replaced_by="new")
    done = take("old", "o1")
    assert done.patient == row("old")
    assert where() == {"n1": "new", "o1": "old", "o2": "old"}
    assert not row("old").moved.exists()


def test_it_stays_while_one_of_the_two_still_says_so() -> None:
    take("old", "o1")
    take("new", replaces=("old",))
    take("old", "o1", replaced_by="new")
    take("old", "o1")
    assert where() == {"o1": "new"}
    take("new")
    assert where() == {"o1": "old"}


def test_chains_are_followed_and_undone_in_the_middle() -> None:
    take("a", "a1")
    take("b", "b1", replaces=("a",))
    take("c", "c1", replaces=("b",))
    assert where() == dict.fromkeys(("a1", "b1", "c1"), "c")
    assert merging.survivor(row("a")) == row("c")
    take("c", "c1")
    assert where() == {"a1": "b", "b1": "b", "c1": "c"}
    take("b", "b1")
    assert where() == {"a1": "a", "b1": "b", "c1": "c"}


def test_two_who_replace_each_other_are_left_and_said() -> None:
    take("a", "a1")
    take("b", "b1", replaced_by="a")
    take("a", "a1", replaced_by="b")
    assert where() == {"a1": "a", "b1": "a"}
    assert "replace each other" in SetAside.objects.get().reason


def test_a_resource_that_is_the_survivors_own_by_then_stays_with_them() -> None:
    take("old", "o1")
    take("new", replaces=("old",))
    take("new", "o1", replaces=("old",))
    take("new", "o1")
    assert where() == {"o1": "new"}
    assert Observation.objects.count() == 1


def test_a_resource_held_by_both_is_kept_once() -> None:
    take("old", "o1")
    take("new", "o1")
    take("old", replaced_by="new")
    assert where() == {"o1": "new"}


def test_studies_go_with_the_record_and_come_back() -> None:
    old = take("old").patient
    take("new")
    study = make_series(old, NOW).study
    take("old", replaced_by="new")
    study.refresh_from_db()
    assert study.patient == row("new")
    take("old")
    study.refresh_from_db()
    assert study.patient == row("old")


def test_only_the_surviving_one_is_listed() -> None:
    stay = encounter(NOW - timedelta(days=1), location="Ward 3")
    importing.import_record(make_record("new", encounters=[stay]), source=make_source(), by=TESTS, now=NOW)
    old = take("old", "o1").patient
    take("old", "o1", replaced_by="new")
    clinician = make_user("clinician", units=("Ward 3",))
    assert AuditEvent.objects.filter(action="patient.merge", object_id=str(old.pk)).exists()
    assert list(access.visible_patients(clinician)) == [row("new")]


@pytest.mark.django_db(transaction=True)
def test_the_old_address_leads_to_the_surviving_one() -> None:
    stay = encounter(NOW - timedelta(days=1), location="Ward 3")
    importing.import_record(make_record("new", encounters=[stay]), source=make_source(), by=TESTS, now=NOW)
    old = take("old", "o1").patient
    take("old", "o1", replaced_by="new")
    clinician = make_user("clinician", units=("Ward 3",))
    found = access.get_patient(clinician, old.pk, by=TESTS, now=NOW)
    assert found == row("new")
    look = AuditEvent.objects.get(action="patient.view")
    assert (look.patient_id, look.detail["merged"]) == (row("new").pk, str(old.pk))
