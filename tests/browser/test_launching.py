"""J2: an EHR on another site launches us in a frame of 800 pixels; another patient leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site
from tests.launching_ehr import LaunchingEhr, launching_ehr


@pytest.fixture
def ehr(site: Site) -> Iterator[LaunchingEhr]:
    """It is reached as localhost, we as 127.0.0.1: another site."""
    with launching_ehr() as running:
        running.add("p1", "Sommer")
        running.add("p2", "Winter")
        page = running.url.replace("127.0.0.1", "localhost")
        site.act("smart", running.fhir, page)
        _wait_until(lambda: page in httpx.get(f"{site.url}/login").headers["Content-Security-Policy"])
        yield running
        site.act("withdraw", running.fhir)
        _wait_until(lambda: page not in httpx.get(f"{site.url}/login").headers["Content-Security-Policy"])


def _wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(100):
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError("the server did not notice")


@pytest.fixture
def chart(browser: Browser, ehr: LaunchingEhr) -> Iterator[Page]:
    """The EHR's own page, 1000 pixels wide."""
    context = browser.new_context(viewport={"width": 1000, "height": 1000})
    yield context.new_page()
    context.close()


def _open(page: Page, ehr: LaunchingEhr, site: Site, launch: str) -> None:
    app = f"{site.url}/launch?iss={quote(ehr.fhir, safe='')}&launch={launch}"
    page.goto(f"{ehr.url.replace('127.0.0.1', 'localhost')}/chart?app={quote(app, safe='')}")


def test_a_launch_in_a_frame_of_another_site(chart: Page, ehr: LaunchingEhr, site: Site) -> None:
    _open(chart, ehr, site, "launch-p1")
    frame = chart.frame_locator("#app")
    expect(frame.get_by_role("heading", name="Sommer")).to_be_visible()
    cookies = {cookie["name"]: cookie for cookie in chart.context.cookies(site.url)}
    session = cookies["sessionid"]
    assert (session["sameSite"], session["secure"]) == ("None", True)
    assert session.get("partitionKey")
    # The session holds: a link inside the frame is still for this person.
    frame.get_by_role("link", name="Help").click()
    expect(frame.get_by_role("heading", name="Help")).to_be_visible()
    wide = (
        chart.locator("#app")
        .element_handle()
        .content_frame()
        .evaluate(  # type: ignore[union-attr]
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    )
    assert wide <= 0


def test_a_second_patient_leaves_nothing_of_the_first(chart: Page, ehr: LaunchingEhr, site: Site) -> None:
    _open(chart, ehr, site, "launch-p1")
    expect(chart.frame_locator("#app").get_by_role("heading", name="Sommer")).to_be_visible()
    second = chart.context.new_page()
    _open(second, ehr, site, "launch-p2")
    expect(second.frame_locator("#app").get_by_role("heading", name="Winter")).to_be_visible()
    first = chart.frame_locator("#app")
    expect(first.get_by_role("heading", name="This panel is for another launch")).to_be_visible()
    expect(first.get_by_text("Sommer")).to_have_count(0)
    for name in (
        "Tessera",
        "Help",
        "To the start page",
    ):  # they would lead to the other patient, in this frame
        expect(first.get_by_role("link", name=name)).to_have_count(0)


def test_signed_out_a_step_back_shows_nothing(chart: Page, ehr: LaunchingEhr, site: Site) -> None:
    _open(chart, ehr, site, "launch-p1")
    frame = chart.frame_locator("#app")
    expect(frame.get_by_role("heading", name="Sommer")).to_be_visible()
    frame.get_by_role("button", name="Sign out").click()
    expect(frame.get_by_role("heading", name="You are signed out")).to_be_visible()
    chart.evaluate("history.back()")
    expect(frame.get_by_text("open the patient in the EHR again")).to_be_visible()
    expect(frame.get_by_text("Sommer")).to_have_count(0)


def test_a_launch_that_fails_leaves_nothing_of_the_patient_before(
    chart: Page, ehr: LaunchingEhr, site: Site
) -> None:
    """In the same frame, as EHRs do that keep one for all their patients."""
    _open(chart, ehr, site, "launch-p1")
    frame = chart.frame_locator("#app")
    expect(frame.get_by_role("heading", name="Sommer")).to_be_visible()
    ehr.claims["aud"] = "another-app"
    again = f"{site.url}/launch?iss={quote(ehr.fhir, safe='')}&launch=launch-p2"
    chart.evaluate("address => { document.getElementById('app').src = address; }", again)
    expect(frame.get_by_role("heading", name="The launch was not completed")).to_be_visible()
    chart.evaluate("history.back()")
    expect(frame.get_by_text("open the patient in the EHR again")).to_be_visible()
    expect(frame.get_by_text("Sommer")).to_have_count(0)


def test_a_screen_whose_session_has_ended_takes_the_sign_in_into_no_part(
    chart: Page, ehr: LaunchingEhr, site: Site
) -> None:
    _open(chart, ehr, site, "launch-p1")
    frame = chart.frame_locator("#app")
    expect(frame.get_by_role("heading", name="Sommer")).to_be_visible()
    chart.context.clear_cookies(name="sessionid")
    inner = chart.locator("#app").element_handle().content_frame()
    assert inner is not None
    inner.evaluate("htmx.trigger(document.querySelector('[data-live~=assessment]'), 'changed')")
    expect(frame.get_by_label("Password")).to_be_visible()
    expect(frame.get_by_text("Sommer")).to_have_count(0)
