"""From the EHR's launch to a person, a patient and their record (SMART App Launch 2.2; INTEROP 24 to 28).

`begin` sends the browser to the EHR's sign-in; `complete` takes it back: the code is exchanged, the id_token
verified, the person mapped to an account, and the patient's record read once with the launch's own token,
which is neither stored nor logged. `admit` then lets the person see that patient in the session that was
begun for them, until it ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import BoundedSemaphore
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

import ehr
from cds import ingesting, signing
from cds.audit import recording
from cds.errors import ClinicError, NotAllowed, Unavailable
from cds.launch import discovering, styling
from cds.launch.discovering import cached
from cds.launch.models import SmartIdentity, SmartServer
from cds.patients import access, merging
from cds.patients.models import Patient
from cds.risk.models import RiskAssessment
from cds.subscriptions import gaps
from cds.subscriptions.models import Subscription
from cds.taking import Tally

Pending = ehr.Pending  # what a session remembers of a launch under way
# What every EHR serves (US Core 3 and later); that one of the others is not allowed is no news to anybody
SERVED_EVERYWHERE = (
    "Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "Procedure",
    "AllergyIntolerance", "DiagnosticReport", "DocumentReference",
)  # fmt: skip
_FORBIDDEN = re.compile(r"^GET \S+: 403\b")  # as `ehr.FhirClient` says it
_exchanges = BoundedSemaphore(discovering.MOST_AT_ONCE)
CLOSED = "this account has been closed: ask the people who run this site"
CLINICAL = frozenset({"Practitioner", "PractitionerRole"})


class NotThisLaunch(ClinicError):
    """The launch is refused: not registered, not ours, or over; what the message says is safe to show."""


@dataclass(frozen=True, slots=True)
class Launched:
    """Somebody has come with a patient.

    patient     as the EHR named them: one who was merged is shown as who survives them (`access.grant`)
    encounter   the EHR's id of the stay they came for, "" for none
    outcome     the one a card's link asked for, "" for none
    assessment  the score that stood on that card, one of this patient, "" for none
    is_new      whether this person is here for the first time
    problem     why the record could not be refreshed, "" when it was
    style       CSS custom properties the EHR asks for, checked
    """

    server: SmartServer
    user: User
    patient: Patient
    encounter: str
    show_banner: bool
    outcome: str
    assessment: str
    is_new: bool
    problem: str
    style: Mapping[str, str]


def begin(issuer: str, *, launch: str = "") -> tuple[str, SmartServer, ehr.Pending]:
    """Where to send the browser, and what its session must remember.

    raises  NotThisLaunch for an `iss` that is not registered: nothing is fetched from it
            Unavailable when the EHR's sign-in cannot be found out
    """
    server = _registered(issuer)
    app = _app(server)
    aud = issuer if launch else server.address  # to the letter, as the EHR names itself (INTEROP 25)
    try:
        there, pending = app.begin(_configuration(server, app), launch=launch, aud=aud)
    except ehr.EhrError as error:
        raise Unavailable(f"the EHR's sign-in could not be found: {error}") from error
    return there, server, pending


def complete(
    issuer: str,
    code: str,
    pending: ehr.Pending,
    *,
    came_to: str,
    answered_by: str = "",
    address: recording.Actor,
    now: datetime,
) -> Launched:
    """The browser is back with a code.

    came_to      the path it came to: the code of another EHR's sign-in comes to another (RFC 9700, 4.4)
    answered_by  the `iss` that came with it, "" for none
    address      who it comes from, for the audit trail
    raises       NotThisLaunch, NotAllowed (not a clinician, there or here), Unavailable
    """
    server = _registered(issuer)
    if came_to != server.redirect_path:
        raise NotThisLaunch(
            "the sign-in led back to another address than this EHR's: a code of another one is sent nowhere. "
            "If its redirect address was changed here just now, launch again"
        )
    app = _app(server)
    try:
        configuration = _configuration(server, app)
        with discovering.room(_exchanges):
            said = app.complete(
                configuration,
                code,
                pending,
                answered_by=answered_by,
                keys=lambda fresh: cached(
                    server.issuer,
                    "smart-keys",
                    lambda: app.read_keys(configuration),
                    origins=server.origins,
                    fresh=fresh,
                ),
            )
        kind, identity = ehr.fhir_user_of(said.fhir_user, server.issuer)
    except ehr.Permanent as error:
        raise NotThisLaunch(f"the EHR's sign-in was not accepted: {error}") from error
    except discovering.NoRoom as error:
        raise Unavailable(
            "many are coming from their EHR just now, and it answers slowly: launch again in a while"
        ) from error
    except ehr.EhrError as error:
        raise Unavailable(f"the EHR's sign-in could not be completed: {error}") from error
    user, is_new = _person(server, kind, identity, said.name, now=now)
    by = recording.Actor(
        f"user:{user.pk}", role="+".join(sorted(access.roles_of(user))), address=address.address
    )
    if not access.can_view_patients(user):
        raise NotAllowed("your account here is not a clinician's: ask the people who run this site")
    problem = _refresh(server, said, by=by, now=now)
    patient = _patient(server, said.patient, problem)
    SmartServer.objects.filter(pk=server.pk).update(last_launch_at=now)
    return Launched(
        server=server,
        user=user,
        patient=patient,
        encounter=said.encounter,
        show_banner=said.need_patient_banner,
        outcome=_outcome(said.app_context),
        assessment=_assessment(said.app_context, patient),
        is_new=is_new,
        problem=problem,
        style=_style(app, said.style_url),
    )


def admit(launched: Launched, *, session_key: str, by: recording.Actor, now: datetime) -> None:
    """Let the person see the patient of their launch, in this session and while it lasts."""
    access.grant(
        launched.user,
        launched.patient,
        session_key=session_key,
        until=now + timedelta(seconds=settings.SESSION_ABSOLUTE_AGE),
        by=by,
        now=now,
    )


def _registered(issuer: str) -> SmartServer:
    known = SmartServer.objects.select_related("source").filter(is_active=True)
    # PostgreSQL keeps, and looks for, no NUL
    server = known.filter(issuer=issuer.removesuffix("/")).first() if issuer.isprintable() else None
    if server is None:
        raise NotThisLaunch(
            "this EHR is not registered here: an operator adds its FHIR address (manage.py smart_server add)"
        )
    return server


def _app(server: SmartServer) -> ehr.SmartApp:
    key = signing.signing_key() if server.is_confidential else None
    if server.is_confidential and key is None:
        raise Unavailable(
            "there is no key to sign in with: run `manage.py fhir_key add`, and register its key set"
        )
    return ehr.SmartApp(
        server.issuer,
        server.client_id,
        redirect_uri=settings.PUBLIC_URL + server.redirect_path,
        key=key,
        origins=server.origins,
    )


@transaction.atomic
def _person(server: SmartServer, kind: str, identity: str, name: str, *, now: datetime) -> tuple[User, bool]:
    """The account of a person of the EHR; made on first sight, as a clinician without a unit."""
    fhir_user = f"{kind}/{identity}"
    known = SmartIdentity.objects.select_related("user").filter(server=server, fhir_user=fhir_user).first()
    if known is not None:
        if not known.user.is_active:
            raise NotAllowed(CLOSED)
        return known.user, False
    if kind not in CLINICAL:
        raise NotAllowed(f"a launch by a {kind} is not answered: only practitioners may see risks here")
    username = "smart-" + hashlib.sha256(f"{server.issuer} {fhir_user}".encode()).hexdigest()[:24]
    user, _ = User.objects.get_or_create(username=username, defaults={"first_name": name})
    if not user.is_active:
        raise NotAllowed(CLOSED)
    user.set_unusable_password()
    user.save(update_fields=["password"])
    access.give_role(user, access.Role.CLINICIAN)
    SmartIdentity.objects.get_or_create(
        server=server, fhir_user=fhir_user, defaults={"user": user, "first_at": now}
    )
    return user, True


def _refresh(server: SmartServer, said: ehr.LaunchContext, *, by: recording.Actor, now: datetime) -> str:
    """Read the patient's record with the launch's own token; why it could not be, or ""."""
    try:
        tally = ingesting.ingest_patients(
            server.issuer,
            [said.patient],
            is_awaited=True,
            source=server.source,
            by=by,
            now=now,
            token=said.access_token,
            how={"launch": server.issuer},
        )
    except ClinicError as error:
        return str(error)
    ingesting.request_scores(tally, by=by, now=now)
    broken_off = tally.interrupted
    if broken_off and _fetched_later(server, said.patient, now=now):
        broken_off += "; the rest is being fetched"
    return "; ".join(filter(None, (_withheld(said, tally), broken_off)))


def _withheld(said: ehr.LaunchContext, tally: Tally) -> str:
    """What of a record the EHR did not let us read, by the token's scopes or by a 403; "" for nothing.

    A search that is not allowed may be answered as if there were nothing.
    """
    refused = {one.kind for one in tally.refused if _FORBIDDEN.search(one.reason)}
    kinds = [kind for kind in SERVED_EVERYWHERE if kind in said.withheld or kind in refused]
    return f"it does not let this app read {', '.join(kinds)}" if kinds else ""


@transaction.atomic
def _fetched_later(server: SmartServer, patient: str, *, now: datetime) -> bool:
    """Have a worker read the whole patient, by the sign-in of a Subscription to the same server.

    The launch's own token is for this moment only (INTEROP 9). Returns whether there is such a Subscription.
    """
    addresses = (server.issuer, f"{server.issuer}/")
    held = Subscription.objects.filter(source=server.source, base_url__in=addresses).first()
    if held is None:
        return False
    gaps.send(held, foci=[["Patient", patient, patient, False]], now=now)
    return True


def _patient(server: SmartServer, resource_id: str, problem: str) -> Patient:
    """The patient of that id, as the EHR named them: whose record is that of who survives them."""
    theirs = Patient.objects.filter(source=server.source, resource_id=resource_id)
    found = theirs.select_related("merged_into").first()
    if found is None or not merging.survivor(found).digest:  # named only: no Patient of theirs was ever read
        raise Unavailable(
            f"the patient's record could not be read from the EHR "
            f"({problem or 'it holds no such Patient'}): "
            "launch again in a while"
        )
    return found


def _outcome(app_context: str) -> str:
    outcome = _asked(app_context).get("outcome")
    return outcome if isinstance(outcome, str) and outcome.replace("-", "").isalnum() else ""


def _assessment(app_context: str, patient: Patient) -> str:
    """The score that the card showed, when it is one of the patient whom the EHR has opened."""
    try:
        key = UUID(str(_asked(app_context).get("assessment")))
    except ValueError:
        return ""
    theirs = RiskAssessment.objects.filter(pk=key, patient=merging.survivor(patient))
    return str(key) if theirs.exists() else ""


def _asked(app_context: str) -> dict[str, Any]:
    """What a card's link asked for: `{"assessment": …, "outcome": …}` (`cds.hooks.linking`); {}: nothing."""
    try:
        said = orjson.loads(app_context)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _style(app: ehr.SmartApp, url: str) -> Mapping[str, str]:
    """The EHR's colours, where it offers any that can be read; a style is never worth failing for."""
    if not url:
        return {}
    try:
        return styling.properties(app.read_style(url))
    except ehr.EhrError:
        return {}


def _configuration(server: SmartServer, app: ehr.SmartApp) -> ehr.SmartConfiguration:
    return cached(server.issuer, "smart-configuration", app.discover, origins=server.origins)
