"""`manage.py export_audit FILE`: our audit trail as FHIR AuditEvents, one a line (NDJSON)."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

import ehr
from cds.audit import queries, recording
from cds.audit.models import AuditEvent
from cds.patients.models import Patient

AT_ONCE = 1000


class Command(BaseCommand):
    help = (
        "Write the audit trail as FHIR R4 AuditEvents (looks at patients by IHE BALP), one JSON object a "
        "line, oldest first. That it was exported is recorded in it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", help="where to; - for standard output")
        for name, told in (("since", "first"), ("until", "last")):
            parser.add_argument(
                f"--{name}", type=date.fromisoformat, metavar="DAY", help=f"the {told} day, as 2026-03-01"
            )

    def handle(self, *args: Any, **options: Any) -> None:
        filters = queries.AuditFilters(since=options["since"], until=options["until"])
        events = queries.list_events(filters).order_by("at", "pk").iterator(AT_ONCE)
        with transaction.atomic():
            recording.record(
                by=recording.system("export_audit"),
                action="audit.export",
                object_type="AuditEvent",
                object_id="-",
                now=timezone.now(),
                since=str(options["since"] or ""),
                until=str(options["until"] or ""),
            )
        if options["file"] == "-":
            count = write(events, sys.stdout.buffer)
        else:
            try:
                with Path(options["file"]).open("wb") as target:
                    count = write(events, target)
            except OSError as error:
                raise CommandError(f"cannot write {options['file']}: {error.strerror}") from error
        self.stderr.write(f"{count} events")


def write(events: Iterator[AuditEvent], target: IO[bytes]) -> int:
    """One AuditEvent a line; returns how many."""
    count = 0
    while chunk := list(islice(events, AT_ONCE)):
        known = hospital_ids(chunk)
        for event in chunk:
            act = ehr.AuditedAct(
                key=f"tessera-{event.chain_id}-{event.sequence}",
                at=event.at,
                actor=event.actor,
                role=event.role,
                action=event.action,
                object_type=event.object_type,
                object_id=event.object_id,
                outcome=event.outcome,
                address=event.source_address,
                request_id=event.correlation_id,
                patient_id=known.get(str(event.patient_id), ""),
                detail={"hash": event.hash, **{name: _said(value) for name, value in event.detail.items()}},
                server=settings.PUBLIC_URL,
            )
            target.write(orjson.dumps(ehr.build_audit_event(act)) + b"\n")
            count += 1
    return count


def hospital_ids(events: Iterable[AuditEvent]) -> dict[str, str]:
    """Our patient ids → those of the hospital; patients who are gone are not in it."""
    ours = {event.patient_id for event in events if event.patient_id is not None}
    return {
        str(pk): found for pk, found in Patient.objects.filter(pk__in=ours).values_list("pk", "resource_id")
    }


def _said(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
