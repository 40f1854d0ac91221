"""Files that lie durably in an inbox get their rows, many at once (docs/adr/0013)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.db import DataError, IntegrityError, transaction

import ehr
from cds.audit import recording
from cds.patients.models import Source
from cds.studies import clips
from cds.studies.instances import (
    Outcome,
    Received,
    Refused,
    build_instance,
    find_instance,
    reopen,
    rows_for,
    seen_again,
    store,
)
from cds.studies.models import Instance
from cds.studies.receiving import set_aside


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that lies durably in an inbox, inspected. `where` is what to call it when it is set aside."""

    path: Path
    found: ehr.Inspected
    where: str


def known_as(arrived: Arrived, *, source: Source, now: datetime) -> Received | None:
    """What a file is that we hold already: a duplicate, or set aside; None when it is new to us."""
    uid = arrived.found.header.sop_uid
    if not Instance.objects.filter(sop_uid=uid).exists():  # nearly always, and a quarter of the next one
        return None
    known = find_instance(uid)
    if known is None:
        return None
    try:
        return seen_again(known, arrived.path, arrived.found)
    except (ehr.Permanent, Refused) as error:
        return set_aside(arrived.where, uid, str(error), source=source, now=now)


def record_arrivals(
    arrivals: list[Arrived], *, source: Source, by: recording.Actor, now: datetime
) -> list[Received]:
    """The rows of files in an inbox, in one transaction; then the files go to their places.

    A new file has its row first and its place after: whoever finds it still in the inbox (we were killed in
    between) calls this again, and it goes to the place that its row names. What is not new stays there.
    """
    with transaction.atomic():
        together = _record_together(arrivals, source=source, by=by, now=now)
        done = [
            together.get(one.path) or _record_arrival(one, source=source, by=by, now=now) for one in arrivals
        ]
    for one, received in zip(arrivals, done, strict=True):
        if (instance := received.instance) is None or instance.sha256 != one.found.sha256:
            continue
        if received.outcome is Outcome.NEW or not clips.path_of(instance.path).exists():
            clips.place(one.path, instance.path)
    return done


def _record_together(
    arrivals: list[Arrived], *, source: Source, by: recording.Actor, now: datetime
) -> dict[Path, Received]:
    """The new files of each Series whose headers agree, at once. The others are left: one by one, each gets
    its own reason."""
    known = set(
        Instance.objects.filter(sop_uid__in=[one.found.header.sop_uid for one in arrivals]).values_list(
            "sop_uid", flat=True
        )
    )
    groups: dict[tuple[object, ...], dict[str, Arrived]] = defaultdict(dict)
    for one in arrivals:
        if (uid := one.found.header.sop_uid) not in known:
            groups[_agreement(one.found.header)].setdefault(uid, one)
    done: dict[Path, Received] = {}
    for group in groups.values():
        if len(group) < 2:
            continue
        try:
            with transaction.atomic():
                done |= _record_group(list(group.values()), source=source, by=by, now=now)
        except (Refused, IntegrityError, DataError):
            continue
    return done


def _agreement(header: ehr.InstanceHeader) -> tuple[object, ...]:
    """What Study and Series are made and checked by: instances equal in it are all taken, or all refused."""
    return (
        header.study_uid, header.series_uid, header.patient_id, header.issuer_of_patient_id,
        header.study_description, header.started_at, header.view_position,
    )  # fmt: skip


def _record_group(
    group: list[Arrived], *, source: Source, by: recording.Actor, now: datetime
) -> dict[Path, Received]:
    study, series = rows_for(group[0].found.header, source=source, by=by, now=now)
    held = reopen(study, series, group[0].found.header)
    folder = f"{study.pk}/{series.pk}"
    instances = Instance.objects.bulk_create(
        build_instance(f"{folder}/{one.found.sha256}.dcm", one.found, series) for one in group
    )
    acts = [
        recording.Act(held.pk, held.patient_id, {"instance": one.sop_uid, "bytes": one.bytes})
        for one in instances
    ]
    recording.record_many(by=by, action="instance.receive", object_type="Study", now=now, acts=acts)
    return {
        one.path: Received(held, instance, Outcome.NEW)
        for one, instance in zip(group, instances, strict=True)
    }


def _record_arrival(arrived: Arrived, *, source: Source, by: recording.Actor, now: datetime) -> Received:
    header = arrived.found.header
    try:
        with transaction.atomic():
            known = find_instance(header.sop_uid)
            if known is None:
                study, series = rows_for(header, source=source, by=by, now=now)
                relative = f"{study.pk}/{series.pk}/{arrived.found.sha256}.dcm"
                instance = store(relative, arrived.found, study, series, by=by, now=now)
                if instance is not None:
                    return Received(instance.series.study, instance, Outcome.NEW)
                known = find_instance(header.sop_uid)
                assert known is not None  # somebody stored it between our look and our insert
            return seen_again(known, arrived.path, arrived.found)
    except (ehr.Permanent, Refused, DataError) as error:
        reason = str(error) if not isinstance(error, DataError) else "a value of it does not fit its column"
        return set_aside(arrived.where, header.sop_uid, reason, source=source, now=now)
