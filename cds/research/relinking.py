"""From a name in a research copy back to our patient. Every look, and every refusal, is on record."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.contrib.auth.models import User
from django.db import transaction

from cds.audit import recording
from cds.errors import Invalid, NotAllowed, NotFound
from cds.patients.models import Patient
from cds.research.models import ResearchSubject


def get_patient(
    export_id: str, pseudonym: str, *, reason: str, user: User, by: recording.Actor, now: datetime
) -> Patient:
    """The patient who is called `pseudonym` in that copy. Call it outside any transaction.

    raises  Invalid without a reason; NotAllowed without the permission `research.relink`; NotFound
    """
    if not reason.strip():
        raise Invalid("say why: the reason is kept in the audit trail")
    may = user.is_active and user.has_perm("research.relink")
    try:
        export = UUID(export_id)
    except ValueError:
        raise Invalid("that is not the id of an export: manifest.json of the copy names it") from None
    with transaction.atomic(durable=True):
        held = (
            ResearchSubject.objects.select_related("patient__source")
            if may
            else ResearchSubject.objects.none()
        )
        found = held.filter(export_id=export, pseudonym=pseudonym).first()
        recording.record(
            by=by,
            action="research.relink",
            object_type="ResearchExport",
            object_id=export,
            patient_id=found.patient_id if found is not None else None,
            now=now,
            outcome="success" if found is not None else "refused",
            reason=reason,
        )
    if not may:
        raise NotAllowed("this needs the permission research.relink (role approver)")
    if found is None:
        raise NotFound("nobody is called that in that copy")
    return found.patient
