"""The simulated cohort: deterministic, honest about its outcomes, and dependent on every kind of evidence."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sklearn.metrics import roc_auc_score

from cds.demo.simulating import Causes, oracle, parts, simulate_cohort

ANCHOR = datetime(2026, 11, 23, 14, tzinfo=UTC)
AVERAGE = Causes(0, 0, 0, 0, 0.50, 0, 0, False)


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort(seed=3, patients=1200, anchor=ANCHOR)


def test_same_seed_same_patients_and_a_longer_cohort_begins_with_the_shorter():
    short, long = (simulate_cohort(seed=7, patients=n, anchor=ANCHOR) for n in (5, 9))
    assert short == long[:5]
    assert short != simulate_cohort(seed=8, patients=5, anchor=ANCHOR)


@pytest.mark.parametrize(
    ("cause", "value"),
    [
        ("lung", 2.0),
        ("heart", 2.0),
        ("physiology", 2.0),
        ("age", 2.0),
        ("ejection_fraction", 0.2),
        ("frailty", 2.0),
        ("polygenic", 2.0),
        ("has_variant", True),
    ],
)
def test_every_cause_raises_the_true_risk(cause, value):
    worse = oracle(replace(AVERAGE, **{cause: value}))
    assert worse.intensive_care > oracle(AVERAGE).intensive_care + 0.02
    assert worse.death > oracle(AVERAGE).death


def test_outcomes_follow_the_oracle_and_need_image_record_and_cine_together(cohort):
    past = [patient for patient in cohort if not patient.is_current]
    happened = [patient.intensive_care_at is not None for patient in past]
    truth = [patient.oracle.intensive_care for patient in past]
    assert sum(truth) / len(truth) == pytest.approx(sum(happened) / len(happened), abs=0.04)  # calibrated
    best = roc_auc_score(happened, truth)
    assert best > 0.85
    for kind in ("image", "record", "cine"):
        alone = roc_auc_score(happened, [parts(patient.causes)[kind] for patient in past])
        assert 0.6 < alone < best - 0.08, kind


def test_course_is_possible(cohort):
    for patient in cohort:
        assert patient.admitted_at < patient.imaged_at < patient.echo_at <= patient.until <= ANCHOR
        if patient.intensive_care_at:
            assert patient.echo_at < patient.intensive_care_at <= patient.until
            assert patient.intensive_care_at - patient.imaged_at <= timedelta(days=14)
        if patient.died_at:
            assert patient.died_at == patient.until
            assert patient.died_at - patient.imaged_at <= timedelta(days=30)
        if patient.is_current:
            assert patient.intensive_care_at is patient.died_at is patient.followed_up_at is None
        elif not patient.died_at:
            assert patient.until < patient.followed_up_at < ANCHOR
            assert patient.followed_up_at - patient.echo_at > timedelta(days=30)


def test_some_are_in_hospital_now_and_some_evidence_is_missing(cohort):
    def share(name):
        return sum(getattr(patient, name) for patient in cohort) / len(cohort)

    assert share("is_current") == pytest.approx(0.25, abs=0.01)
    assert share("has_echo") == pytest.approx(1 / 3, abs=0.01)
    for name, low, high in [("has_image", 0.9, 0.98), ("has_labs", 0.85, 0.95), ("has_notes", 0.8, 0.95)]:
        assert low < share(name) < high
