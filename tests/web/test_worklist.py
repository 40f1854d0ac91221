"""The worklist: order, groups, filters, rows that are replaced, and how many queries it takes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from cds.audit.models import AuditEvent
from tests.web.clinic import Clinic
from web import forms


def rows(page: str) -> list[str]:
    return re.findall(r'data-patient="([0-9a-f-]{36})"', page)


def test_highest_first_and_unknown_apart(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = sign_in("clinician").get("/worklist").content.decode()
    order = re.findall(r'data-testid="worklist-row"[^>]*data-category="([^"]*)"', page)
    severity = {"very-high": 4, "high": 3, "moderate": 2, "low": 1, "": 0}
    assert [severity[c] for c in order] == sorted((severity[c] for c in order), reverse=True)
    assert order[0] == "very-high"
    assert order[-3:] == ["", "", ""]
    unknown = page[page.index("Not scored: nothing is known about their risk") :]
    assert len(rows(unknown)) == 3
    assert "outside the age range" in unknown
    assert "risk-number" not in unknown


def test_nobody_elses_patients(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = sign_in("stranger").get("/worklist").content.decode()
    assert rows(page) == []
    assert "There is no patient in your units." in page
    assert rows(sign_in("stranger").post("/worklist", {"search": "Sommer"}).content.decode()) == []


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("category=very-high", 1),
        ("state=Stale", 1),
        ("state=Abstained", 1),
        ("has_image=1", 1),
        ("rising=1", 1),
        ("unacknowledged=1", 8),
    ],
)
def test_filters(query: str, count: int, ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    assert len(rows(sign_in("clinician").get(f"/worklist?{query}").content.decode())) == count


@pytest.mark.parametrize(
    "query", ["page=0", "page=9999999999999", "page=x", "category=zzz", "state=%00", "outcome=%27"]
)
def test_odd_questions_get_a_page(query: str, ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    assert sign_in("clinician").get(f"/worklist?{query}").status_code == 200


def test_a_row_alone_is_the_row_of_the_list(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client, patient = sign_in("clinician"), ward.patients[0]
    whole = client.get("/worklist").content.decode()
    alone = client.get(
        f"/worklist/rows/{patient.pk}?outcome=icu-admission", headers={"X-Live": "1"}
    ).content.decode()
    numbers = re.findall(r'<data value="([^"]+)"', alone)
    assert numbers == ["0.5234567"]
    assert re.findall(r'<data value="([^"]+)"', whole)[0] == numbers[0]
    assert alone.strip().startswith("<tr ")


def test_live_requests_do_not_keep_a_session_alive(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client, patient = sign_in("clinician"), ward.patients[0]
    assert "sessionid" in client.get("/worklist").cookies
    live = client.get(f"/worklist/rows/{patient.pk}", headers={"X-Live": "1"})
    assert live.status_code == 200
    assert "sessionid" not in live.cookies
    assert "sessionid" not in client.get("/events").cookies


def test_the_look_is_on_record_with_whom_it_showed(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    shown = rows(sign_in("clinician").get("/worklist").content.decode())
    event = AuditEvent.objects.get(action="worklist.view")
    assert event.detail["patients"] == shown
    sign_in("clinician").post("/worklist", {"search": "Sommer"})
    assert "Sommer" not in str(list(AuditEvent.objects.values()))


@pytest.mark.parametrize("odd", ["²", "9" * 5000, "-1", "٣", "x", ""])
def test_an_odd_number_in_an_address_is_none(
    ward: Clinic, sign_in: Callable[[str], Client], odd: str
) -> None:
    clinician, admin = sign_in("clinician"), sign_in("admin")
    assert clinician.get("/worklist", {"page": odd}).status_code == 200
    assert admin.get("/monitoring", {"days": odd}).status_code == 200
    assert forms.whole_number(odd) is None


def test_few_queries(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("clinician")
    client.get("/worklist")
    with CaptureQueriesContext(
        connection,
    ) as asked:
        client.get("/worklist")
    reads = [
        q["sql"]
        for q in asked
        if q["sql"].startswith("SELECT")
        and "audit" not in q["sql"]
        and "auth_" not in q["sql"]
        and "django_" not in q["sql"]
    ]
    assert len(reads) <= 12, reads
