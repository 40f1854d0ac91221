"""What is predicted, and what the record says happened: labels with a reason whenever there is none.

    icu-admission  an Encounter of kind intensive-care starts in (as_of, as_of + 14 days]
    death          Patient.deceasedDateTime lies in (as_of, as_of + 30 days]

A negative needs known follow-up: the stay around as_of finished without the event, or later data of the
patient cover the horizon (unless the stay's own course is unknown). Whoever is lost from sight earlier has no
label, and counts for as long as they were seen (`following`). A finished stay counts as followed throughout:
to end the follow-up there would take those sent home to be as ill as those who had to stay. Whoever has, or
has had, intensive care in the stay around as_of is not at risk of a first admission to it and is excluded.
Death at an unknown time leaves `death` unlabelled; it says nothing about intensive care, which the stays tell
(leaving these patients out would leave out the sickest).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import NamedTuple

from django.db.models import Max, Q

from cds.errors import Invalid
from cds.patients.models import Encounter, Patient
from cds.statements import Statement
from cds.studies.models import Study

INTENSIVE_CARE = "intensive-care"
FOLLOW_UP_TOO_SHORT = "follow-up too short"
NO_NUMBER = "the model gives no risk of this for this patient at present"
STAYS = ("inpatient", "emergency", INTENSIVE_CARE)


@dataclass(frozen=True, slots=True)
class Label:
    """1, 0, or None with the reason why it is not known.

    after  of a 1: how long after as_of it happened; of a None: how long it is known not to have happened
    """

    value: int | None
    reason: str = ""
    after: timedelta = timedelta(0)

    def follow_up(self, horizon: timedelta) -> tuple[float, bool] | None:
        """Hours, and whether they end with the event; None for who was not seen after as_of at all.

        Raises Invalid for a 1 that does not say when: a curve would lose the event without a word.
        """
        if self.value == 1 and self.after <= timedelta(0):
            raise Invalid(
                "a label rule says that an event happened, and not how long after the moment (after=)"
            )
        seen = horizon if self.value == 0 else self.after
        return (seen.total_seconds() / 3600, self.value == 1) if seen > timedelta(0) else None


class Stay(NamedTuple):
    """What tells of a stay in hospital, or of a part of it, that took place or is under way."""

    kind: str
    status: str
    start: datetime | None
    end: datetime | None


_stays = Statement(
    lambda patient: (
        Encounter.objects.filter(patient=patient, kind__in=STAYS)
        .exclude(status__in=["planned", "cancelled"])
        .values_list(*Stay._fields)
    )
)


def stays_of(patient: Patient) -> list[Stay]:
    """The patient's stays; one query."""
    return [Stay(*row) for row in _stays.rows(patient=patient.pk)]


@dataclass(frozen=True, slots=True)
class History:
    """What labelling needs of one patient, read once for all of their moments."""

    deceased: bool
    deceased_at: datetime | None
    encounters: tuple[Stay, ...]
    known_until: datetime | None  # newest dated data


Rule = Callable[["Outcome", History, datetime], Label]


@dataclass(frozen=True, slots=True)
class Moments:
    """When predictions of an outcome are learned from.

    words     what such a moment is, for model cards
    patients  who can have one: others are not read
    of        a patient's, oldest first
    """

    words: str
    patients: Q
    of: Callable[[Patient], list[datetime]]


@dataclass(frozen=True, slots=True)
class AtRisk:
    """Who can still have a first event: nobody else is learned from or scored.

    is_past  whether the stays say of a moment that somebody cannot; None: everybody can, no stay is asked
    reason   why there is no number then, in words for people
    whom     who they are, for model cards
    """

    is_past: Callable[[Sequence[Stay], datetime], bool] | None
    reason: str = ""
    whom: str = ""


EVERYBODY = AtRisk(None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """phrase completes "23 in 100 patients like this …"; rule says what the record tells of it after a moment
    (nobody who had died by then, or is no longer `at_risk`, is asked about); act_at is the risk from which
    the policy that is shipped asks somebody to act (`policies`)."""

    name: str
    label: str
    phrase: str
    horizon: timedelta
    rule: Rule
    moments: Moments
    at_risk: AtRisk
    act_at: float = 0.25

    @property
    def horizon_hours(self) -> float:
        """The horizon as fusion counts it."""
        return self.horizon.total_seconds() / 3600


def get_outcome(name: str) -> Outcome:
    """The outcome of that name; Invalid names those there are."""
    if name not in OUTCOMES:
        raise Invalid(f"no outcome {name!r}; there are: {', '.join(sorted(OUTCOMES))}")
    return OUTCOMES[name]


def index_moments(patient: Patient) -> list[datetime]:
    """When a prediction is learned from: the moment each image study with pixels was taken, oldest first."""
    rows = Study.objects.filter(patient=patient, started_at__isnull=False, series__clip_path__gt="")
    return sorted({started_at for started_at in rows.values_list("started_at", flat=True) if started_at})


def read_history(patient: Patient, *, cutoff: datetime) -> History:
    """Encounters, death and follow-up, as known at `cutoff`."""
    encounters = tuple(stays_of(patient))
    newest = [
        patient.observations.filter(effective_at__lte=cutoff).aggregate(at=Max("effective_at"))["at"],
        patient.encounters.filter(start__lte=cutoff).aggregate(at=Max("start"))["at"],
        patient.encounters.filter(end__lte=cutoff).aggregate(at=Max("end"))["at"],
        patient.studies.filter(started_at__lte=cutoff).aggregate(at=Max("started_at"))["at"],
        patient.notes.filter(available_at__lte=cutoff).aggregate(at=Max("available_at"))["at"],
    ]
    return History(
        patient.deceased,
        patient.deceased_at if patient.deceased_at is None or patient.deceased_at <= cutoff else None,
        encounters,
        max((moment for moment in newest if moment is not None), default=None),
    )


def is_past(outcome: Outcome, stays: Sequence[Stay], as_of: datetime) -> bool:
    """Whether somebody with these stays can no longer have a first event of this outcome."""
    return outcome.at_risk.is_past is not None and outcome.at_risk.is_past(stays, as_of)


def reason_without_number(name: str) -> str:
    """Why a version that answers for an outcome gave no number for somebody it did score."""
    return (OUTCOMES[name].at_risk.reason if name in OUTCOMES else "") or NO_NUMBER


def label(outcome: Outcome, history: History, *, as_of: datetime) -> Label:
    """Whether `outcome` happened within its horizon after `as_of`."""
    if history.deceased_at is not None and history.deceased_at <= as_of:
        return Label(None, "died before the prediction")
    if is_past(outcome, history.encounters, as_of):
        return Label(None, outcome.at_risk.reason)
    return outcome.rule(outcome, history, as_of)


def _death(outcome: Outcome, history: History, as_of: datetime) -> Label:
    if history.deceased and history.deceased_at is None:
        return Label(None, "date of death not known")
    if history.deceased_at is not None:
        after = history.deceased_at - as_of
        return Label(1, after=after) if after <= outcome.horizon else Label(0)
    return _negative(outcome, history, as_of)


def _intensive_care(outcome: Outcome, history: History, as_of: datetime) -> Label:
    stays = [encounter for encounter in history.encounters if encounter.kind == INTENSIVE_CARE]
    if any(stay.start is None for stay in stays):
        return Label(None, "start of intensive care not known")
    starts = [stay.start for stay in stays if stay.start is not None]
    if within := [start for start in starts if as_of < start <= as_of + outcome.horizon]:
        return Label(1, after=min(within) - as_of)
    if history.deceased_at is not None and history.deceased_at <= as_of + outcome.horizon:
        return Label(0)  # followed to death, without intensive care
    return _negative(outcome, history, as_of)


def _negative(outcome: Outcome, history: History, as_of: datetime) -> Label:
    if any(stay.status == "unknown" and _covers(stay, as_of) for stay in history.encounters):
        return Label(None, "the course of the stay is not known")
    if history.known_until is not None and history.known_until >= as_of + outcome.horizon:
        return Label(0)
    if any(_finished_around(stay, as_of) for stay in history.encounters):
        return Label(0)
    return _lost(history, as_of)


def _lost(history: History, as_of: datetime) -> Label:
    """Seen without the event until the newest data, and no longer."""
    seen = history.known_until - as_of if history.known_until is not None else timedelta(0)
    return Label(None, FOLLOW_UP_TOO_SHORT, after=max(seen, timedelta(0)))


def been_in_intensive_care(encounters: Sequence[Stay], as_of: datetime) -> bool:
    """In intensive care at `as_of`, or earlier in the same stay: not at risk of a first admission to it."""
    before = [stay for stay in encounters if stay.kind == INTENSIVE_CARE and _began(stay, as_of)]
    around = [stay for stay in encounters if stay.kind != INTENSIVE_CARE and _covers(stay, as_of)]
    return any(
        _covers(care, as_of) or any(care.end is None or _began(stay, care.end) for stay in around)
        for care in before
    )


def _began(stay: Stay, moment: datetime) -> bool:
    return stay.start is not None and stay.start <= moment


def _covers(stay: Stay, moment: datetime) -> bool:
    """Under way at `moment`, as far as is known: a finished stay without an end is not."""
    if not _began(stay, moment):
        return False
    return stay.end > moment if stay.end is not None else stay.status != "finished"


def _finished_around(stay: Stay, as_of: datetime) -> bool:
    """The hospital stay in which the prediction falls, and it has ended."""
    return stay.start is not None and stay.end is not None and stay.start <= as_of <= stay.end


IMAGE_STUDIES = Moments(
    "the time an imaging study with pixels was taken",
    Q(studies__started_at__isnull=False, studies__series__clip_path__gt=""),
    index_moments,
)
OUTCOMES: dict[str, Outcome] = {
    "icu-admission": Outcome(
        "icu-admission",
        "Admission to intensive care within 14 days",
        "are admitted to intensive care within 14 days",
        timedelta(days=14),
        rule=_intensive_care,
        moments=IMAGE_STUDIES,
        at_risk=AtRisk(
            been_in_intensive_care,
            "already in intensive care in this stay",
            "patients who are in intensive care, or were earlier in the same stay",
        ),
    ),
    "death": Outcome(
        "death",
        "Death within 30 days",
        "die within 30 days",
        timedelta(days=30),
        rule=_death,
        moments=IMAGE_STUDIES,
        at_risk=EVERYBODY,
        act_at=0.15,
    ),
}


def moments_of(names: Sequence[str], patient: Patient, *, until: datetime) -> dict[datetime, list[str]]:
    """Moment → the named outcomes that are learned from it, oldest first; none after `until`."""
    asked: dict[datetime, list[str]] = {}
    found = {moments: moments.of(patient) for moments in {get_outcome(name).moments for name in names}}
    for name in names:
        for as_of in found[get_outcome(name).moments]:
            if as_of <= until:
                asked.setdefault(as_of, []).append(name)
    return dict(sorted(asked.items()))


def patients_of(names: Sequence[str]) -> Q:
    """Who can have a moment of one of the named outcomes."""
    return reduce(or_, (get_outcome(name).moments.patients for name in names))


def label_all(names: Sequence[str], history: History, *, as_of: datetime) -> dict[str, Label]:
    """Every named outcome at one moment."""
    return {name: label(get_outcome(name), history, as_of=as_of) for name in names}
