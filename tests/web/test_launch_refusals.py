"""What an EHR may not do, or says that it does not: codes of another sign-in, half a record, no clinician."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.launch import closing, discovering, registering
from cds.launch.models import SmartIdentity, SmartServer
from cds.patients import access
from tests.launching_ehr import LaunchingEhr, launching_ehr
from tests.web import clinic, launches

BY = recording.system("test")


def _words(client: Client, answer: Any) -> str:
    page = client.get(answer["Location"]) if answer.status_code == 302 else answer
    return " ".join(page.content.decode().replace("&#x27;", "'").split())


def _begun_at(client: Client, hostile: LaunchingEhr) -> str:
    """The state of a launch that began at an EHR which is registered and hostile."""
    hostile.add("p1", "Nobody")
    launches.register(hostile, source="another")
    there = client.get("/launch", {"iss": hostile.fhir, "launch": "launch-p1"})["Location"]
    return parse_qs(urlsplit(there).query)["state"][0]


def test_a_code_of_another_ehr_is_not_sent_on(registered: SmartServer, server: LaunchingEhr) -> None:
    """RFC 9207: who began at one EHR and was led to another one's sign-in brings back that one's code."""
    with launching_ehr() as hostile:
        client = Client()
        state = _begun_at(client, hostile)
        asked = {"state": state, "code": "of the other one", "iss": server.fhir}
        refused = client.get("/launch/callback", asked)
        assert refused.status_code == 400
        assert "another sign-in than the one that was begun" in refused.content.decode()
        assert "/auth/token" not in hostile.asked


def test_without_iss_its_own_address_keeps_a_code_from_another_ehr(db: None, server: LaunchingEhr) -> None:
    """RFC 9700, 4.4: the other one may send the browser on to this one's sign-in, but not elsewhere back."""
    kept = launches.register(server, has_own_redirect=True)
    with launching_ehr() as hostile:
        client = Client()
        state = _begun_at(client, hostile)
        refused = client.get(kept.redirect_path, {"state": state, "code": "of the honest one"})
        assert refused.status_code == 400
        assert "another address than this EHR" in refused.content.decode()
        assert "/auth/token" not in hostile.asked
    back = launches.begin(client, server)
    assert back.startswith(f"{kept.redirect_path}?")
    assert client.get(back.replace(kept.redirect_path, "/launch/callback")).status_code == 400
    assert client.get(launches.begin(client, server)).status_code == 302


def test_an_ehr_whose_codes_another_could_come_by_is_named(db: None, server: LaunchingEhr) -> None:
    kept = launches.register(server)
    assert registering.mixable(kept) == "", "there is no other"
    known = {"issuer": "https://other.example/r4", "client_id": "x", "source": "another"}
    other = registering.register("Another", **known, by=BY, now=timezone.now())[0]
    assert "a redirect URI of its own" in registering.mixable(kept)
    client = Client()
    client.force_login(clinic.person("admin", access.Role.ADMIN))
    assert client.get("/ehrs").content.decode().count("Shares its redirect") == 2
    assert 'data-testid="mixable"' in client.get(f"/ehrs/servers/{kept.pk}").content.decode()
    assert registering.mixable(launches.register(server, is_confidential=True)) == ""
    own = launches.register(server, has_own_redirect=True)
    assert registering.mixable(own) == ""
    page = client.get(f"/ehrs/servers/{own.pk}").content.decode()
    assert own.redirect_path in page
    assert 'data-testid="mixable"' not in page
    registering.withdraw(own.issuer, by=BY, now=timezone.now())
    assert registering.mixable(other) == ""


@pytest.mark.parametrize(("promised", "status"), [(False, 302), (True, 400)])
def test_an_ehr_that_names_itself_always_does(
    promised: bool, status: int, registered: SmartServer, server: LaunchingEhr
) -> None:
    server.discovery["authorization_response_iss_parameter_supported"] = promised
    client = Client()
    assert launches.launch(client, server).status_code == status
    named = f"{launches.begin(client, server)}&iss={server.fhir}"
    assert client.get(named).status_code == 302


GRANTED = "openid fhirUser launch patient/Patient.rs patient/Condition.read patient/Observation.rs?code=x"


def test_what_the_ehr_does_not_let_us_read_is_said(registered: SmartServer, server: LaunchingEhr) -> None:
    """Its searches may be answered as if there were nothing."""
    server.answers["scope"] = GRANTED
    client = Client()
    said = _words(client, launches.launch(client, server))
    assert "it does not let this app read Encounter, Observation, MedicationRequest, Procedure" in said
    assert "ImagingStudy" not in said  # few serve those


def test_what_the_ehr_refuses_is_said_whatever_the_scope(
    registered: SmartServer, server: LaunchingEhr, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = server.read

    def refusing(path: str, bearer: str, patient: str = "") -> tuple[int, dict[str, Any]]:
        forbidden = path in ("Observation", "FamilyMemberHistory")
        return (403, {}) if forbidden else read(path, bearer, patient)

    monkeypatch.setattr(server, "read", refusing)
    client = Client()
    said = _words(client, launches.launch(client, server))
    assert "it does not let this app read Observation." in said


def test_a_token_that_its_own_ehr_does_not_take_is_told_to_a_clinician(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    launches.launch(Client(), server)
    server.answers["access_token"] = "of nobody"
    client = Client()
    said = _words(client, launches.launch(client, server))
    assert "it does not let the sign-in of this launch read" in said
    assert "ingest" not in said


def test_whoever_is_no_clinician_here_is_told_so_and_nothing_is_read(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    person = clinic.person("keeper", access.Role.ADMIN)
    registering.link(registered, "Practitioner/7", person, by=BY, now=timezone.now())
    client = Client()
    refused = launches.launch(client, server)
    assert refused.status_code == 403
    assert "not a clinician's" in _words(client, refused)
    assert "/fhir/Patient/p1" not in server.asked
    assert "_auth_user_id" not in client.session


def test_a_closed_account_stays_closed_whatever_is_known_of_its_person(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    launches.launch(Client(), server)
    closing.close(SmartIdentity.objects.get().user, by=BY, now=timezone.now())
    SmartIdentity.objects.all().delete()
    client = Client()
    refused = launches.launch(client, server)
    assert refused.status_code == 403
    assert "has been closed" in _words(client, refused)


@pytest.mark.parametrize("claims", [{"sub": None}, {"sub": ""}, {"sub": 7}, {"nbf": 2**33}, {"nbf": "soon"}])
def test_an_id_token_of_nobody_or_of_later_is_refused(
    claims: dict[str, Any], registered: SmartServer, server: LaunchingEhr
) -> None:
    server.claims.update(claims)
    client = Client()
    refused = launches.launch(client, server)
    assert refused.status_code == 400
    assert f"the id_token's {next(iter(claims))} is not what it must be" in _words(client, refused)


def test_what_the_ehr_says_of_its_refusal_is_told(
    registered: SmartServer, server: LaunchingEhr, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"error": "invalid_client", "error_description": "no key <b>k1</b> of yours"}
    monkeypatch.setattr(server, "token", lambda form: (401, said))
    refused = launches.launch(Client(), server).content.decode()
    assert "401 invalid_client: no key &lt;b&gt;k1&lt;/b&gt; of yours" in refused


def test_a_callback_without_its_cookie_says_what_may_have_kept_it(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    discovering.forget()
    back = launches.begin(Client(), server)
    refused = Client().get(back)
    assert refused.status_code == 400
    assert "keeps no cookies of this site in a frame of another" in refused.content.decode()


def test_what_no_database_keeps_is_refused_or_left_out(registered: SmartServer, server: LaunchingEhr) -> None:
    """A NUL: PostgreSQL would raise, and anybody can send one."""
    client = Client()
    asked = {"iss": f"{server.fhir}\0", "launch": "x"}
    assert client.get("/launch", asked).status_code == 400
    there = client.get("/launch", {"iss": server.fhir, "launch": "launch-p1"})["Location"]
    state = parse_qs(urlsplit(there).query)["state"][0]
    ended = client.get("/launch/callback", {"state": state, "error": "access\0_denied"})
    assert ended.status_code == 400
    for event in AuditEvent.objects.filter(action="session.launch"):
        assert "\0" not in event.object_id + event.detail["reason"]
    server.claims["name"] = "Dr \0Autumn"
    assert launches.launch(client, server).status_code == 302
    assert SmartIdentity.objects.get().user.first_name == "Dr Autumn"
    server.claims["sub"] = "7\0"
    assert launches.launch(client, server).status_code == 400
