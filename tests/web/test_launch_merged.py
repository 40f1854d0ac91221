"""A launch for somebody who was merged into another: the old id answers for who survives them."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pytest
from django.test import Client
from django.utils import timezone

from cds.launch.models import SmartIdentity, SmartServer
from cds.patients import access
from cds.patients.models import Patient
from cds.registry.models import ActiveModel
from tests.launching_ehr import LaunchingEhr
from tests.web import clinic, launches


def _said(server: LaunchingEhr, identity: str, kind: str, other: str) -> None:
    """What the EHR says of a merger, in Patient.link; `kind` "": no more."""
    link = [{"other": {"reference": f"Patient/{other}"}, "type": kind}] if kind else []
    server.patients[identity]["link"] = link


@pytest.fixture
def merged(registered: SmartServer, server: LaunchingEhr) -> Patient:
    """p1 was merged into p2, and both were read."""
    launches.launch(Client(), server, "launch-p2")
    _said(server, "p1", "replaced-by", "p2")
    launches.launch(Client(), server)
    assert Patient.objects.get(resource_id="p1").merged_into is not None
    return Patient.objects.get(resource_id="p2")


def test_a_launch_for_the_old_id_opens_the_survivor(merged: Patient, server: LaunchingEhr) -> None:
    client = Client()
    there = launches.launch(client, server)["Location"]
    page = client.get(there)
    assert page.status_code == 200
    assert "Winter" in page.content.decode()
    for address in (
        there,
        f"/patients/{merged.pk}/risk",
    ):  # the survivor's own id as well, as pages link to it
        assert client.get(address).status_code == 200
        assert client.get(f"{address}/score").status_code == 200
    assert client.get("/")["Location"] == there
    stranger = clinic.patient(1, family="Haas", given="Ada", now=timezone.now())
    assert client.get(f"/patients/{stranger.pk}/risk").status_code == 409


def test_a_launch_for_the_survivor_opens_its_own_id(merged: Patient, server: LaunchingEhr) -> None:
    client = Client()
    assert client.get(launches.launch(client, server, "launch-p2")["Location"]).status_code == 200


def test_an_old_id_that_the_ehr_does_not_give_any_more_still_opens_the_survivor(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    """The survivor says `replaces`; the replaced Patient itself was never read."""
    _said(server, "p2", "replaces", "p1")
    del server.patients["p1"]
    launches.launch(Client(), server, "launch-p2")
    client = Client()
    assert "Winter" in client.get(launches.launch(client, server)["Location"]).content.decode()


def test_merged_during_the_session_it_goes_on_with_the_survivor_and_parted_with_its_own(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    there = launches.launch(client, server)["Location"]
    launches.launch(Client(), server, "launch-p2")
    survivor = Patient.objects.get(resource_id="p2")
    assert client.get(f"/patients/{survivor.pk}/risk").status_code == 409
    _said(server, "p1", "replaced-by", "p2")
    launches.launch(Client(), server)
    assert "Winter" in client.get(there).content.decode()
    assert client.get(f"/patients/{survivor.pk}/risk").status_code == 200
    _said(server, "p1", "", "")
    launches.launch(Client(), server)
    page = client.get(there).content.decode()
    assert "Sommer" in page
    assert client.get(f"/patients/{survivor.pk}/risk").status_code == 409  # another person again


def test_mergers_one_after_the_other_are_followed_to_the_end(merged: Patient, server: LaunchingEhr) -> None:
    server.add("p3", "Herbst")
    _said(server, "p2", "replaced-by", "p3")
    launches.launch(Client(), server, "launch-p3")
    launches.launch(Client(), server, "launch-p2")
    client = Client()
    assert "Herbst" in client.get(launches.launch(client, server)["Location"]).content.decode()
    user = SmartIdentity.objects.get(fhir_user="Practitioner/7").user
    access.look_from(user, client.session.session_key)
    assert [one.resource_id for one in access.visible_patients(user)] == ["p3"]


def test_the_score_of_a_card_for_the_old_id_is_that_of_the_survivor(
    merged: Patient, server: LaunchingEhr
) -> None:
    """A hook call for the old id is answered with the survivor's score; its link leads here."""
    now = timezone.now()
    model = clinic.version(1, now=now)
    ActiveModel.objects.create(outcome=clinic.OUTCOME, version=model, since=now)
    told = clinic.assessment(merged, model, now=now, risk=0.41, as_of=now - timedelta(hours=5))
    clinic.assessment(merged, model, now=now, risk=0.62)
    context = {"assessment": str(told.pk), "outcome": clinic.OUTCOME}
    server.answers = {"appContext": orjson.dumps(context).decode()}
    client = Client()
    page = client.get(launches.launch(client, server)["Location"]).content.decode()
    assert "This is a newer score than the card's" in page
    assert '<data value="0.41">' in page


def test_the_stream_of_the_old_id_tells_of_the_survivor(merged: Patient, server: LaunchingEhr) -> None:
    from cds.jobs.models import LiveEvent
    from web import streams

    client = Client()
    launches.launch(client, server)
    old = Patient.objects.get(resource_id="p1")
    user = SmartIdentity.objects.get(fhir_user="Practitioner/7").user
    event = LiveEvent.objects.create(kind="assessment", subject="x", patient_id=merged.pk, at=timezone.now())
    key = client.session.session_key
    found = streams._visible_after(user.pk, event.pk - 1, frozenset(), key, str(old.pk))
    assert event.pk in [one.pk for one in found]
