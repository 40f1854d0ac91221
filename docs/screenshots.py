"""Pictures of a running instance for the guides: `python docs/screenshots.py http://127.0.0.1:8000 --help`.

Give it the demo's address and its three logins (name:password); it writes docs/images/*.png. Take pictures of
simulated patients only: the script refuses a panel that does not say so.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS = (1280, 800)


def main() -> None:
    """Sign in as each person and picture the pages they work with."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("url", help="address of the running instance, such as http://127.0.0.1:8000")
    asked.add_argument("--clinician", required=True, metavar="NAME:PASSWORD")
    asked.add_argument("--admin", required=True, metavar="NAME:PASSWORD")
    asked.add_argument("--approver", required=True, metavar="NAME:PASSWORD")
    asked.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    asked.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="widths in pixels")
    asked.add_argument("--only", nargs="+", metavar="NAME", help="these pictures, such as sources model-card")
    given = asked.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for login, pictures in (
            ("", {"login": lambda page: None}),
            (
                given.clinician,
                {"worklist": worklist, "panel": panel, "panel-heat-map": heat_map, "help": help_page},
            ),
            (
                given.admin,
                {
                    "models": models,
                    "new-run": new_run,
                    "run": run,
                    "monitoring": monitoring,
                    "sources": sources,
                    "source": source,
                    "destination": destination,
                    "audit": audit,
                },
            ),
            (given.approver, {"model": model, "model-card": model_card}),
        ):
            for name, go in pictures.items():
                if given.only and name not in given.only:
                    continue
                for width in given.widths:
                    picture(
                        browser, given.url.rstrip("/"), login, width, go, given.out / f"{name}-{width}.png"
                    )
        browser.close()


def picture(
    browser: Browser, url: str, login: str, width: int, go: Callable[[Page], object], path: Path
) -> None:
    """One page at one width, whole."""
    context = browser.new_context(base_url=url, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto("/login")
    if login:
        name, _, password = login.partition(":")
        page.get_by_label("User name").fill(name)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()
    go(page)
    page.wait_for_timeout(400)
    page.screenshot(path=path, full_page=True)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    context.close()
    sys.stdout.write(f"{path}\n")


def worklist(page: Page) -> None:
    """The list as it opens."""
    page.goto("/worklist")


def panel(page: Page) -> None:
    """The first patient of the list who has an image and a cine, else the first."""
    page.goto("/worklist")
    links = [link.get_attribute("href") or "" for link in page.locator("a.who-name").all()]
    for address in links[:12]:
        page.goto(address)
        if page.get_by_test_id("img-canvas").count() and page.get_by_test_id("cine-play").count():
            break
    else:
        page.goto(links[0])
    if not page.get_by_text("simulated patient").count():
        raise SystemExit("This patient is not marked as simulated: no picture is taken of real people.")
    if page.get_by_test_id("img-canvas").count():
        page.get_by_test_id("img-canvas").wait_for()


def heat_map(page: Page) -> None:
    """The same panel with the heat map on."""
    panel(page)
    if page.get_by_test_id("overlay-toggle").count():
        page.get_by_test_id("overlay-toggle").click()


def help_page(page: Page) -> None:
    """Words, states and keys."""
    page.goto("/help")


def models(page: Page) -> None:
    """The registry."""
    page.goto("/models")


def model(page: Page) -> None:
    """The model in use."""
    page.goto("/models")
    page.locator("main a[href^='/models/']:not([href*=runs])").first.click()
    page.get_by_role("heading", name="About this version").wait_for()


def model_card(page: Page) -> None:
    """The card of the model in use."""
    model(page)
    page.get_by_role("link", name="Model card").click()
    page.get_by_role("heading", name="In plain words").wait_for()


def new_run(page: Page) -> None:
    """What a run would be made of."""
    page.goto("/models/runs/new?outcomes=icu-admission&check=1")


def run(page: Page) -> None:
    """The latest run."""
    page.goto("/models")
    page.locator("#runs a[href^='/models/runs/']").first.click()
    page.get_by_test_id("run-progress").wait_for()


def monitoring(page: Page) -> None:
    """What the active model did in a month."""
    page.goto("/monitoring?days=30")


def sources(page: Page) -> None:
    """Every source, and how it stands."""
    page.goto("/sources")


def source(page: Page) -> None:
    """The first source: its runs, and what was set aside."""
    page.goto("/sources")
    page.get_by_test_id("source-row").first.get_by_role("link").click()


def destination(page: Page) -> None:
    """The first destination: what waits, what was refused."""
    page.goto("/sources")
    page.get_by_test_id("destination-row").first.get_by_role("link").first.click()


def audit(page: Page) -> None:
    """The trail with its chains verified."""
    page.goto("/audit?verify=1")


if __name__ == "__main__":
    main()
