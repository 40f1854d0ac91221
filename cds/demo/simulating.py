"""A simulated cohort: who the patients are, what ails them, and what happens. Of nobody; a pure function of
(seed, patient number, anchor).

Every patient has independent causes of risk, and each kind of evidence shows some of them:

    image     0.9 * lung + 0.45 * heart       opacities and heart size, seen only in the radiograph
    record    0.85 * physiology + 0.5 * age   seen in age, labs and vitals, and in how they change
    cine      (0.50 - ejection fraction)/0.12 seen only in the echo
    words     frailty                         seen only in how the notes are worded
    genomic   0.8 * polygenic + 1.5 * variant seen only in the genomic Observations

All are standard normal but the ejection fraction (normal around 0.50, sd 0.12, kept in 0.18 to 0.72) and the
variant (1 in 8). The log-odds are then

    z               = 2.0 image + 1.5 record + 1.2 cine + 0.4 words + 0.4 genomic + 0.4 image * record
    intensive care  = -0.6 + z                 within 14 days of the radiograph
    death           = -2.0 + 0.75 z + 0.4 age  within 30 days of it

and the outcome is drawn from them, so no model can do better on average than `Oracle`. The oracle and the
causes never leave this module towards the record: no Observation, note or DICOM header carries them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np

CURRENT_SHARE = 0.25  # are in hospital now; the others' stays are over and their outcomes known
ECHO_SHARE = 1 / 3
INTENSIVE_CARE_DAYS, DEATH_DAYS = 14, 30  # horizons of the outcomes
_WITHIN_HOURS = 12  # by then, after admission, radiograph and echo are taken


@dataclass(frozen=True, slots=True)
class Causes:
    """What ails a simulated patient; standard normal unless said otherwise."""

    lung: float
    heart: float
    physiology: float
    age: float  # standardised: 66 years + 14 * age
    ejection_fraction: float  # 0.18 to 0.72
    frailty: float
    polygenic: float
    has_variant: bool


@dataclass(frozen=True, slots=True)
class Oracle:
    """The true probabilities the outcomes are drawn from."""

    intensive_care: float
    death: float


@dataclass(frozen=True)
class SimulatedPatient:
    """One simulated patient: causes, course and what of it was written down."""

    seed: int
    number: int
    causes: Causes
    is_female: bool
    admitted_at: datetime
    imaged_at: datetime  # the radiograph; nothing later is needed to know the risk
    echo_at: datetime
    until: datetime  # last moment of the stay (discharge, death), or now for a current patient
    intensive_care_at: datetime | None
    died_at: datetime | None
    followed_up_at: datetime | None
    is_current: bool
    has_image: bool
    has_echo: bool
    has_labs: bool
    has_notes: bool
    has_variant_test: bool
    has_polygenic_score: bool

    @property
    def id(self) -> str:
        """FHIR id within the demo's source."""
        return f"sim-{self.seed}-{self.number:04d}"

    @property
    def record_number(self) -> str:
        """Medical record number; DICOM's PatientID too."""
        return f"SIM-{self.number:06d}"

    @property
    def age_years(self) -> float:
        """At admission."""
        return float(np.clip(66 + 14 * self.causes.age, 22, 97))

    @cached_property
    def oracle(self) -> Oracle:
        """The probabilities this patient's outcomes were drawn from. For tests and benchmarks only."""
        return oracle(self.causes)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator for each purpose, so that drawing more for one changes nothing in another."""
        return _rng(self.seed, self.number, purpose)


def parts(causes: Causes) -> dict[str, float]:
    """What each kind of evidence shows, before weighting; see the module's formula."""
    return {
        "image": 0.9 * causes.lung + 0.45 * causes.heart,
        "record": 0.85 * causes.physiology + 0.5 * causes.age,
        "cine": (0.50 - causes.ejection_fraction) / 0.12,
        "words": causes.frailty,
        "genomic": 0.8 * causes.polygenic + 1.5 * causes.has_variant,
    }


def oracle(causes: Causes) -> Oracle:
    """The module's formula."""
    p = parts(causes)
    z = 2.0 * p["image"] + 1.5 * p["record"] + 1.2 * p["cine"] + 0.4 * p["words"] + 0.4 * p["genomic"]
    z += 0.4 * p["image"] * p["record"]
    return Oracle(_sigmoid(-0.6 + z), _sigmoid(-2.0 + 0.75 * z + 0.4 * causes.age))


def simulate(*, seed: int, number: int, anchor: datetime) -> SimulatedPatient:
    """Patient `number` of the cohort `seed`, as of `anchor` (aware; when the demo was first started)."""
    draw = _rng(seed, number, "causes")
    causes = Causes(
        lung=float(draw.standard_normal()),
        heart=float(draw.standard_normal()),
        physiology=float(draw.standard_normal()),
        age=float(np.clip(draw.standard_normal(), -2.5, 2.0)),
        ejection_fraction=float(np.clip(0.50 + 0.12 * draw.standard_normal(), 0.18, 0.72)),
        frailty=float(draw.standard_normal()),
        polygenic=float(draw.standard_normal()),
        has_variant=bool(draw.random() < 1 / 8),
    )
    course = _rng(seed, number, "course")
    is_current = number % round(1 / CURRENT_SHARE) == 0
    admitted = anchor - (
        timedelta(hours=course.uniform(20, 96)) if is_current else timedelta(days=course.uniform(80, 350))
    )
    admitted = admitted.replace(second=0, microsecond=0)
    imaged = admitted + timedelta(minutes=round(course.uniform(60, 60 * (_WITHIN_HOURS - 2))))
    echo_at = imaged + timedelta(minutes=round(course.uniform(20, 110)))
    truth = oracle(causes)
    is_severe, is_fatal = course.random() < truth.intensive_care, course.random() < truth.death
    care_after = timedelta(hours=course.uniform(24, 24 * 9))
    death_after = timedelta(days=course.uniform(3, 26))
    stay = timedelta(days=course.uniform(3, 9))
    kept = _rng(seed, number, "kept").random(6)
    intensive_care_at = imaged + care_after if is_severe and not is_current else None
    died_at = imaged + death_after if is_fatal and not is_current else None
    if intensive_care_at and died_at and intensive_care_at >= died_at:
        intensive_care_at = died_at - timedelta(hours=10)
    until = anchor if is_current else admitted + stay
    if intensive_care_at:
        until = max(until, intensive_care_at + timedelta(days=4))
    if died_at:
        until = died_at
    alive_later = not is_current and died_at is None
    return SimulatedPatient(
        seed=seed,
        number=number,
        causes=causes,
        is_female=bool(course.random() < 0.5),
        admitted_at=admitted,
        imaged_at=imaged,
        echo_at=echo_at,
        until=until,
        intensive_care_at=intensive_care_at,
        died_at=died_at,
        followed_up_at=admitted + timedelta(days=course.uniform(42, 70)) if alive_later else None,
        is_current=is_current,
        has_image=bool(kept[0] < 0.94),
        has_echo=bool(number % round(1 / ECHO_SHARE) == 0),
        has_labs=bool(kept[2] < 0.9),
        has_notes=bool(kept[3] < 0.88),
        has_variant_test=bool(kept[4] < 0.6),
        has_polygenic_score=bool(kept[5] < 0.7),
    )


def simulate_cohort(*, seed: int, patients: int, anchor: datetime) -> list[SimulatedPatient]:
    """Patients 1 to `patients`; a longer cohort begins with the shorter one."""
    if anchor.tzinfo is None:
        raise ValueError("anchor must be an aware datetime")
    return [simulate(seed=seed, number=n, anchor=anchor.astimezone(UTC)) for n in range(1, patients + 1)]


def _rng(seed: int, number: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, number, *purpose.encode()])


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
