"""Launches by a server that answers as an EHR does, through our own views."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
from django.test import Client
from django.utils import timezone

from cds.audit import recording
from cds.launch import registering
from cds.launch.models import SmartServer
from cds.patients import importing
from tests.launching_ehr import CLIENT, LaunchingEhr

BY = recording.system("test")


def register(server: LaunchingEhr, **more: Any) -> SmartServer:
    """Registered for the source `ehr`, or as `more` says."""
    now = timezone.now()
    source = more.pop("source", None) or importing.get_source("ehr", now=now)
    known = {"issuer": server.fhir, "client_id": CLIENT, **more}
    return registering.register("Test EHR", source=source, by=BY, now=now, **known)[0]


def begin(client: Client, server: LaunchingEhr, launch: str = "launch-p1") -> str:
    """Through the EHR's sign-in; the callback's address with code and state."""
    answer = client.get("/launch", {"iss": server.fhir, "launch": launch} if launch else {"iss": server.fhir})
    assert answer.status_code == 302, answer.content.decode()
    with httpx.Client(trust_env=False) as browser:
        there = urlsplit(browser.get(answer["Location"]).headers["Location"])
    return f"{there.path}?{there.query}"


def launch(client: Client, server: LaunchingEhr, launch: str = "launch-p1") -> Any:
    """All the way: the callback's answer."""
    return client.get(begin(client, server, launch))
