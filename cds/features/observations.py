"""Labs, vitals and measured sizes: the latest value of each, and the course of some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson
from django.db.models import F, Q, TextField
from django.db.models.functions import Cast

from cds import catalogue
from cds.features.basis import USABLE_STATUS, Used, hours_before
from cds.patients.models import Observation, Patient
from cds.statements import Statement
from cds.studies.models import Measurement
from fusion import SeriesPoint

MAX_POINTS = 400  # per channel, newest first


@dataclass(frozen=True, slots=True)
class Point:
    """A value: when it was taken, when it was known, and the (type, id) it stands in."""

    at: datetime
    known_at: datetime
    value: float
    resource: tuple[str, str]


_BY_CODE = {code: measured for measured in catalogue.LATEST for code in measured.loinc}
_values = Statement(
    lambda patient, as_of, since: (
        Observation.objects.filter(patient=patient, available_at__lte=as_of, available_at__gte=since)
        .filter(Q(code__in=list(_BY_CODE)) | ~Q(also=[]), value__isnull=False, status__in=USABLE_STATUS)
        .values_list(
            "code_system",
            "code",
            Cast("also", TextField()),  # mostly "[]": not worth a JSON reader a row
            "effective_at",
            "available_at",
            "value",
            "unit",
            "resource_type",
            "resource_id",
        )
    )
)


def read_observations(patient: Patient, *, as_of: datetime, series_hours: float) -> dict[str, list[Point]]:
    """Usable values by measurement name, newest first: known by as_of, right unit, plausible."""
    longest = max(series_hours / 24, *(measured.window_days for measured in catalogue.LATEST))
    since = as_of - timedelta(days=longest + 365)
    rows = _values.rows(patient=patient.pk, as_of=as_of, since=since)
    found: dict[str, list[Point]] = {}
    for system, code, also, effective_at, available_at, value, unit, kind, identity in rows:
        if value is None or available_at is None:
            continue  # the query asked for neither
        others = () if also == "[]" else orjson.loads(also)
        measured = next((_BY_CODE[c] for c in _loinc_codes(system, code, others) if c in _BY_CODE), None)
        at = effective_at or available_at
        if (
            measured is None
            or unit != measured.unit
            or not measured.low <= value <= measured.high
            or at > as_of
        ):
            continue
        found.setdefault(measured.name, []).append(Point(at, available_at, float(value), (kind, identity)))
    for points in found.values():
        points.sort(key=lambda p: (p.at, p.known_at), reverse=True)
    return found


def _loinc_codes(system: str, code: str, also: Iterable[str]) -> list[str]:
    every = [f"{system}|{code}", *also]
    return [token.rpartition("|")[2] for token in every if token.startswith(f"{catalogue.LOINC}|")]


def latest_values(
    found: Mapping[str, list[Point]], *, as_of: datetime, used: Used
) -> dict[str, float | None]:
    """The newest value of each measurement within its window; None where there is none."""
    values: dict[str, float | None] = {}
    for measured in catalogue.LATEST:
        newest = next(iter(found.get(measured.name, [])), None)
        if newest is None or newest.at < as_of - timedelta(days=measured.window_days):
            values[measured.name] = None
            continue
        values[measured.name] = newest.value
        used.add(*newest.resource, newest.known_at)
    return values


_sizes = Statement(
    lambda patient, as_of: (
        Measurement.objects.filter(series__study__patient=patient, series__study__started_at__lte=as_of)
        .filter(value__isnull=False, pixels_digest=F("series__pixels_digest"))
        .order_by("-series__study__started_at", "-made_at", "pk")
        .values_list("name", "value", "series__study__study_uid", "series__study__started_at")
    )
)


def measured_sizes(patient: Patient, *, as_of: datetime, used: Used) -> dict[str, float | None]:
    """Sizes in the newest picture they are known of; of several methods, the latest one's."""
    values: dict[str, float | None] = {}
    newest: dict[str, tuple[float | None, str, datetime | None]] = {}
    for name, value, uid, at in _sizes.rows(patient=patient.pk, as_of=as_of):
        newest.setdefault(name, (value, uid, at))
    for size in catalogue.MEASURED:
        value, uid, at = newest.get(size.name, (None, "", None))
        is_recent = at is not None and at >= as_of - timedelta(days=size.window_days)
        values[size.name] = value if is_recent else None
        if is_recent:
            used.add("ImagingStudy", uid, at)
    return values


def series_points(
    found: Mapping[str, list[Point]], *, as_of: datetime, hours: float, used: Used
) -> tuple[SeriesPoint, ...]:
    """The values of each channel in the last `hours`, newest first."""
    since = as_of - timedelta(hours=hours)
    points: list[SeriesPoint] = []
    for channel in catalogue.SERIES:
        for point in found.get(channel.name, [])[:MAX_POINTS]:
            if point.at < since:
                break
            points.append(SeriesPoint(channel.name, hours_before(as_of, point.at), point.value))
            used.add(*point.resource, point.known_at)
    return tuple(points)
