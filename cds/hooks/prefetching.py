"""How what an EHR sent, and what it lets us read, becomes the record.

A prefetch that was read before and left the patient as they are now costs one look-up by the digest of its
bytes, without parsing; of one that changed, only the resources that are new or changed are read
(`ehr.Parts`). What did not come is read from the EHR's FHIR server (INTEROP 7): keys that are
absent, and Bundles with further pages; not what came as null or as an OperationOutcome. Only a server
registered for that client is called, with the token of the call, which is neither kept nor logged
(INTEROP 9).

While the source is paused nothing that was sent is kept, and no server is asked: the call is answered from
what is held.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Subquery

import ehr
from cds.hooks import templates, waiting
from cds.hooks.budget import Budget
from cds.hooks.client_auth import Caller
from cds.hooks.fields import BadRequest
from cds.hooks.models import PrefetchRead
from cds.hooks.offering import Service
from cds.hooks.wire import HookRequest, Outline, Unobtainable, outline, parse_json, parse_request
from cds.patients import code_map, importing, merging, sources
from cds.patients.models import Patient
from cds.risk import responding
from cds.risk.standing import newest_first
from cds.statements import Statement
from cds.studies import receiving

logger = logging.getLogger(__name__)
# Whole texts, and what opens or closes. Possessive: a text of megabytes must not be kept by its letters.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
MOST_PARTS = 5000  # of a prefetch, kept for the next one
SHARE = 0.5  # of the time left that reading from the FHIR server may take, so that a score can be waited for
ALL_BUT = 0.9  # the same where nothing usable was sent: there is no score to wait for without what is read


@dataclass(frozen=True, slots=True)
class Seen:
    """Keys of the newest assessment of the patient by the version that answers, and of the latest answer that
    anybody gave to a score of the service's outcome; None where there is none.

    has_merged  whether others were merged into the patient
    """

    assessment: UUID | None
    answer: UUID | None
    has_merged: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A call, its patient with the record as it is now, and the keys asked for that nobody gave us.

    is_paused  nothing of the call was read: somebody has paused the source
    seen       what was read along with a prefetch that was known
    """

    asked: HookRequest
    patient: Patient
    missing: tuple[str, ...] = ()
    is_paused: bool = False
    seen: Seen | None = None


def take(body: bytes, *, service: Service, caller: Caller, budget: Budget, now: datetime) -> Taken:
    """Read a call and bring the record up to what it brings.

    raises  BadRequest for what breaks the specification
            Unobtainable when nothing usable was sent or could be read (INTEROP 11)
            ehr.Permanent when what was sent cannot be read as one patient's record
    """
    if caller.source.paused_at is not None:
        return _as_held(body, service, caller)
    glance = outline(body)
    known = _read_before(glance, service, caller) if glance is not None else None
    if known is not None:
        return known
    sent = parse_json(body)
    asked = parse_request(sent, hook=service.hook)
    wanted = templates.templates(service.version)
    fetched, reasons, is_asked = _complete(asked, wanted, caller, budget)
    resources = {**asked.prefetch.resources, **fetched}
    if not resources:
        raise Unobtainable(_nothing(asked, reasons))
    parts = ehr.prefetch_parts(resources, salt=code_map.site_map().digest)
    missing = tuple(key for key in asked.prefetch.missing(tuple(wanted)) if key not in fetched)
    before, revision = _parts_read(asked.context.patient_id, caller)

    def bring(unread: frozenset[int], only_at: int | None = None) -> Patient:
        record = ehr.read_prefetch(resources, patient_id=asked.context.patient_id, unread=unread)
        with transaction.atomic():
            patient = _import(record, caller=caller, now=now, may_recur=not unread, only_at=only_at)
            if glance is not None and not is_asked:
                is_last = next(reversed(sent)) == "prefetch"
                _remember(glance, body, patient, service, missing, parts, is_last=is_last)
        return patient

    unread = parts.unread(before)
    try:
        patient = bring(unread, only_at=revision if unread else None)
    except importing.ChangedMeanwhile:  # what was left out may be other than it was read
        patient = bring(frozenset())
    return Taken(asked, patient, missing)


def _import(
    record: ehr.PatientRecord, *, caller: Caller, now: datetime, may_recur: bool, only_at: int | None
) -> Patient:
    """See `importing.import_record`."""
    imported = importing.import_record(
        record, source=caller.source, by=caller.actor, now=now, may_recur=may_recur, only_at=only_at
    )
    if imported.merged:
        receiving.follow_mergers(imported.merged, now=now, by=caller.actor)
    patient = imported.patient
    patient.source = caller.source
    return patient


def _as_held(body: bytes, service: Service, caller: Caller) -> Taken:
    """The call, with the patient as we hold them. Raises BadRequest; Unobtainable for one nobody has read."""
    asked = parse_request(parse_json(body), hook=service.hook)
    held = Patient.objects.select_related("merged_into").filter(
        source=caller.source, resource_id=asked.context.patient_id
    )
    found = held.first()
    if found is None:
        raise Unobtainable(
            "nothing is known here of this patient, and nothing is taken in: "
            f"{sources.paused_words(caller.source)}"
        )
    patient = merging.survivor(found)
    patient.source = caller.source
    return Taken(asked, patient, is_paused=True)


# -- what was read before ----------------------------------------------------------------------------
_OF_PATIENT = [field.attname for field in Patient._meta.concrete_fields]
_known = Statement(
    lambda source, patient, service, version, outcome: (
        PrefetchRead.objects.filter(
            patient__source=source,
            patient__resource_id=patient,
            service=service,
            version=version,
            revision=F("patient__revision"),
        )
        .annotate(
            assessment=Subquery(newest_first(OuterRef("patient"), OuterRef("version")).values("pk")[:1]),
            answer=Subquery(responding.latest_first(OuterRef("patient"), outcome).values("pk")[:1]),
            has_merged=Exists(Patient.objects.filter(merged_into=OuterRef("patient"))),
        )
        .values_list(
            "length",
            "digest",
            "missing",
            "assessment",
            "answer",
            "has_merged",
            *(f"patient__{name}" for name in _OF_PATIENT),
        )[:1]
    )
)


def _read_before(glance: Outline, service: Service, caller: Caller) -> Taken | None:
    """The call, when its prefetch is byte for byte the one read last and the patient is as they were then."""
    held = _known.row(
        source=caller.source.pk,
        patient=glance.patient_id,
        service=service.id,
        version=service.version.pk,
        outcome=service.outcome,
    )
    if held is None:
        return None
    length, digest, missing, assessment, answer, has_merged, *columns = held
    if _digest_of(glance, length) != digest:
        return None
    asked = glance.parse_rest(length, hook=service.hook)
    if asked is None or (missing and _server_of(asked, caller)):
        return None
    patient = Patient.from_db(connection.alias, _OF_PATIENT, columns)
    patient.source = caller.source
    return Taken(asked, patient, tuple(missing), seen=Seen(assessment, answer, has_merged))


_parts = Statement(
    lambda source, patient: PrefetchRead.objects.filter(
        patient__source=source, patient__resource_id=patient, revision=F("patient__revision")
    ).values_list("parts", "revision")
)


def _parts_read(patient_id: str, caller: Caller) -> tuple[bytes, int | None]:
    """`ehr.Parts.packed` of what any service read of this patient and nobody has changed since, and the
    revision of the record that says all of it; None where nothing was read."""
    rows = _parts.rows(source=caller.source.pk, patient=patient_id)
    return b"".join(bytes(parts) for parts, _ in rows), rows[0][1] if rows else None


def _digest_of(glance: Outline, length: int) -> str:
    """SHA-256 of a prefetch's bytes, of the table that maps its codes, and of the code that reads it."""
    digest = hashlib.sha256(glance.prefetch(length))
    digest.update(f"{code_map.site_map().digest} {ehr.reader_fingerprint()}".encode())
    return digest.hexdigest()


def know(body: bytes, *, patient: Patient, service: Service) -> None:
    """Take a body's prefetch for what the patient's record says already: that call reads nothing from it."""
    glance = outline(body)
    if glance is None:
        raise BadRequest("the body holds no prefetch of a patient", expression="prefetch")
    is_last = next(reversed(parse_json(body))) == "prefetch"
    _remember(glance, body, patient, service, (), is_last=is_last)


def _remember(
    glance: Outline,
    body: bytes,
    patient: Patient,
    service: Service,
    missing: tuple[str, ...],
    parts: ehr.Parts | None = None,
    *,
    is_last: bool,
) -> None:
    """Note the bytes of a prefetch that was read whole, so that they are known again."""
    length = _length_of(glance, body, service, is_last=is_last)
    if length:
        read = PrefetchRead(
            patient=patient,
            service=service.id,
            version=service.version.pk,
            digest=_digest_of(glance, length),
            length=length,
            missing=list(missing),
            parts=parts.packed if parts is not None and len(parts.held) <= MOST_PARTS else b"",
            revision=patient.revision,
        )
        PrefetchRead.objects.bulk_create(
            [read],
            update_conflicts=True,
            unique_fields=["patient", "service"],
            update_fields=["version", "digest", "length", "missing", "parts", "revision"],
        )


def _length_of(glance: Outline, body: bytes, service: Service, *, is_last: bool) -> int:
    """How many bytes the prefetch has. 0 when that cannot be told for certain.

    is_last  whether it is the last member of the body: then it is all up to the brace that closes the body
    """
    if is_last:
        length = len(body.rstrip()[:-1].rstrip()) - glance.start
    else:
        length = _length_by_braces(body, glance.start)
    try:
        return length if length and glance.parse_rest(length, hook=service.hook) is not None else 0
    except BadRequest:
        return 0


def _length_by_braces(body: bytes, start: int) -> int:
    """Up to the brace that closes it."""
    depth = 0
    for found in _STRUCTURE.finditer(body, start):
        mark = found[0]
        if mark[:1] != b'"':
            depth += 1 if mark in b"{[" else -1
            if depth == 0:
                return found.end() - start
    return 0


# -- what did not come -------------------------------------------------------------------------------
def _server_of(asked: HookRequest, caller: Caller) -> str:
    """The base address we may read from for this call; "" when none is given, or it is not registered."""
    if asked.access is None or not asked.access.token or caller.client is None:
        return ""
    server = asked.access.server.rstrip("/")
    return server if server in caller.client.fhir_servers else ""


def _complete(
    asked: HookRequest, wanted: Mapping[str, str], caller: Caller, budget: Budget
) -> tuple[dict[str, Any], tuple[str, ...], bool]:
    """What could be read, why the rest could not, and whether anybody was asked."""
    sent = asked.prefetch
    refused = set(sent.failed) | set(sent.empty)
    keys = [key for key in sent.missing(tuple(wanted)) if key not in refused]
    keys += [key for key in sent.partial if key not in keys]
    server = _server_of(asked, caller)
    if not keys or not server or asked.access is None:
        return {}, (), False
    within_s = budget.left() * (SHARE if sent.resources else ALL_BUT)
    if within_s <= 0:
        return {}, ("no time was left to ask the FHIR server",), True
    queries = {key: templates.resolved(wanted.get(key, ""), asked.context.patient_id) for key in keys}
    begun = {key: sent.resources[key] for key in sent.partial}
    with waiting.PLACES.one_of(waiting.of(caller)) as is_free:
        if not is_free:
            logger.warning("a prefetch is not completed: too many calls are waiting already")
            return (
                {},
                ("too many calls are waiting already, so the FHIR server was not asked: try again",),
                True,
            )
        try:
            found = ehr.complete_prefetch(
                queries, begun, base_url=server, token=asked.access.token, within_s=within_s
            )
        except ehr.EhrError as error:
            return {}, (str(error),), True
    if found.failed:
        said = "; ".join(sorted(set(found.failed.values())))
        logger.warning("a prefetch could not be completed, %d keys: %s", len(found.failed), said)
    return dict(found.resources), tuple(sorted(set(found.failed.values()))), True


def _nothing(asked: HookRequest, reasons: tuple[str, ...]) -> str:
    """Why there is nothing to go by, and what to do about it."""
    if reasons:
        return f"no usable prefetch data, and reading them failed: {'; '.join(reasons)[:300]}"
    why = (
        "no fhirServer with fhirAuthorization came with the call"
        if asked.access is None or not asked.access.token
        else "that fhirServer is not registered for this client (hook_client add --fhir-server)"
    )
    return f"no usable prefetch data were sent, and {why}: send the prefetch named at /cds-services"
