"""Does a source answer, and does it let us in? Asked by a worker, never by the request that shows the answer.

Each address that the source is known by is asked for as little as shows that we may read: one patient by
FHIR, with the sign-in that its last run used; one study by QIDO-RS and one frame of it by WADO-RS; C-ECHO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Max

import ehr
from cds import reaching
from cds.errors import ClinicError
from cds.patients import sources
from cds.patients.models import RunKind, Source

TIMEOUT_S = 10.0
MOST_INSTANCES, ROWS = 10, "00280010"  # how many are listed, and the attribute that only pictures have
MOST_BYTES = 64 * 2**20  # of the frame
MOST_ADDRESSES = 6


@dataclass(frozen=True, slots=True)
class Address:
    """Where a source is, as what it was last spoken to, and how it was reached."""

    where: str
    kind: str
    how: Mapping[str, str] = field(default_factory=dict)


def check(source_id: str, *, now: datetime) -> None:
    """Call the source at each of its addresses once and keep what it said, in words. Safe to run twice."""
    source = Source.objects.filter(pk=source_id).first()
    if source is None:
        return
    answered, lines = True, []
    for address in addresses_of(source):
        try:
            said = _ask(source, address)
        except (ehr.EhrError, ClinicError) as error:
            answered, said = False, str(error)
        lines.append(f"{address.where}: {said}")
    if not lines:
        answered = False
        lines = [
            "there is nothing to call: this source has no address. Its data come from a folder, by C-STORE "
            "or by hook calls"
        ]
    sources.answer_check(source.pk, answered=answered, said="\n".join(lines), now=now)


def addresses_of(source: Source) -> list[Address]:
    """Where its runs took from, the last called first; where its Subscriptions are; the registered address.

    Each once, as it was last reached.
    """
    found: dict[str, Address] = {}
    runs = source.runs.filter(where__contains="://")
    called = runs.values("where").annotate(last=Max("started_at")).order_by("-last")
    for where in called.values_list("where", flat=True)[:MOST_ADDRESSES]:
        run = runs.filter(where=where).order_by("-started_at", "-pk")[0]
        found.setdefault(where.rstrip("/"), Address(where, run.kind, run.how))
    told = source.subscriptions.order_by("-created_at")  # of a storey above: its rows, not its code
    for where, how in told.values_list("base_url", "sign_in"):
        found.setdefault(where.rstrip("/"), Address(where, RunKind.SERVER, how))
    if source.base_url:
        found.setdefault(source.base_url.rstrip("/"), Address(source.base_url, RunKind.SERVER))
    return list(found.values())[:MOST_ADDRESSES]


def _ask(source: Source, address: Address) -> str:
    if address.where.startswith("dimse"):
        reaching.dimse_client(address.where, address.how).echo()
        return "it answered C-ECHO"
    allow_http = source.base_url.rstrip("/") == address.where.rstrip("/")
    if address.kind == RunKind.DICOM:
        return _ask_archive(address, allow_http=allow_http)
    return _ask_fhir(address, allow_http=allow_http)


def _ask_archive(address: Address, *, allow_http: bool) -> str:
    name = address.how.get("token_env", "")
    login = reaching.web_login(reaching.secret(name))
    try:
        with ehr.DicomWebClient(
            address.where,
            timeout_s=TIMEOUT_S,
            allow_http=allow_http,
            max_instance_bytes=MOST_BYTES,
            **login,
        ) as archive:
            found = archive.ask()
            return f"it answered QIDO-RS, with {_ask_pixels(archive, found) if found else 'no study yet'}"
    except ehr.Refused as error:
        if error.status in (401, 403) and not name:
            raise ehr.Refused(f"{error}; none was given: name its variable with --dicom-token-env") from error
        raise


def _ask_pixels(archive: ehr.DicomWebClient, study_uid: str) -> str:
    """Whether pictures can be fetched, shown by one frame of one picture: a list alone may be open to more.

    raises  Refused when it lets us list and not fetch. One that gives no single frame may still give files.
    """
    try:
        listed = archive.ask_instances(study_uid, MOST_INSTANCES)
        listed.sort(key=lambda one: ROWS not in one)  # pictures first, where the list tells
        named = ehr.read_contents(listed)
        told = archive.metadata(study_uid, named[0].series_uid, named[0].sop_uid) if named else []
        one = next((one for one in ehr.read_contents(told) if one.is_picture), None)
        if one is None:
            return "studies; the one it named first shows no picture to try WADO-RS with"
        (frame,) = archive.frames(study_uid, one.series_uid, one.sop_uid, [1], syntax="*")
        return f"studies, and WADO-RS, with metadata and a frame of {len(frame):,} bytes"
    except ehr.Refused as error:
        if error.status in (401, 403):
            raise ehr.Refused(
                f"it lets us list studies and not fetch them ({error}): allow our account WADO-RS as well",
                status=error.status,
            ) from error
        return f"studies; it gives no single frame ({error}), and files of studies are asked for instead"
    except ehr.TooLarge as error:
        return f"studies; its frames were not tried ({error})"


def _ask_fhir(address: Address, *, allow_http: bool) -> str:
    how = address.how
    token = reaching.token(address.where, how, allow_http=allow_http)
    with ehr.FhirClient(
        address.where, token=token, timeout_s=TIMEOUT_S, allow_http=allow_http, attempts=1
    ) as server:
        statement = server.capabilities()
        name = f"FHIR {statement.version}, {statement.software}"
        if not statement.version.startswith("4.0"):
            return f"it answered as {name}; Tessera reads FHIR R4 (4.0.1): give its R4 address"
        try:
            server.ask("Patient")
        except ehr.Refused as error:
            said = reaching.why_not(error, how, what="Patient")
            if not reaching.is_about_us(error):
                said = f"a search of Patient was refused: {said}"
            raise ehr.Refused(f"{name} answered, but {said}", status=error.status) from error
    signed = f", signed in as {how['client_id']}" if how.get("client_id") else ""
    return f"it answered as {name}{signed}, and lets us read Patient"
