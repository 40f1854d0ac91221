"""Cohorts: a patient in one split only, events in every split, and frozen means frozen."""

from __future__ import annotations

import hashlib
import importlib
import json
import uuid
from collections import Counter
from datetime import timedelta

import pytest

from cds.errors import Invalid
from cds.patients.models import Patient, Source
from cds.registry import cohorts
from cds.registry.models import CohortMember
from tests.cds.registry.rows import make_patient, make_series, make_stay
from tests.factories import NOW

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
CUTOFF = NOW + 100 * DAY


def _ward(patients: int, events: int) -> None:
    """Patients with two radiographs each; the first `events` of them go to intensive care on day 3."""
    for number in range(patients):
        patient = make_patient()
        make_stay(patient, "inpatient", NOW - DAY, NOW + 9 * DAY)
        make_series(patient, NOW)
        make_series(patient, NOW + DAY)
        if number < events:
            make_stay(patient, "intensive-care", NOW + 3 * DAY, NOW + 5 * DAY)


def test_freezing_keeps_patients_whole_and_events_everywhere() -> None:
    _ward(20, 6)
    cohort = cohorts.freeze(cohorts.draw(outcomes=["icu-admission"], now=CUTOFF, seed=7), now=CUTOFF)
    assert cohort.members.count() == 40
    splits: dict[object, set[str]] = {}
    for member in cohort.members.all():
        splits.setdefault(member.patient_id, set()).add(member.split)
    assert all(len(held) == 1 for held in splits.values())
    shares = Counter(next(iter(held)) for held in splits.values())
    assert shares == {"train": 12, "tuning": 4, "held_out": 4}
    by_split = cohort.counts["outcomes"]["icu-admission"]["by_split"]
    assert all(held["events"] > 0 for held in by_split.values())
    assert cohort.counts["outcomes"]["icu-admission"]["events"] == 12


def test_the_same_seed_gives_the_same_cohort_and_another_seed_another() -> None:
    _ward(20, 6)
    first, again, other = (
        cohorts.freeze(cohorts.draw(outcomes=["icu-admission"], now=CUTOFF, seed=seed), now=CUTOFF)
        for seed in (7, 7, 8)
    )
    assert first.digest == again.digest != other.digest


def test_frozen_means_frozen() -> None:
    _ward(6, 2)
    cohort = cohorts.freeze(cohorts.draw(outcomes=["icu-admission"], now=CUTOFF), now=CUTOFF)
    digest, members = cohort.digest, cohort.members.count()
    _ward(4, 1)
    cohorts.freeze(cohort, now=CUTOFF + DAY)
    assert (cohort.digest, cohort.members.count()) == (digest, members)
    member = cohort.members.first()
    assert member is not None
    member.labels = {"icu-admission": 1 - member.labels["icu-admission"]}
    member.save()
    with pytest.raises(Invalid, match="frozen"):
        cohorts.freeze(cohort, now=CUTOFF)


def test_the_lost_are_members_for_as_long_as_they_were_seen() -> None:
    _ward(6, 2)
    patient = make_patient("lost")
    make_stay(patient, "inpatient", NOW - DAY, None)
    make_series(patient, NOW)
    make_stay(patient, "ambulatory", NOW + 5 * DAY, NOW + 5 * DAY)
    cohort = cohorts.freeze(cohorts.draw(outcomes=["icu-admission"], now=CUTOFF), now=CUTOFF)
    member = cohort.members.get(patient=patient)
    assert (member.labels, member.follow_up) == ({}, {"icu-admission": [120.0, False]})
    counts = cohort.counts["outcomes"]["icu-admission"]
    assert (counts["members"], counts["events"], counts["lost"], counts["excluded"]) == (12, 4, 1, {})
    member.follow_up = {"icu-admission": [336.0, False]}
    member.save()
    with pytest.raises(Invalid, match="frozen"):
        cohorts.freeze(cohort, now=CUTOFF)


def test_a_cohort_frozen_before_follow_up_was_kept_is_still_itself() -> None:
    cohort = cohorts.draw(outcomes=["death"], now=CUTOFF)
    patient = make_patient()
    CohortMember.objects.create(cohort=cohort, patient=patient, as_of=NOW, labels={"death": 1}, split="train")
    said = json.dumps([str(patient.pk), NOW.isoformat(), {"death": 1}, "train"], sort_keys=True)
    cohort.digest, cohort.frozen_at = hashlib.sha256(said.encode()).hexdigest(), NOW
    cohort.save()
    assert cohorts.freeze(cohort, now=CUTOFF).members.get().follow_up == {}


def test_preview_counts_without_storing_and_says_what_is_missing() -> None:
    _ward(5, 0)
    alone = make_patient()
    make_series(alone, NOW)
    seen = cohorts.preview(outcomes=["icu-admission", "death"], now=CUTOFF)
    assert (seen.patients, seen.moments) == (5, 10)
    icu = {counts.outcome: counts for counts in seen.outcomes}["icu-admission"]
    assert (icu.members, icu.events, icu.excluded) == (10, 0, {"follow-up too short": 1})
    assert any("no events" in problem for problem in seen.problems)
    assert not cohorts.Cohort.objects.exists()


def test_simulated_patients_among_others_are_told_before_a_model_learns_from_both() -> None:
    _ward(3, 1)
    assert cohorts.preview(outcomes=["icu-admission"], now=CUTOFF).mixture == ""
    Patient.objects.filter(pk=Patient.objects.values("pk")[:1]).update(
        source=Source.objects.create(slug="demo", simulated=True, created_at=NOW)
    )
    said = cohorts.preview(outcomes=["icu-admission"], now=CUTOFF).mixture
    assert said.startswith("1 of these 3 patients are simulated.")
    assert cohorts.preview(outcomes=["icu-admission"], sources=["demo"], now=CUTOFF).mixture == ""


def test_nothing_taken_after_the_cutoff_is_a_member() -> None:
    _ward(3, 1)
    cohort = cohorts.freeze(
        cohorts.draw(outcomes=["icu-admission"], now=NOW + timedelta(hours=1)), now=CUTOFF
    )
    assert set(cohort.members.values_list("as_of", flat=True)) <= {NOW}


def test_drawing_from_named_sources_only() -> None:
    _ward(3, 1)
    assert cohorts.preview(outcomes=["icu-admission"], sources=["tests"], now=CUTOFF).patients in (0, 3)
    with pytest.raises(Invalid, match="no source nowhere"):
        cohorts.draw(outcomes=["icu-admission"], sources=["nowhere"], now=CUTOFF)
    with pytest.raises(Invalid):
        cohorts.draw(outcomes=[], now=CUTOFF)


def test_the_same_data_are_split_alike_wherever_they_are_imported() -> None:
    """Our own ids are random; the split follows who the patient is at the source."""
    moments = [
        cohorts.Moment(str(uuid.uuid4()), f"place-{n}", NOW, {"icu-admission": int(n % 3 == 0)}, {})
        for n in range(40)
    ]
    elsewhere = [cohorts.Moment(str(uuid.uuid4()), m.place, m.as_of, m.labels, {}) for m in moments]
    here, there = (cohorts._split(each, ["icu-admission"], 7) for each in (moments, elsewhere))
    assert [here[m.patient_id] for m in moments] == [there[m.patient_id] for m in elsewhere]


def test_preview_refuses_what_training_would_refuse() -> None:
    """Events in every split, yet too few to learn from: said before a run is started, not by its failure."""
    assert importlib.import_module("fusion.train").LEAST_EVENTS == cohorts.LEAST_EVENTS
    by_split = {split: {"n": 40, "events": 2} for split in cohorts.SPLITS}
    few = cohorts.Counts("death", "Death", 120, 6, by_split, {})
    assert "the train split has 2 with the event and 38 without" in few.problem
    enough = cohorts.Counts("death", "Death", 120, 9, by_split | {"train": {"n": 40, "events": 5}}, {})
    assert enough.problem == ""
