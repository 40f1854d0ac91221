"""Frames and heat maps as PNG. Access is checked for every one; a look at a Series is audited once."""

from __future__ import annotations

import io
from datetime import timedelta
from uuid import UUID

import numpy as np
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from PIL import Image

from cds.audit import queries as audit_queries
from cds.audit import recording
from cds.errors import Invalid, NotFound
from cds.patients import access
from cds.risk import queries as risk_queries
from cds.studies import clips
from cds.studies import queries as studies_queries
from web import colours
from web.people import actor_of

LOOK = timedelta(minutes=10)  # frames of one Series within this time are one look
HIDDEN_BELOW = 0.2  # the lowest fifth of a heat map is not drawn


@require_safe
@login_required
def frame(request: HttpRequest, patient_id: UUID, series_id: UUID, number: int) -> HttpResponse:
    """Frame `number` (from 0) of a Series of this patient, 8-bit grey, at its stored size."""
    _check_look(request, patient_id, "Series", series_id, action="image.view")
    series = studies_queries.find_series(patient_id, series_id)
    if series is None:
        raise NotFound("no such Series of this patient")
    try:
        return _png(request, clips.png(series, number))
    except Invalid as fault:
        raise NotFound(str(fault)) from fault


@require_safe
@login_required
def heat_map(request: HttpRequest, patient_id: object, heat_map_id: int) -> HttpResponse:
    """A heat map in cividis, RGBA: the weaker the influence, the more transparent."""
    _check_look(request, patient_id, "HeatMap", heat_map_id, action="heat_map.view")
    held = risk_queries.find_heat_map(request.user, heat_map_id)
    if str(held.prediction.assessment.patient_id) != str(patient_id):
        raise NotFound("no such heat map of this patient")
    values = np.clip(np.nan_to_num(risk_queries.heat_map_values(held)), 0.0, 1.0)
    picture = colours.cividis(values)
    picture[..., 3] = np.where(values < HIDDEN_BELOW, 0, np.round(values * 255)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(stream, "PNG", compress_level=1)
    return _png(request, stream.getvalue())


def _check_look(
    request: HttpRequest, patient_id: object, kind: str, object_id: object, *, action: str
) -> None:
    """Raises NotFound, audited, for somebody else's patient; writes down the first look of a while."""
    access.check_view_patients(request.user)
    by, now = actor_of(request), timezone.now()
    if not access.visible_patients(request.user).filter(pk=str(patient_id)).exists():
        access.get_patient(request.user, patient_id, by=by, now=now, action=action)  # audits the refusal
    if audit_queries.has_recent(
        actor=by.name, action=action, object_id=object_id, patient_id=patient_id, since=now - LOOK
    ):
        return
    with transaction.atomic():
        recording.record(
            by=by, action=action, object_type=kind, object_id=object_id, patient_id=patient_id, now=now
        )


def _png(request: HttpRequest, data: bytes) -> HttpResponse:
    request.is_stream = True  # type: ignore[attr-defined]  # frames load by themselves: not activity
    return HttpResponse(data, content_type="image/png")
