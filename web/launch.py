"""SMART App Launch: an EHR opens us with a patient (INTEROP 24 to 29).

`/launch?iss=…&launch=…` sends the browser to the EHR's sign-in, `/launch/callback` takes it back, signs the
person in and lands on the panel of that patient. What is on its way is kept in the browser it began in, so a
callback anywhere else is refused (`web.under_way`); a session belongs to one launch.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass

from django.contrib import messages
from django.contrib.auth import login, logout
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_safe

import cds.launch.launching as launching
from cds.audit import recording, refusing
from cds.errors import ClinicError
from cds.launch import ending, registering, styling
from cds.patients import merging
from web import under_way

SESSION, WAITING = ending.LAUNCH, "launches"
OF = "of"  # in an address that names no patient: the launch (`key`) whose page the link stands on
ADVICE = (
    "If launching again does not help, show this page to the people who run your EHR: the time and the "
    "reason are in the audit trail here."
)
LANDED = (
    "You came from your EHR and are signed in as a clinician, for this patient only. An estimate here is for "
    "research use and from past patients: it helps to decide whom to look at first, and decides nothing."
)


@dataclass(frozen=True, slots=True)
class SessionLaunch:
    """The launch a session belongs to. `key` tells it from earlier ones in the same browser.

    patient     whom it was launched for; what is open to it is the record of who survives them (`is_of`)
    encounter   the stay it was launched for, by the EHR's id; "" for none
    assessment  the score on the card whose link led here; "" for none
    server      the EHR that launched it: its sessions end when it is withdrawn
    """

    key: str
    patient: str
    encounter: str
    show_banner: bool
    style: dict[str, str]
    assessment: str = ""
    server: str = ""

    def is_of(self, patient_id: object) -> bool:
        """Whether that id stands for the launch's patient: the same, or merged with them since or before."""
        asked = str(patient_id)
        return asked == self.patient or merging.survivor_key(asked) == merging.survivor_key(self.patient)


def of_session(request: HttpRequest) -> SessionLaunch | None:
    """The launch this session began with; None for somebody who signed in here."""
    session = getattr(request, "session", None)
    kept = session.get(SESSION) if session is not None else None
    if not isinstance(kept, dict):
        return None
    names = SessionLaunch.__dataclass_fields__  # another version, during an update, may know more of it
    return SessionLaunch(**{name: value for name, value in kept.items() if name in names})


@require_safe
def launch(request: HttpRequest) -> HttpResponse:
    """The EHR's launch; with `iss` alone, or a choice from the list, a standalone one.

    It ends what an earlier launch began: should this one be refused, nothing leads back to the other patient.
    """
    issuer = request.GET.get("iss", "")
    if not issuer:
        return render(request, "web/launch.html", {"servers": registering.list_servers()})
    try:
        there, server, pending = launching.begin(issuer, launch=request.GET.get("launch", ""))
    except ClinicError as error:
        if not isinstance(error, launching.NotThisLaunch):
            leave(request)
        return _refused(request, error, issuer=issuer)
    leave(request)
    answer = redirect(there)
    under_way.keep(request, answer, WAITING, pending, issuer=server.issuer)
    return answer


@require_safe
def callback(request: HttpRequest, ehr: str = "") -> HttpResponse:
    """Back from the EHR's sign-in. A state this browser did not take along is refused with 400."""
    return under_way.drop(request, _complete(request), WAITING)


def _complete(request: HttpRequest) -> HttpResponse:
    issuer, again = "", "launch again from your EHR"
    try:
        pending, kept = under_way.take(request, WAITING, what="launch", again=again)
        issuer = kept["issuer"]
        code = under_way.code_in(request, whose="the EHR's", again="launch again")
        launched = launching.complete(
            issuer,
            code,
            pending,
            came_to=request.path_info,
            answered_by=request.GET.get("iss", ""),
            address=recording.person(request.user, request),
            now=timezone.now(),
        )
    except ClinicError as error:
        return _refused(request, error, issuer=issuer)
    return _land(request, launched)


@require_safe
def ended(request: HttpRequest) -> HttpResponse:
    """Where signing out of a launch leads: no form, since nobody signs in here in the EHR's frame."""
    return render(request, "web/launch_ended.html", {"alone": True})


def leave(request: HttpRequest) -> bool:
    """End the session if a launch began it; whether one did."""
    if of_session(request) is None:
        return False
    if request.user.is_authenticated:
        with transaction.atomic():
            recording.record(
                by=recording.person(request.user, request),
                action="session.end",
                object_type="Session",
                object_id=request.user.pk,
                now=timezone.now(),
            )
    logout(request)
    return True


@require_safe
def style(request: HttpRequest) -> HttpResponse:
    """The colours the EHR asked for, as a stylesheet of our own (our pages take no other)."""
    held = of_session(request)
    return HttpResponse(styling.stylesheet(held.style) if held else "", content_type="text/css")


def _land(request: HttpRequest, launched: launching.Launched) -> HttpResponse:
    """A fresh session, for this launch alone; then the panel."""
    request.session.flush()
    login(request, launched.user, backend=under_way.BACKEND)
    request.session[SESSION] = asdict(
        SessionLaunch(
            key=secrets.token_urlsafe(12),
            patient=str(launched.patient.pk),
            encounter=launched.encounter,
            show_banner=launched.show_banner,
            style=dict(launched.style),
            assessment=launched.assessment,
            server=str(launched.server.pk),
        )
    )
    by, now = recording.person(launched.user, request), timezone.now()
    with transaction.atomic():
        launching.admit(launched, session_key=str(request.session.session_key), by=by, now=now)
        recording.record(
            by=by,
            action="session.begin",
            object_type="Session",
            object_id=launched.user.pk,
            patient_id=launched.patient.pk,
            now=now,
            launch=str(launched.server.pk),
        )
    if launched.is_new:
        messages.info(request, LANDED)
    if launched.problem:
        messages.warning(
            request,
            f"The record could not be read whole from your EHR: {launched.problem}. It may lack the newest.",
        )
    there = reverse("panel", kwargs={"patient_id": launched.patient.pk})
    return redirect(f"{there}?{urlencode({'outcome': launched.outcome})}" if launched.outcome else there)


def _refused(request: HttpRequest, error: ClinicError, *, issuer: str = "") -> HttpResponse:
    """What went wrong, in words; noted in the audit trail. No form, and nothing is fetched."""
    status = under_way.status_of(error)
    refusing.note(
        by=recording.person(request.user, request),
        action="session.launch",
        object_type="Launch",
        object_id=under_way.printable(issuer)[:64] or "unknown",
        now=timezone.now(),
        outcome="failed" if status == 503 else "refused",
        reason=under_way.printable(error)[:300],
    )
    context = {
        "refusal_title": "The launch was not completed",
        "reason": str(error),
        "alone": True,
        "advice": ADVICE,
    }
    return render(request, "refused.html", context, status=status)
