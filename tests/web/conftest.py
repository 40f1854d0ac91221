"""A clinic in a test database, and a signed-in browser of each person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.cache import cache
from django.test import Client
from pytest_django import Settings

from cds.launch import discovering
from cds.launch.models import SmartServer
from tests.launching_ehr import LaunchingEhr, launching_ehr
from tests.web import clinic, launches


@pytest.fixture
def ward(db: None, settings: Settings, tmp_path: Path) -> clinic.Clinic:
    """The whole ward; its pixels in a folder of the test."""
    settings.STUDY_STORE = tmp_path / "studies"
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.MD5PasswordHasher"
    ]  # quick; people are made here
    return clinic.build(patients=8)


@pytest.fixture
def sign_in(ward: clinic.Clinic) -> Callable[[str], Client]:
    """`sign_in("admin")`: a client of that person; "" is nobody."""

    def client(name: str) -> Client:
        made = Client()
        if name:
            made.force_login(ward.people[name], backend="django.contrib.auth.backends.ModelBackend")
        return made

    return client


@pytest.fixture
def server() -> Iterator[LaunchingEhr]:
    """An EHR that launches us, with two patients; nothing of it is remembered from before."""
    discovering.forget()
    cache.clear()
    with launching_ehr() as running:
        running.add("p1", "Sommer")
        running.add("p2", "Winter")
        yield running


@pytest.fixture
def registered(db: None, server: LaunchingEhr) -> SmartServer:
    """That EHR, registered."""
    return launches.register(server)
