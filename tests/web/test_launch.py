"""An EHR launches us with a patient, through our own views and a server that answers as an EHR does."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import UUID

import orjson
import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import URLPattern
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Invalid
from cds.launch import discovering, ending, registering, styling, tasks
from cds.launch.models import SmartIdentity, SmartServer
from cds.patients import access
from cds.patients.models import Encounter, Patient, PatientGrant
from cds.registry.models import ActiveModel
from cds.risk.models import RiskAssessment
from tests.launching_ehr import LaunchingEhr
from tests.web import clinic, launches
from web import middleware, urls

BY = recording.system("test")


def test_a_launch_lands_on_the_panel_of_its_patient(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    answer = launches.launch(client, server)
    patient = Patient.objects.get(resource_id="p1")
    assert answer["Location"] == f"/patients/{patient.pk}/risk"
    page = client.get(answer["Location"])
    assert page.status_code == 200
    said = page.content.decode()
    assert "Sommer" in said
    assert 'class=" embedded"' in said
    assert "You came from your EHR" in said  # once
    assert "You came from your EHR" not in client.get(answer["Location"]).content.decode()
    assert 'aria-current="page">Worklist' not in said
    assert client.get("/")["Location"] == f"/patients/{patient.pk}/risk"


def test_the_person_is_a_clinician_for_this_patient_only(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    launches.launch(client, server)
    user = SmartIdentity.objects.get(fhir_user="Practitioner/7").user
    assert user.first_name == "Dr Autumn"
    assert not user.has_usable_password()
    assert access.roles_of(user) == {access.Role.CLINICIAN}
    clinic.patient(1, family="Haas", given="Ada", now=timezone.now())
    assert not access.visible_patients(user).exists()  # in no session
    access.look_from(user, Client().session.session_key)
    assert not access.visible_patients(user).exists()
    access.look_from(user, client.session.session_key)
    assert set(access.visible_patients(user)) == {Patient.objects.get(family="Sommer")}
    PatientGrant.objects.update(until=timezone.now() - timedelta(seconds=1))
    assert not access.visible_patients(user).exists()


ELSEWHERE = (
    "/worklist", "/models", "/models/U", "/models/runs/new", "/models/U/card/purpose.use", "/monitoring",
    "/sources", "/ehrs", "/destinations", "/hooks/sandbox", "/audit", "/openapi.json", "/login/hospital",
)  # fmt: skip


def test_a_launched_session_opens_its_patient_and_nothing_else(
    registered: SmartServer, server: LaunchingEhr, ward: clinic.Clinic
) -> None:
    """Whatever the person may see elsewhere: this one has every role, and a unit full of patients."""
    person = clinic.person("all", *access.Role, unit="Ward 4")
    registering.link(registered, "Practitioner/7", person, by=BY, now=timezone.now())
    client = Client()
    there = launches.launch(client, server)["Location"]
    for address in ELSEWHERE:
        answer = client.get(address.replace("U", str(ward.version.pk)))
        assert (address, answer.status_code) == (address, 403)
        assert "Haas" not in answer.content.decode()
    assert "for that patient only" in client.get("/worklist").content.decode()
    assert client.post("/worklist", {"search": "Haas"}).status_code == 403
    assert client.post(f"/models/{ward.version.pk}/request").status_code == 403
    assert AuditEvent.objects.filter(action="page.open", outcome="refused", object_id="worklist").count() == 2
    card = client.get(f"/models/{ward.version.pk}/card")
    assert card.status_code == 200
    assert "/card/" not in card.content.decode()  # no link to where it is written
    for address in (there, f"{there}/score", f"/models/{ward.version.pk}/card.json", "/help", "/launch"):
        assert client.get(address).status_code == 200
    assert client.get("/")["Location"] == there
    assert client.post("/stay").status_code == 204
    assert client.get("/livez").status_code == 200
    assert client.get(f"/patients/{ward.patients[1].pk}/risk").status_code == 409
    assert client.post("/logout").status_code == 302


def test_every_other_route_is_closed_to_a_launch() -> None:
    """A new route is closed until somebody opens it; the list names no route that is gone."""
    routes = [route for route in urls.urlpatterns if isinstance(route, URLPattern)]
    free = {route.name for route in routes if "patient_id" not in str(route.pattern)}
    assert free > middleware.IN_A_LAUNCH


def test_another_launch_ends_the_first(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    first = launches.launch(client, server)["Location"]
    second = launches.launch(client, server, "launch-p2")["Location"]
    assert first != second
    assert client.get(second).status_code == 200
    for address in (first, f"{first}/score", first.replace("/risk", "/rescore")):
        refused = client.post(address) if address.endswith("rescore") else client.get(address)
        assert refused.status_code == 409
        assert "This panel is for another launch" in refused.content.decode()
        assert "Sommer" not in refused.content.decode()


def test_signing_out_ends_what_was_granted_in_this_window_only(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client, window = Client(), Client()
    there = launches.launch(client, server)["Location"]
    beside = launches.launch(window, server, "launch-p2")["Location"]
    assert client.post("/logout").status_code == 302
    assert client.get(there).status_code == 302
    assert PatientGrant.objects.count() == 1
    assert window.get(beside).status_code == 200


def test_a_new_launch_ends_what_was_granted_to_the_one_before(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    launches.launch(client, server)
    launches.launch(client, server, "launch-p2")
    assert PatientGrant.objects.get().patient.family == "Winter"


def test_a_session_that_ran_out_leaves_nothing_granted(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    launches.launch(client, server)
    user = SmartIdentity.objects.get(fhir_user="Practitioner/7").user
    access.look_from(user, client.session.session_key)
    assert access.visible_patients(user).count() == 1
    Session.objects.update(
        expire_date=timezone.now() - timedelta(seconds=1)
    )  # fifteen minutes without a click
    assert not access.visible_patients(user).exists()


def test_a_session_of_ones_own_shows_nothing_of_a_launch(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    person = clinic.person("clinician", access.Role.CLINICIAN, unit="Ward 4")
    registering.link(registered, "Practitioner/7", person, by=BY, now=timezone.now())
    there = launches.launch(Client(), server)["Location"]
    desk = Client()
    desk.force_login(person, backend="django.contrib.auth.backends.ModelBackend")
    assert "Sommer" not in desk.get("/worklist").content.decode()
    assert desk.get(there).status_code == 404


@pytest.mark.parametrize(
    "issuer", ["https://evil.example/fhir", "http://169.254.169.254/", "file:///etc/passwd"]
)
def test_an_iss_that_is_not_registered_is_never_fetched(
    registered: SmartServer, server: LaunchingEhr, issuer: str
) -> None:
    before = list(server.asked)
    answer = Client().get("/launch", {"iss": issuer, "launch": "x"})
    assert answer.status_code == 400
    assert "not registered" in answer.content.decode()
    assert server.asked == before
    assert AuditEvent.objects.filter(action="session.launch", outcome="refused").count() == 1


def test_a_withdrawn_ehr_is_refused_without_a_question(registered: SmartServer, server: LaunchingEhr) -> None:
    registering.withdraw(server.fhir, by=BY, now=timezone.now())
    assert Client().get("/launch", {"iss": server.fhir, "launch": "x"}).status_code == 400
    assert server.asked == []


def test_a_state_is_bound_to_its_browser_and_good_once(registered: SmartServer, server: LaunchingEhr) -> None:
    client, thief = Client(), Client()
    back = launches.begin(client, server)
    for other in (
        back,
        back.replace("state=", "state=x"),
        "/launch/callback?code=1",
        "/launch/callback?state=1&code=1",
    ):
        assert thief.get(other).status_code == 400
    assert client.get(back).status_code == 302
    assert client.get(back).status_code == 400
    assert AuditEvent.objects.filter(action="session.launch", outcome="refused").count() == 5


def test_the_session_of_before_is_not_carried_on(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    session = client.session
    session["something"] = "of before"
    session.save()
    launches.launch(client, server)
    assert client.session.session_key != session.session_key
    assert "something" not in client.session
    assert not client.cookies["launches"].value


def test_what_is_under_way_leaves_nothing_here_and_a_cookie_for_ten_minutes(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    """Anybody may begin one, as often as they like."""
    now = timezone.now()
    client = Client()
    client.get("/launch", {"iss": server.fhir, "launch": "launch-p1"})
    assert not Session.objects.exists()
    cookie = client.cookies["launches"]
    assert (cookie["max-age"], cookie["httponly"], cookie["path"]) == (600, True, "/")
    back = launches.begin(client, server)
    assert client.get(back).status_code == 302  # a session like any other follows
    assert Session.objects.get().expire_date > now + timedelta(seconds=880)


def test_who_signs_in_after_a_launch_was_begun_stays_as_long_as_others(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    clinic.person("clinician", access.Role.CLINICIAN, unit="Ward 4")
    client = Client()
    client.get("/launch", {"iss": server.fhir, "launch": "launch-p1"})
    assert client.post("/login", {"username": "clinician", "password": clinic.PASSWORD}).status_code == 302
    assert Session.objects.get().expire_date > timezone.now() + timedelta(seconds=880)


def test_sessions_that_ran_out_are_deleted_with_what_was_granted(
    registered: SmartServer, server: LaunchingEhr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "AT_ONCE", 2)
    client = Client()
    launches.launch(client, server)
    for _ in range(5):
        SessionStore().save()
    Session.objects.update(expire_date=timezone.now() - timedelta(seconds=1))
    kept = Client()
    there = launches.launch(kept, server)["Location"]
    tasks.end_sessions()
    assert (Session.objects.count(), PatientGrant.objects.count()) == (1, 1)
    assert kept.get(there).status_code == 200
    assert client.get(there).status_code == 302


def test_an_id_token_of_another_audience_is_refused_and_nobody_signed_in(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    server.claims = {"aud": "another"}
    client = Client()
    answer = launches.launch(client, server)
    assert answer.status_code == 400
    assert "aud" in answer.content.decode()
    assert not SmartIdentity.objects.exists()
    assert "_auth_user_id" not in client.session


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"fhirUser": "Patient/p1"}, 403),
        ({"fhirUser": ""}, 400),
        ({"fhirUser": "https://x.example/Practitioner/1"}, 400),
    ],
)
def test_only_practitioners_of_that_ehr_come_in(
    registered: SmartServer, server: LaunchingEhr, claims: dict[str, Any], status: int
) -> None:
    server.claims = claims
    assert launches.launch(Client(), server).status_code == status
    assert not PatientGrant.objects.exists()


def test_a_person_may_be_a_local_account(registered: SmartServer, server: LaunchingEhr) -> None:
    user = clinic.person("clinician", access.Role.CLINICIAN, unit="Ward 4")
    registering.link(registered, "Practitioner/7", user, by=BY, now=timezone.now())
    client = Client()
    launches.launch(client, server)
    assert client.session["_auth_user_id"] == str(user.pk)
    user.is_active = False
    user.save()
    assert launches.launch(Client(), server).status_code == 403


def test_no_token_is_kept_anywhere(registered: SmartServer, server: LaunchingEhr, caplog: Any) -> None:
    client = Client()
    launches.launch(client, server)
    (token,) = server.tokens
    assert token not in str(dict(client.session))
    assert token not in caplog.text
    assert not AuditEvent.objects.filter(detail__icontains=token).exists()


def test_an_ehr_that_does_not_answer_says_so(registered: SmartServer, server: LaunchingEhr) -> None:
    server.discovery = {"token_endpoint": f"{server.url}/nothing"}
    answer = launches.launch(Client(), server)
    assert answer.status_code == 400
    server.discovery, server.patients = {}, {"p9": {}}
    discovering.forget()
    gone = launches.launch(Client(), server)
    assert gone.status_code == 503
    assert "could not be read from the EHR" in gone.content.decode()


def test_nobody_waits_for_a_second_attempt(registered: SmartServer, server: LaunchingEhr) -> None:
    server.is_busy = True
    assert launches.launch(Client(), server).status_code == 503
    assert server.asked.count("/fhir/Patient/p1") == 1


def test_the_address_is_looked_at_again_before_the_record_is_read(
    registered: SmartServer, server: LaunchingEhr, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registered name that leads to a cloud's metadata once the token was given: it is not taken there."""
    launches.launch(Client(), server)
    look_up = socket.getaddrinfo

    def rebound(*args: Any, **more: Any) -> list[Any]:
        return [(0, 0, 0, "", ("169.254.169.254", 80))] if len(server.tokens) > 1 else look_up(*args, **more)

    client = Client()
    back = launches.begin(client, server)
    asked = len(server.asked)
    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    there = client.get(back)["Location"]
    monkeypatch.undo()
    assert server.asked[asked:] == ["/auth/token"]
    assert "leads to this machine or to a reserved network" in client.get(there).content.decode()


def test_an_origin_that_was_taken_away_is_used_no_more(db: None, server: LaunchingEhr) -> None:
    """At once, though what the EHR said while it was registered is kept for an hour."""
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.discovery = {"token_endpoint": f"{elsewhere}/auth/token", "jwks_uri": f"{elsewhere}/auth/keys"}
    launches.register(server, origins=[elsewhere])
    client = Client()
    assert launches.launch(client, server).status_code == 302
    under_way = launches.begin(client, server)
    launches.register(server, origins=[])
    asked = len(server.asked)
    answer = client.get(under_way)
    assert answer.status_code == 400
    assert "not registered for this server" in answer.content.decode()
    assert "/auth/token" not in server.asked[asked:]
    assert client.get("/launch", {"iss": server.fhir}).status_code == 503
    launches.register(server, origins=[elsewhere])
    assert launches.launch(Client(), server).status_code == 302


def test_keys_of_launches_are_not_those_of_the_hospitals_accounts(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    """Even where both come from one issuer."""
    discovering.cached(server.fhir, "provider-keys", lambda: {"keys": []})
    assert launches.launch(Client(), server).status_code == 302
    assert {what for _, what, _ in discovering._held} == {
        "provider-keys",
        "smart-configuration",
        "smart-keys",
    }


def test_a_record_that_cannot_be_read_anew_is_shown_with_a_warning(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    launches.launch(Client(), server)
    del server.patients["p1"]
    server.patients["p2"]["id"] = "p2"
    server.launches["launch-p1"] = "p1"
    client = Client()
    answer = launches.launch(client, server)
    assert answer.status_code == 302
    assert "Sommer" in client.get(answer["Location"]).content.decode()


def test_the_ehr_decides_about_the_banner_the_outcome_and_its_colours(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    server.answers = {
        "need_patient_banner": False,
        "appContext": '{"outcome": "icu-admission", "assessment": "x"}',
        "smart_style_url": f"{server.url}/style.json",
    }
    client = Client()
    there = launches.launch(client, server)["Location"]
    assert there.endswith("/risk?outcome=icu-admission")
    page = client.get(there).content.decode()
    assert 'class="patient"' not in page
    assert "/launch/style.css" in page
    # The highlight the specification's own example has is too pale to be read as text: left out.
    assert client.get("/launch/style.css").content.decode() == ":root { --bg: #edeae3; }\n"


@pytest.fixture
def scored(registered: SmartServer, server: LaunchingEhr) -> tuple[RiskAssessment, RiskAssessment]:
    """An earlier score of p1 and the one that stands; p2 has one as well."""
    launches.launch(Client(), server)
    launches.launch(Client(), server, "launch-p2")
    now = timezone.now()
    model = clinic.version(1, now=now)
    ActiveModel.objects.create(outcome=clinic.OUTCOME, version=model, since=now)
    first, other = Patient.objects.get(resource_id="p1"), Patient.objects.get(resource_id="p2")
    clinic.assessment(other, model, now=now, risk=0.77)
    earlier = clinic.assessment(first, model, now=now, risk=0.41, as_of=now - timedelta(hours=5))
    return earlier, clinic.assessment(first, model, now=now, risk=0.62)


def _from_card(server: LaunchingEhr, assessment: object) -> tuple[str, str]:
    """Where a card's link leads, and what stands there."""
    context = {"assessment": str(assessment), "outcome": clinic.OUTCOME}
    server.answers = {"appContext": orjson.dumps(context).decode()}
    client = Client()
    there = launches.launch(client, server)["Location"]
    parts = [client.get(there.replace("/risk", f"/risk{part}")).content.decode() for part in ("", "/score")]
    assert ("not-the-cards" in parts[0]) == ("not-the-cards" in parts[1])  # a live update says it as well
    return there, parts[0]


def test_a_card_link_shows_the_score_of_the_card(
    scored: tuple[RiskAssessment, RiskAssessment], server: LaunchingEhr
) -> None:
    there, page = _from_card(server, scored[1].pk)
    assert there.endswith(f"/risk?outcome={clinic.OUTCOME}")
    assert 'data-testid="risk-score">62 %' in page
    assert "not-the-cards" not in page


def test_a_newer_score_than_the_cards_says_so(
    scored: tuple[RiskAssessment, RiskAssessment], server: LaunchingEhr
) -> None:
    _, page = _from_card(server, scored[0].pk)
    assert 'data-testid="risk-score">62 %' in page
    assert "This is a newer score than the card's" in page
    assert '<data value="0.41">41 %</data> (34 % to 50 %, high)' in page
    assert '<a href="#trend-title">See it in the trend</a>' in page
    assert 'id="trend-title"' in page


def test_a_score_that_is_not_of_the_launched_patient_is_not_told(
    scored: tuple[RiskAssessment, RiskAssessment], server: LaunchingEhr
) -> None:
    elsewhere = RiskAssessment.objects.get(patient__resource_id="p2")
    for asked in (elsewhere.pk, UUID(int=7), "x", None):
        _, page = _from_card(server, asked)
        assert "not-the-cards" not in page
        assert "77 %" not in page


def test_an_older_score_than_the_cards_is_not_called_newer(
    scored: tuple[RiskAssessment, RiskAssessment], server: LaunchingEhr
) -> None:
    """Another model was put back since."""
    now = timezone.now()
    back = clinic.version(2, now=now)
    ActiveModel.objects.update(version=back)
    patient = scored[0].patient
    clinic.assessment(patient, back, now=now, risk=0.3, as_of=now - timedelta(hours=9))
    assert "This is not the score of the card" in _from_card(server, scored[1].pk)[1]


@pytest.mark.parametrize(
    ("stay", "said"),
    [
        ({"kind": "intensive-care", "location": "ICU 2"}, "for the stay in ICU 2 (intensive care), from "),
        ({"kind": "other", "location": "", "start": None}, "for the stay."),
    ],
)
def test_the_panel_says_for_which_stay_it_was_opened(
    registered: SmartServer, server: LaunchingEhr, stay: dict[str, Any], said: str
) -> None:
    client = Client()
    there = launches.launch(client, server)["Location"]
    assert "launched-stay" not in client.get(there).content.decode()  # the EHR's e1 is not known here
    known = {"resource_type": "Encounter", "resource_id": "e1", "status": "in-progress", "digest": "d"}
    began = timezone.now() - timedelta(days=2)
    other = clinic.patient(1, family="Haas", given="Ada", now=timezone.now())
    Encounter.objects.create(patient=other, kind="emergency", location="Elsewhere", **known)
    assert "launched-stay" not in client.get(there).content.decode()  # somebody else's
    Encounter.objects.create(
        patient=Patient.objects.get(family="Sommer"), **known, **{"start": began, **stay}
    )
    assert said in client.get(there).content.decode()


@pytest.mark.parametrize("said", ["[]", "{", '{"outcome": "a&b=c"}', '{"outcome": 7}'])
def test_an_odd_app_context_is_left_alone(registered: SmartServer, server: LaunchingEhr, said: str) -> None:
    server.answers = {"appContext": said}
    assert launches.launch(Client(), server)["Location"].endswith("/risk")


def test_standalone_the_person_chooses_in_the_ehr(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    listed = client.get("/launch").content.decode()
    assert "Test EHR" in listed
    assert f"/launch?{urlencode({'iss': server.fhir})}" in listed
    answer = client.get("/launch", {"iss": server.fhir})
    scope = parse_qs(urlsplit(answer["Location"]).query)["scope"][0]
    assert "launch/patient" in scope
    assert launches.launch(client, server, "").status_code == 302


def test_frames_and_cookies_only_where_an_ehr_may_embed_us(db: None, server: LaunchingEhr) -> None:
    plain = Client().get("/login")
    assert "frame-ancestors 'self'" in plain["Content-Security-Policy"]
    assert not plain.cookies["csrftoken"]["partitioned"]
    launches.register(server, embedders=["https://ehr.example", "http://localhost:9000"])
    answer = Client().get("/login")
    assert (
        "frame-ancestors 'self' http://localhost:9000 https://ehr.example"
        in answer["Content-Security-Policy"]
    )
    cookie = answer.cookies["csrftoken"].OutputString()
    assert all(part in cookie for part in ("Secure", "SameSite=None", "Partitioned"))


@pytest.mark.parametrize(
    "origin", ["https://*.example", "ehr.example", "https://a.example/path", "https://a; b"]
)
def test_an_embedder_is_an_origin(db: None, server: LaunchingEhr, origin: str) -> None:
    with pytest.raises(Invalid):
        launches.register(server, embedders=[origin])


def test_colours_keep_their_contrast() -> None:
    assert round(styling.contrast("#000000", "#ffffff"), 1) == 21.0
    given = {"color_background": "#edeae3", "color_highlight": "#0a5570", "color_error": "#ff0000"}
    assert styling.properties(given) == {"--bg": "#edeae3", "--accent": "#0a5570"}
    assert styling.properties({"color_background": "#10222f", "color_highlight": "red"}) == {}
    assert styling.stylesheet({"--bg": "url(//evil)", "--other": "#ffffff"}) == ""
