"""axe finds nothing on any page, in any state, at any width; and no page scrolls sideways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.browser.conftest import Site

WIDTHS = (1280, 800, 320)
AT_ONCE = 5  # pages
PAGES = [
    ("", "/login"),
    ("", "/launch"),
    ("", "/launch/callback"),
    ("clinician", "/worklist"),
    ("clinician", "/worklist?category=high&state=Failed"),
    ("clinician", "/patients/{patient}/risk"),
    ("clinician", "/patients/{abstained}/risk"),
    ("clinician", "/patients/{stale}/risk"),
    ("clinician", "/patients/{failed}/risk"),
    ("clinician", "/models/{version}/card"),
    ("clinician", "/help"),
    ("clinician", "/audit"),
    ("clinician", "/nothing-here"),
    ("admin", "/models"),
    ("admin", "/models/{version}"),
    ("admin", "/models/{candidate}"),
    ("admin", "/models/{version}/card"),
    ("admin", "/models/{version}/card/purpose.use"),
    ("admin", "/models/runs/{run}"),
    ("admin", "/models/runs/new?outcomes=icu-admission&check=1"),
    ("admin", "/monitoring"),
    ("admin", "/hooks/sandbox"),
    ("admin", "/sources"),
    ("admin", "/sources/{source}"),
    ("admin", "/destinations/ehr"),
    ("admin", "/ehrs"),
    ("admin", "/ehrs/clients/new"),
    ("admin", "/ehrs/clients/{client}"),
    ("admin", "/ehrs/clients/{client}/edit"),
    ("admin", "/ehrs/clients/{client}/withdraw"),
    ("admin", "/ehrs/servers/{server}"),
    ("admin", "/ehrs/servers/{server}/edit"),
    ("admin", "/audit?verify=1"),
    ("nobody", "/"),
]


def lots() -> list[tuple[str, list[str]]]:
    """Who looks at which pages, a few at a time: a busy machine needs minutes for all of an admin's."""
    found = []
    for name in sorted({name for name, _ in PAGES}):
        addresses = [address for owner, address in PAGES if owner == name]
        found += [(name, addresses[i : i + AT_ONCE]) for i in range(0, len(addresses), AT_ONCE)]
    return found


@pytest.mark.parametrize(
    ("name", "addresses"), lots(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_axe_finds_nothing(name: str, addresses: list[str], enter: Callable[[str], Page], site: Site) -> None:
    page, axe, problems = enter(name), Axe(), []
    for address in addresses:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(address.format(**site.ids))
            if "/risk" in address:
                page.locator("#act").wait_for()
            open_everything(page)
            found = axe.run(
                page,
                options={
                    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
                },
            )
            problems += [
                f"{address} at {width}: {v['id']}: {v['nodes'][0]['html'][:140]}"
                for v in found.response["violations"]
            ]
            beyond = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            if beyond > 0:
                problems.append(f"{address} at {width}: scrolls sideways by {beyond}")
    assert not problems, "\n".join(problems)


def open_everything(page: Page) -> None:
    """What is folded away is part of the page too."""
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")


def test_keyboard_reaches_everything_in_order(enter: Callable[[str], Page], site: Site) -> None:
    page = enter("clinician")
    page.goto(f"/patients/{site.ids['patient']}/risk")
    page.get_by_test_id("overlay-toggle").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(120):
        page.keyboard.press("Tab")
        place = page.evaluate(
            """() => { const at = document.activeElement;
            const box = at.getBoundingClientRect();
            const ring = getComputedStyle(at).outlineWidth;
            const place = [...document.querySelectorAll('*')].indexOf(at);
            return [at.dataset.testid || at.tagName, ring, box.width > 0, place]; }"""
        )
        if place[0] == "BODY":
            break
        seen.append(place)
    order = [place[3] for place in seen]
    assert order == sorted(order)
    assert {"overlay-toggle", "ww", "wl", "cine-play", "ack", "override"} <= {place[0] for place in seen}
    assert all(place[1] == "3px" and place[2] for place in seen), [
        p for p in seen if p[1] != "3px" or not p[2]
    ]
