"""Drawing and freezing cohorts: who, at which moment, with what outcome, in which split.

A patient is in one split only. Splits are 60 / 20 / 20 of the patients by seeded hash, within groups of
patients with the same outcomes, so that each split has events whenever there are enough of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction

from cds.errors import Invalid
from cds.patients.models import Patient, Source
from cds.registry import outcomes as known_outcomes
from cds.registry.models import Cohort, CohortMember

SPLITS = ("train", "tuning", "held_out")
SHARES = (0.6, 0.8, 1.0)  # upper bound of each split
LEAST_EVENTS = (
    5  # with and without the event, in training: fusion.train refuses fewer (a test keeps them equal)
)


@dataclass(frozen=True, slots=True)
class Moment:
    """One member to be."""

    patient_id: str
    place: str  # of the patient in the seeded order: the same wherever the same record is held
    as_of: datetime
    labels: dict[str, int]
    follow_up: dict[str, tuple[float, bool]]  # hours, and whether the event ends them


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of one outcome: members and events, per split and in all; and the excluded, by reason.

    lost  moments not followed to the horizon: without a label, and learned from for as long as they were
    """

    outcome: str
    label: str
    members: int
    events: int
    by_split: dict[str, dict[str, int]]
    excluded: dict[str, int]
    lost: int = 0

    @property
    def problem(self) -> str:
        """Why a model cannot be trained on this, or ""."""
        for split, held in self.by_split.items():
            others = held["n"] - held["events"]
            if not held["events"] or not others:
                which = "members without the event" if held["events"] else "events"
                return f"the {split.replace('_', '-')} split has no {which}"
            if split == "train" and min(held["events"], others) < LEAST_EVENTS:
                return (
                    f"the train split has {held['events']} with the event and {others} without; "
                    f"at least {LEAST_EVENTS} of each are needed"
                )
        return ""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a cohort would be, before anything is stored. simulated: how many of its patients are."""

    patients: int
    moments: int
    outcomes: tuple[Counts, ...]
    simulated: int = 0

    @property
    def mixture(self) -> str:
        """What to say where a model would learn from simulated and other patients together, or ""."""
        if not 0 < self.simulated < self.patients:
            return ""
        return (
            f"{self.simulated} of these {self.patients} patients are simulated. A model of both is not "
            "marked as simulated: choose the sources it should learn from."
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What stands in the way of training, in words; empty when nothing does."""
        return tuple(f"{counts.label}: {counts.problem}" for counts in self.outcomes if counts.problem)


def draw(*, outcomes: Sequence[str], sources: Sequence[str] = (), now: datetime, seed: int = 0) -> Cohort:
    """Note down what to look for; `freeze` looks. Nothing after `now` will be looked at."""
    names = _checked(outcomes)
    unknown = set(sources) - set(Source.objects.values_list("slug", flat=True))
    if unknown:
        raise Invalid(f"no source {', '.join(sorted(unknown))}")
    return Cohort.objects.create(outcomes=names, sources=sorted(sources), cutoff_at=now, seed=seed)


def preview(*, outcomes: Sequence[str], sources: Sequence[str] = (), now: datetime, seed: int = 0) -> Preview:
    """Count what a cohort drawn now would hold."""
    names = _checked(outcomes)
    moments, excluded = _collect(names, sorted(sources), now)
    return _count(names, moments, _split(moments, names, seed), excluded)


def freeze(cohort: Cohort, *, now: datetime) -> Cohort:
    """Store the members and their digest. A frozen cohort is checked against its digest and left alone."""
    if cohort.frozen_at is not None:
        if digest_of(cohort) != cohort.digest:
            raise Invalid("the members of this cohort are not those it was frozen with")
        return cohort
    moments, excluded = _collect(cohort.outcomes, cohort.sources, cohort.cutoff_at)
    splits = _split(moments, cohort.outcomes, cohort.seed)
    counted = _count(cohort.outcomes, moments, splits, excluded)
    with transaction.atomic():
        cohort.members.all().delete()
        CohortMember.objects.bulk_create(
            CohortMember(
                cohort=cohort,
                patient_id=moment.patient_id,
                as_of=moment.as_of,
                labels=moment.labels,
                follow_up=moment.follow_up,
                split=splits[moment.patient_id],
            )
            for moment in moments
        )
        cohort.counts = _counts_json(counted)
        cohort.digest = digest_of(cohort)
        cohort.frozen_at = now
        cohort.save(update_fields=["counts", "digest", "frozen_at"])
    return cohort


def digest_of(cohort: Cohort) -> str:
    """SHA-256 over every member: patient, moment, labels, split, and how long it was followed, where a cohort
    says so (older ones do not)."""
    rows = cohort.members.order_by("patient_id", "as_of").values_list(
        "patient_id", "as_of", "labels", "split", "follow_up"
    )
    found = hashlib.sha256()
    for patient_id, as_of, labels, split, follow_up in rows:
        said = [str(patient_id), as_of.isoformat(), labels, split, *([follow_up] if follow_up else [])]
        found.update(json.dumps(said, sort_keys=True).encode())
    return found.hexdigest()


def is_simulated(cohort: Cohort) -> bool:
    """Whether every member comes from a simulated source."""
    return not cohort.members.filter(patient__source__simulated=False).exists()


def _checked(names: Sequence[str]) -> list[str]:
    if not names:
        raise Invalid("name at least one outcome")
    return sorted({known_outcomes.get_outcome(name).name for name in names})


def _collect(
    names: Sequence[str], sources: Sequence[str], cutoff: datetime
) -> tuple[list[Moment], dict[str, Counter[str]]]:
    """Every labelled moment up to `cutoff`, and per outcome the reasons why others have no label."""
    patients = (
        Patient.objects.filter(known_outcomes.patients_of(names), merged_into=None)
        .select_related("source")
        .distinct()
        .order_by("pk")
    )
    if sources:
        patients = patients.filter(source__slug__in=sources)
    moments: list[Moment] = []
    excluded: dict[str, Counter[str]] = {name: Counter() for name in names}
    for patient in patients.iterator(500):
        asked = known_outcomes.moments_of(names, patient, until=cutoff)
        if not asked:
            continue
        history = known_outcomes.read_history(patient, cutoff=cutoff)
        for as_of, some in asked.items():
            found = known_outcomes.label_all(some, history, as_of=as_of)
            labels = {name: labelled.value for name, labelled in found.items() if labelled.value is not None}
            follow_up = {}
            for name, labelled in found.items():
                seen = labelled.follow_up(known_outcomes.get_outcome(name).horizon)
                if seen is not None:
                    follow_up[name] = seen
                elif labelled.value is None:
                    excluded[name][labelled.reason] += 1
            if follow_up:
                moments.append(Moment(str(patient.pk), place_of(patient), as_of, labels, follow_up))
    return moments, excluded


def place_of(patient: Patient) -> str:
    """A digest of who the patient is at the source: unlike our ids, equal wherever the same data are."""
    return hashlib.sha256(f"{patient.source.slug}|{patient.resource_id}".encode()).hexdigest()


def _split(moments: Sequence[Moment], names: Sequence[str], seed: int) -> dict[str, str]:
    """patient id → split."""
    happened: dict[str, set[str]] = defaultdict(set)
    places = {moment.patient_id: moment.place for moment in moments}
    for moment in moments:
        happened[moment.patient_id].update(name for name, value in moment.labels.items() if value)
    groups: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for patient_id, events in happened.items():
        groups[tuple(name in events for name in names)].append(patient_id)
    splits: dict[str, str] = {}
    for members in groups.values():
        members.sort(key=lambda who: hashlib.sha256(f"{seed}:{places[who]}".encode()).digest())
        for place, patient_id in enumerate(members):
            share = (place + 0.5) / len(members)
            splits[patient_id] = next(
                split for split, bound in zip(SPLITS, SHARES, strict=True) if share < bound
            )
    return splits


def _count(
    names: Sequence[str], moments: Sequence[Moment], splits: dict[str, str], excluded: dict[str, Counter[str]]
) -> Preview:
    counts = []
    for name in names:
        by_split = {split: {"n": 0, "events": 0} for split in SPLITS}
        for moment in moments:
            if name in moment.labels:
                held = by_split[splits[moment.patient_id]]
                held["n"] += 1
                held["events"] += moment.labels[name]
        counts.append(
            Counts(
                name,
                known_outcomes.get_outcome(name).label,
                sum(held["n"] for held in by_split.values()),
                sum(held["events"] for held in by_split.values()),
                by_split,
                dict(excluded[name]),
                sum(name in moment.follow_up and name not in moment.labels for moment in moments),
            )
        )
    people = {moment.patient_id for moment in moments}
    simulated = Patient.objects.filter(source__simulated=True).values_list("pk", flat=True)
    return Preview(len(people), len(moments), tuple(counts), len(people & set(map(str, simulated))))


def _counts_json(counted: Preview) -> dict[str, Any]:
    return {
        "patients": counted.patients,
        "moments": counted.moments,
        "outcomes": {
            counts.outcome: {
                "members": counts.members,
                "events": counts.events,
                "by_split": counts.by_split,
                "excluded": counts.excluded,
                "lost": counts.lost,
            }
            for counts in counted.outcomes
        },
    }
