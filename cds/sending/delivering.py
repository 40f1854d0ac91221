"""Sending one document: claimed, built, sent outside any transaction, and ended with its audit event.

Whatever goes wrong is one of three things. It may pass (network, 429, 5xx, a full disk there): the document
waits, longer each time and as long as the destination asks for; the others for that destination wait with
it. It will not pass (the destination refuses): kept with the reason, until somebody sends it again. Or this
process dies: the lease runs out, and the sweeper queues it again. Since every document is found again at its
destination by its own identity, sending it twice changes nothing.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from django.db import transaction
from django.db.models import F
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.errors import ClinicError
from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.sending import clients, destinations, dicom_documents, fhir_documents
from cds.sending.composing import LOOK_AGAIN
from cds.sending.models import Destination, DestinationKind, Document

logger = logging.getLogger(__name__)
SENDER = recording.system("sender")
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=30), timedelta(hours=1)  # of one document
SHORT_PAUSE, LONG_PAUSE = timedelta(seconds=15), timedelta(minutes=10)  # of a destination
TURN = timedelta(seconds=5)


def deliver(document_id: uuid.UUID | str) -> None:
    """Send one document, unless it is not due. Safe to run twice."""
    now = timezone.now()
    waiting = Document.objects.select_related("destination", "needs").filter(
        pk=document_id, work_state=WorkState.QUEUED
    )
    held = waiting.first()
    if held is not None and not _is_due(held, now=now):
        return
    work = leases.claim(Document, document_id)
    if work is None:
        return
    with leases.heartbeat(work), suppress(leases.LeaseLost):
        try:
            remote = _send(work)
        except ehr.Retriable as fault:
            _defer(work, str(fault), after_s=fault.retry_after_s, now=timezone.now())
        except dicom_documents.NothingToSay as fault:
            _end(work, WorkState.CANCELLED, failure=str(fault), now=timezone.now())
        except (ehr.Permanent, ClinicError) as fault:
            _end(work, WorkState.FAILED, failure=str(fault), now=timezone.now())
        except Exception as fault:
            # Disk, database or a defect: the next try may work.
            _defer(work, f"{type(fault).__name__} while sending", now=timezone.now())
            raise
        else:
            _end(work, WorkState.DONE, remote=remote, now=timezone.now())


def wake_due(*, now: datetime) -> int:
    """Try again what was deferred until now; returns how many."""
    due = Document.objects.filter(
        due_at__lte=now, work_state=WorkState.QUEUED, destination__is_active=True
    ).order_by("due_at")
    with transaction.atomic():
        chosen = list(due.values_list("pk", flat=True)[:500])
        return destinations.wake(Document.objects.filter(pk__in=chosen), now=now)


def _is_due(document: Document, *, now: datetime) -> bool:
    """Whether it may be sent now; if not, it is put off, or ended with what it needs."""
    destination, needs = document.destination, document.needs
    until: datetime | None = None
    if not destination.is_active:
        until = now + LOOK_AGAIN
    elif destination.not_before is not None and destination.not_before > now:
        until = destination.not_before
    elif document.due_at is not None and document.due_at > now:
        until = document.due_at
    elif needs is not None and needs.work_state in (WorkState.FAILED, WorkState.CANCELLED):
        words = f"the {needs.get_kind_display().lower()} it points to was not accepted"
        Document.objects.filter(pk=document.pk, work_state=WorkState.QUEUED).update(
            work_state=needs.work_state, failure=words, finished_at=now, due_at=None
        )
        return False
    elif needs is not None and needs.work_state != WorkState.DONE:
        until = now + LOOK_AGAIN
    elif _same_is_under_way(document) or _is_being_probed(destination):
        until = now + TURN
    if until is not None:
        Document.objects.filter(pk=document.pk, work_state=WorkState.QUEUED).update(
            due_at=until, queued_at=until
        )
    return until is None


def _same_is_under_way(document: Document) -> bool:
    """An earlier one of the same identity is being sent: the later one must come after it."""
    same = Document.objects.filter(destination=document.destination_id, identity=document.identity)
    return same.exclude(pk=document.pk).filter(work_state=WorkState.RUNNING).exists()


def _is_being_probed(destination: Destination) -> bool:
    """It did not take the last one: one document asks whether it is there again, and the others wait."""
    return destination.failures > 0 and destination.documents.filter(work_state=WorkState.RUNNING).exists()


def _send(document: Document) -> str:
    """What the destination knows it as. Raises ehr.Retriable, ehr.Permanent, ClinicError, NothingToSay."""
    destination = document.destination
    if destination.kind == DestinationKind.FHIR:
        outgoing = fhir_documents.build(document)
        with clients.fhir_writer(destination) as writer:
            written = writer.put(outgoing.resource, match=outgoing.match, amend=outgoing.amend)
        return f"{outgoing.resource['resourceType']}/{written.resource_id}"
    instance = dicom_documents.build(document)
    if destination.kind == DestinationKind.DICOMWEB:
        with clients.stow_client(destination) as client:
            (answer,) = client.store(instance.study_uid, {instance.sop_uid: instance.content})
        _check_stored(answer.stored, answer.again, answer.words)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.dcm"
            path.write_bytes(instance.content)
            (sent,) = clients.dimse_client(destination).store([path])
        _check_stored(sent.accepted, sent.again, sent.words)
    return instance.sop_uid


def _check_stored(stored: bool, again: bool, words: str) -> None:
    if not stored:
        raise ehr.Retriable(words) if again else ehr.Refused(words)


def _defer(document: Document, reason: str, *, now: datetime, after_s: float | None = None) -> None:
    """Wait: this document by its own count, and its destination until somebody gets through again."""
    asked = timedelta(seconds=min(after_s or 0.0, LONGEST_WAIT.total_seconds()))
    with transaction.atomic():
        destination = Destination.objects.select_for_update().get(pk=document.destination_id)
        pause = max(asked, min(SHORT_PAUSE * 2 ** min(destination.failures, 10), LONG_PAUSE))
        own = max(asked, min(FIRST_WAIT * 2 ** min(document.tries, 10), LONGEST_WAIT))
        leases.check_still_ours(document)
        due = now + own
        Document.objects.filter(pk=document.pk).update(
            work_state=WorkState.QUEUED,
            lease_until=None,
            lease_owner="",
            starts=0,  # it did not die of it
            tries=F("tries") + 1,
            due_at=due,
            queued_at=due,
            failure=reason[:500],
        )
        Destination.objects.filter(pk=destination.pk).update(
            failures=F("failures") + 1,
            not_before=now + pause,
            last_error=reason[:500],
            last_error_at=now,
        )
    logger.warning("document %s is sent later: %s", document.pk, reason)


def _end(document: Document, state: WorkState, *, now: datetime, failure: str = "", remote: str = "") -> None:
    """Accepted, refused or needless: the state, its audit event and what was waiting for it, in one step."""
    with transaction.atomic():
        Document.objects.filter(pk=document.pk).update(remote=remote[:200], due_at=None)
        leases.finish(document, now=now, state=state, failure=failure)
        Destination.objects.filter(pk=document.destination_id).update(
            failures=0,
            not_before=None,
            **({"last_accepted_at": now} if state == WorkState.DONE else {}),
            **({"last_error": failure[:500], "last_error_at": now} if state == WorkState.FAILED else {}),
        )
        recording.record(
            by=SENDER,
            action="document.send",
            object_type="Document",
            object_id=document.pk,
            patient_id=document.patient_id,
            now=now,
            outcome="failed" if state == WorkState.FAILED else "success",
            kind=document.kind,
            state=state.value,
            destination=document.destination.slug,
            remote=remote,
        )
        destinations.wake(document.needed_by.filter(work_state=WorkState.QUEUED), now=now)
