"""What anybody can do at /launch: little waits for them, nothing is left behind; what `aud` is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.sessions.models import Session
from django.core import signing
from django.test import Client

import ehr
from cds.launch import discovering, launching
from cds.launch.models import SmartServer
from tests.launching_ehr import LaunchingEhr
from tests.web import launches
from web import under_way


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    discovering.forget()
    yield
    discovering.forget()


def _aud(server: LaunchingEhr, iss: str, **more: str) -> str:
    answer = Client().get("/launch", {"iss": iss, **more})
    assert answer.status_code == 302
    return parse_qs(urlsplit(answer["Location"]).query)["aud"][0]


@pytest.mark.parametrize("registered_with", ["", "/"])
def test_aud_is_the_iss_of_the_launch_to_the_letter(
    db: None, server: LaunchingEhr, registered_with: str
) -> None:
    """RFC 8707 and SMART compare it as text: an EHR that names itself with a slash is called so."""
    plain, slashed = server.fhir, f"{server.fhir}/"
    launches.register(server, issuer=server.fhir + registered_with)
    assert _aud(server, plain, launch="launch-p1") == plain
    assert _aud(server, slashed, launch="launch-p1") == slashed
    for iss in (plain, slashed):  # standalone nobody but the registration says how it is called
        assert _aud(server, iss) == server.fhir + registered_with
    assert Client().get("/launch", {"iss": f"{slashed}/", "launch": "x"}).status_code == 400


def test_registered_again_with_a_slash_it_is_the_same_ehr(db: None, server: LaunchingEhr) -> None:
    launches.register(server)
    launches.register(server, issuer=f"{server.fhir}/")
    assert SmartServer.objects.get().address == f"{server.fhir}/"


def test_an_ehr_that_is_down_is_asked_once_in_half_a_minute(
    registered: SmartServer, server: LaunchingEhr, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.discovery = {"code_challenge_methods_supported": ["plain"]}
    for _ in range(5):
        answer = Client().get("/launch", {"iss": server.fhir, "launch": "launch-p1"})
        assert (answer.status_code, "PKCE" in answer.content.decode()) == (503, True)
    assert server.asked == ["/fhir/.well-known/smart-configuration"]
    server.discovery = {}
    now = time.monotonic()
    monkeypatch.setattr("cds.launch.discovering.time.monotonic", lambda: now + discovering.FAILED_S + 1)
    assert Client().get("/launch", {"iss": server.fhir, "launch": "launch-p1"}).status_code == 302


def test_one_thread_asks_few_wait_and_the_others_are_told_to_come_again() -> None:
    asked, may_answer, is_asked = [], threading.Event(), threading.Event()

    def slow() -> str:
        asked.append(1)
        is_asked.set()
        may_answer.wait(5)
        return "answer"

    found: list[str] = []

    def ask() -> None:
        found.append(discovering.cached("https://ehr.example", "what", slow))

    threads = [threading.Thread(target=ask) for _ in range(1 + discovering.MOST_WAITING)]
    threads[0].start()
    assert is_asked.wait(5)
    for thread in threads[1:]:
        thread.start()
    reading = next(iter(discovering._readings.values()))
    while reading.waiting < discovering.MOST_WAITING:
        time.sleep(0.01)
    with pytest.raises(ehr.Retriable, match="try again in a moment"):
        discovering.cached("https://ehr.example", "what", slow)
    assert discovering.cached("https://other.example", "what", lambda: "another's") == "another's"
    may_answer.set()
    for thread in threads:
        thread.join(5)
    assert (found, len(asked)) == (["answer"] * (1 + discovering.MOST_WAITING), 1)


def test_who_waited_is_told_of_the_failure_and_the_next_may_ask_again() -> None:
    def fails() -> str:
        raise ehr.Refused("no", status=403)

    def breaks() -> str:
        raise KeyError("a fault of ours")

    for _ in range(2):
        with pytest.raises(ehr.Refused) as told:
            discovering.cached("https://ehr.example", "refused", fails)
        assert told.value.status == 403
    for _ in range(2):
        with pytest.raises(KeyError):
            discovering.cached("https://ehr.example", "broken", breaks)
    assert not discovering._readings


def test_keys_read_anew_in_vain_leave_those_of_before() -> None:
    def fails() -> str:
        raise ehr.Retriable("down")

    assert discovering.cached("https://ehr.example", "keys", lambda: "before") == "before"
    with pytest.raises(ehr.Retriable):
        discovering.cached("https://ehr.example", "keys", fails, fresh=True)
    assert discovering.cached("https://ehr.example", "keys", fails) == "before"


def test_only_so_many_codes_are_exchanged_at_once(registered: SmartServer, server: LaunchingEhr) -> None:
    """An EHR that does not answer holds no more threads than that."""
    client = Client()
    back = launches.begin(client, server)
    for _ in range(discovering.MOST_AT_ONCE):
        assert launching._exchanges.acquire(blocking=False)
    try:
        answer = client.get(back)
        assert answer.status_code == 503
        assert "launch again in a while" in answer.content.decode()
        assert "/auth/token" not in server.asked
    finally:
        launching._exchanges.release(discovering.MOST_AT_ONCE)
    assert launches.launch(client, server).status_code == 302


@pytest.mark.parametrize("change", ["", "x", ":", "another's"])
def test_a_cookie_that_is_not_ours_holds_nothing(
    registered: SmartServer, server: LaunchingEhr, change: str
) -> None:
    client = Client()
    back = launches.begin(client, server)
    forged = signing.dumps({"x": {}}, salt="another's") if change == "another's" else ""
    client.cookies["launches"] = forged or (f"{client.cookies['launches'].value}{change}" if change else "")
    assert client.get(back).status_code == 400
    assert not Session.objects.exists()


def test_one_cookie_is_not_good_for_the_other_sign_in(registered: SmartServer, server: LaunchingEhr) -> None:
    client = Client()
    back = launches.begin(client, server)
    client.cookies["hospital_waiting"] = client.cookies.pop("launches").value
    assert client.get(back).status_code == 400
    there = back.replace("/launch/callback", "/login/hospital/callback")
    assert client.get(there).status_code == 400


def test_a_browser_remembers_the_newest_of_what_it_began(
    registered: SmartServer, server: LaunchingEhr
) -> None:
    client = Client()
    begun = [launches.begin(client, server) for _ in range(under_way.MOST + 2)]
    assert len(client.cookies["launches"].value) <= under_way.LARGEST
    assert client.get(begun[0]).status_code == 400
    assert client.get(begun[-1]).status_code == 302
