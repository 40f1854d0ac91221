"""Two patients open in one EHR, each in a frame: no link, and no refusal, leads from one to the other."""

from __future__ import annotations

import re
from typing import Any

from django.test import Client
from django.utils import timezone

from cds.audit.models import AuditEvent
from cds.launch import discovering
from cds.launch.models import SmartServer
from tests.launching_ehr import LaunchingEhr
from tests.web import clinic, launches


def _links(answer: Any) -> list[str]:
    """Where a page leads, by link or form; not its pictures and styles."""
    said = re.sub(r"<(link|script)\b[^>]*>", "", answer.content.decode())
    return [one for one in re.findall(r'(?:href|action)="([^"]*)"', said) if not one.startswith("#")]


def test_the_page_of_an_earlier_launch_leads_nowhere(registered: SmartServer, server: LaunchingEhr) -> None:
    """Its start page would be the other patient's, in this one's frame, and perhaps without a banner."""
    server.answers["need_patient_banner"] = False
    client = Client()
    first = launches.launch(client, server)["Location"]
    second = launches.launch(client, server, "launch-p2")["Location"]
    refused = client.get(first)
    assert refused.status_code == 409
    assert _links(refused) == []
    assert client.get(second).status_code == 200


def test_links_that_name_no_patient_say_in_whose_launch_they_stand(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    launches.launch(client, server)
    page = client.get(client.get("/")["Location"])
    links = [one for one in _links(page) if one.startswith(("/?", "/help?"))]
    assert len(links) == 2
    for link in links:
        assert client.get(link, follow=True).status_code == 200
    help_page = client.get(next(one for one in links if one.startswith("/help")))
    assert [one for one in _links(help_page) if one.startswith("/?")] == [links[0]]
    launches.launch(client, server, "launch-p2")
    for link in links:
        refused = client.get(link)
        assert (link, refused.status_code, _links(refused)) == (link, 409, [])
        assert "Winter" not in refused.content.decode()


def test_model_cards_are_left_for_the_launch_they_were_opened_from(
    ward: clinic.Clinic, registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    there = launches.launch(client, server)["Location"]
    card = next(one for one in _links(client.get(there)) if "/card" in one)
    assert client.get(card).status_code == 200
    launches.launch(client, server, "launch-p2")
    assert client.get(card).status_code == 409


def test_a_launch_that_is_refused_leaves_nothing_of_the_patient_before(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    first = launches.launch(client, server)["Location"]
    server.claims["aud"] = "another-app"
    refused = launches.launch(client, server, "launch-p2")
    assert refused.status_code == 400
    assert _links(refused) == []
    assert "show this page to the people who run your EHR" in refused.content.decode()
    assert client.get(first).status_code == 302  # a step back leads to the sign-in
    assert AuditEvent.objects.filter(action="session.end").count() == 1


def test_nor_does_one_whose_ehr_cannot_be_asked(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    first = launches.launch(client, server)["Location"]
    server.discovery["authorization_endpoint"] = None
    discovering.forget()
    refused = client.get("/launch", {"iss": server.fhir, "launch": "launch-p2"})
    assert (refused.status_code, _links(refused)) == (503, [])
    assert client.get(first).status_code == 302


def test_a_stranger_ends_nobodys_session(registered: SmartServer, server: LaunchingEhr) -> None:
    """An `iss` that is not registered, and a callback that nothing here began."""
    client = Client()
    there = launches.launch(client, server)["Location"]
    assert client.get("/launch", {"iss": "https://evil.example", "launch": "x"}).status_code == 400
    assert client.get("/launch/callback", {"state": "x", "code": "y"}).status_code == 400
    assert client.get(there).status_code == 200


def test_signing_out_of_a_launch_shows_no_form(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    there = launches.launch(client, server)["Location"]
    out = client.post("/logout")
    assert out["Location"] == "/launch/ended"
    page = client.get(out["Location"])
    assert page.status_code == 200
    assert "open Tessera from your EHR" in page.content.decode()
    assert "password" not in page.content.decode()
    again = client.get(there, follow=True).content.decode()
    assert "open the patient in the EHR again" in again
    assert "open the patient in the EHR again" not in client.get("/login").content.decode()
    assert AuditEvent.objects.filter(action="session.end", at__lte=timezone.now()).count() == 1


def test_what_htmx_asks_for_after_the_session_has_ended_loads_the_page_again(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    """A redirect would be followed, and the sign-in put where the score was."""
    client = Client()
    there = launches.launch(client, server)["Location"]
    client.post("/logout")
    for answer in (
        client.get(f"{there}/score", headers={"HX-Request": "true", "X-Live": "1"}),
        client.post(there.replace("/risk", "/rescore"), headers={"HX-Request": "true"}),
    ):
        assert (answer.status_code, answer["HX-Refresh"], answer.content) == (401, "true", b"")
