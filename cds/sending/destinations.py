"""Where results go: registered by an operator, never found out. Nothing is sent anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from cds.audit import recording
from cds.errors import Conflict, Invalid, NotFound
from cds.jobs import Job, leases, outbox
from cds.jobs.models import WorkState
from cds.patients.models import CheckState, Source
from cds.sending import clients
from cds.sending.models import Destination, DestinationKind, Document, DocumentKind

FHIR_KINDS = (
    DocumentKind.DEVICE,
    DocumentKind.RISK_ASSESSMENT,
    DocumentKind.DIAGNOSTIC_REPORT,
    DocumentKind.PROVENANCE,
)
DICOM_KINDS = (DocumentKind.MEASUREMENTS, DocumentKind.OUTLINES, DocumentKind.HEAT_MAP)
NEEDED = (DocumentKind.DEVICE,)  # the others point to it
SAYING = (DocumentKind.RISK_ASSESSMENT, DocumentKind.DIAGNOSTIC_REPORT)  # one of them says the number


def get(slug: str) -> Destination:
    """Raises NotFound."""
    found = Destination.objects.select_related("source").filter(slug=slug).first()
    if found is None:
        raise NotFound(f"no destination {slug!r}; `destination list` shows them")
    return found


@transaction.atomic
def add(
    slug: str,
    *,
    source: Source,
    address: str,
    by: recording.Actor,
    now: datetime,
    kinds: Sequence[str] = (),
    client_id: str = "",
    token_url: str = "",
    scope: str = "",
    secret_env: str = "",
    title: str = "",
    tls_ca: str = "",
    tls_cert: str = "",
    tls_key: str = "",
    allow_http: bool = False,
) -> Destination:
    """Send the results about this source's patients to `address` from now on. Raises Invalid, Conflict.

    address  FHIR base URL; `dicomweb+https://…`, the part before /studies; or dimse://TITLE@host:port
    kinds    of DocumentKind; all that fit the address when empty. For a FHIR server without RiskAssessment:
             DiagnosticReport (and Provenance) only; the number then stands in the report
    tls_ca   and tls_cert, tls_key: files of DICOM over TLS; else the site's
    """
    kind, plain = clients.split_address(address)
    possible = FHIR_KINDS if kind is DestinationKind.FHIR else DICOM_KINDS
    if unfit := set(kinds) - {one.value for one in possible}:
        raise Invalid(
            f"a {kind.value} destination takes {', '.join(possible)}, not {', '.join(sorted(unfit))}"
        )
    wanted = [one for one in possible if not kinds or one.value in kinds]
    if kind is DestinationKind.FHIR:
        needed = NEEDED if set(SAYING) & set(wanted) else (*NEEDED, SAYING[0])
        wanted = [one for one in possible if one in wanted or one in needed]
    if Destination.objects.filter(slug=slug).exists():
        raise Conflict(f"there is a destination {slug!r}; remove it, or choose another name")
    destination = Destination(
        source=source,
        slug=slug,
        kind=kind,
        address=plain,
        client_id=client_id,
        token_url=token_url,
        scope=scope or (clients.SCOPE if client_id else ""),
        secret_env=secret_env,
        title=title,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        allow_http=allow_http,
        document_kinds=[one.value for one in wanted],
        created_at=now,
        since=now,
        looked_until=now,
    )
    clients.check_address(destination)
    destination.save(force_insert=True)
    _record("destination.add", destination, by=by, now=now)
    return destination


@transaction.atomic
def set_active(slug: str, active: bool, *, by: recording.Actor, now: datetime) -> Destination:
    """Pause, or go on: what waits stays, and what was made meanwhile is sent when it goes on."""
    destination = get(slug)
    destination.is_active = active
    destination.not_before, destination.failures = None, 0
    destination.save(update_fields=["is_active", "not_before", "failures"])
    if active:
        wake(destination.documents.filter(work_state=WorkState.QUEUED), now=now)
    _record("destination.resume" if active else "destination.pause", destination, by=by, now=now)
    outbox.tell("destination", destination.pk, now=now)
    return destination


@transaction.atomic
def remove(slug: str, *, by: recording.Actor, now: datetime) -> int:
    """Send nothing there any more; returns how many waiting documents are dropped. What was sent stays known,
    so the name and its history are kept, under another name."""
    destination = get(slug)
    waiting = destination.documents.filter(work_state__in=[WorkState.QUEUED, WorkState.FAILED])
    dropped = waiting.update(
        work_state=WorkState.CANCELLED, failure="the destination was removed", finished_at=now, due_at=None
    )
    destination.is_active = False
    destination.slug = f"removed-{destination.pk.hex[:12]}-{slug}"[:80]
    destination.save(update_fields=["is_active", "slug"])
    _record("destination.remove", destination, by=by, now=now, dropped=dropped)
    return dropped


@transaction.atomic
def retry(slug: str, *, by: recording.Actor, now: datetime) -> int:
    """Queue again whatever this destination refused; returns how many documents."""
    destination = get(slug)
    refused = list(destination.documents.filter(work_state=WorkState.FAILED).values_list("pk", flat=True))
    destination.documents.filter(pk__in=refused).update(
        work_state=WorkState.QUEUED, failure="", starts=0, tries=0, finished_at=None, queued_at=now
    )
    destination.not_before, destination.failures = None, 0
    destination.save(update_fields=["not_before", "failures"])
    wake(destination.documents.filter(work_state=WorkState.QUEUED), now=now)
    _record("destination.retry", destination, by=by, now=now, documents=len(refused))
    return len(refused)


@transaction.atomic
def ask_check(slug: str, *, by: recording.Actor, now: datetime) -> None:
    """Have a worker ask whether the destination would take what we send; see `Destination.check_said`."""
    destination = get(slug)
    Destination.objects.filter(pk=destination.pk).update(
        check_state=CheckState.ASKED, check_said="", checked_at=now
    )
    outbox.enqueue(Job.CHECK_DESTINATION, now=now, destination_id=str(destination.pk))
    _record("destination.check", destination, by=by, now=now)


def check(destination_id: UUID | str, *, now: datetime) -> None:
    """Ask it, and keep the answer in words. Sends nothing of anybody. Safe to run twice."""
    destination = Destination.objects.filter(pk=destination_id).first()
    if destination is None:
        return
    problems = clients.list_problems(destination)
    state = CheckState.SILENT if problems else CheckState.ANSWERED
    said = "\n".join(problems) or clients.WELL[DestinationKind(destination.kind)]
    Destination.objects.filter(pk=destination.pk).update(
        check_state=state, check_said=said[:2000], checked_at=now
    )
    outbox.tell("destination", destination.pk, now=now)


def wake(waiting: QuerySet[Document], *, now: datetime) -> int:
    """Have these tried now, in the caller's transaction."""
    count = 0
    for document in waiting.order_by("order", "pk"):
        Document.objects.filter(pk=document.pk).update(due_at=None, queued_at=now)
        leases.queue(document, now=now)
        count += 1
    return count


def _record(
    action: str, destination: Destination, *, by: recording.Actor, now: datetime, **detail: Any
) -> None:
    recording.record(
        by=by,
        action=action,
        object_type="Destination",
        object_id=destination.pk,
        now=now,
        slug=destination.slug,
        source=destination.source.slug,
        address=destination.address,
        **detail,
    )
