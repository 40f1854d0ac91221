"""Does a source answer? Asked by a worker, never by the request that shows the answer."""

from __future__ import annotations

from datetime import datetime

import ehr
from cds.patients import sources
from cds.patients.models import RunKind, Source

TIMEOUT_S = 10.0


def check(source_id: str, *, now: datetime) -> None:
    """Call the source once and keep what it said, in words. Safe to run twice."""
    source = Source.objects.filter(pk=source_id).first()
    if source is None:
        return
    try:
        answered, said = True, _ask(source)
    except ehr.EhrError as error:
        answered, said = False, str(error)
    sources.answer_check(source.pk, answered=answered, said=said, now=now)


def _ask(source: Source) -> str:
    where, kind = address_of(source)
    if not where:
        raise ehr.Refused(
            "there is nothing to call: this source has no address. Its data come from a folder, by C-STORE "
            "or by hook calls"
        )
    if where.startswith("dimse"):
        ehr.DimseClient(ehr.parse_node(where)).echo()
        return "it answered C-ECHO"
    if kind == RunKind.DICOM:
        with ehr.DicomWebClient(where, timeout_s=TIMEOUT_S) as archive:
            found = next(archive.studies(), None)
        return "it answered QIDO-RS" + (", with studies" if found else ", with no study yet")
    allow_http = source.base_url.rstrip("/") == where.rstrip("/")
    with ehr.FhirClient(where, timeout_s=TIMEOUT_S, allow_http=allow_http) as server:
        statement = server.capabilities()
    return f"it answered with its CapabilityStatement: FHIR {statement.version}, {statement.software}"


def address_of(source: Source) -> tuple[str, str]:
    """Where to call, and as what: its registered address, else the one its newest run took from; ("", "")."""
    newest = source.runs.filter(where__contains="://").order_by("-started_at").first()
    if source.base_url:
        return source.base_url, newest.kind if newest else RunKind.SERVER
    return (newest.where, newest.kind) if newest else ("", "")
