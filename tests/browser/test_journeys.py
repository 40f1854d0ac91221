"""Journeys in a real browser: a clinician answers a score; a run becomes the model in use; a screen lives."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import Site
from tests.web.clinic import PASSWORD

GREY_AND_COLOUR = """canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let coloured = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) {
    sum += data[i];
    if (Math.abs(data[i] - data[i + 2]) > 12) coloured += 1;
  }
  return { coloured, mean: sum / (data.length / 4) };
}"""


def test_sign_in_worklist_panel_overlay_override(enter: Callable[[str], Page], site: Site) -> None:
    page = enter("clinician")
    expect(page).to_have_url(re.compile("/worklist$"))
    page.get_by_role("link", name="Sommer, Clara", exact=True).click()
    expect(page.get_by_test_id("risk-score")).to_have_text("52 %")

    canvas = page.get_by_test_id("img-canvas")
    expect(canvas).to_be_visible()
    assert canvas.evaluate(GREY_AND_COLOUR)["coloured"] == 0  # the heat map is off at first
    toggle = page.get_by_test_id("overlay-toggle")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("h")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    for _ in range(100):  # the heat map is fetched when it is asked for
        if (shown := canvas.evaluate(GREY_AND_COLOUR)["coloured"]) > 1000:
            break
        page.wait_for_timeout(100)
    assert shown > 1000
    page.get_by_test_id("overlay-opacity").fill("0")
    assert canvas.evaluate(GREY_AND_COLOUR)["coloured"] == 0
    toggle.click()
    before = canvas.evaluate(GREY_AND_COLOUR)["mean"]
    page.get_by_test_id("wl").fill("40")
    assert canvas.evaluate(GREY_AND_COLOUR)["mean"] > before + 20  # a lower level is brighter
    page.get_by_role("button", name="Invert").click()
    assert canvas.evaluate(GREY_AND_COLOUR)["mean"] < before

    page.get_by_label("Does not apply to this patient").check()
    page.get_by_label("Comment (optional)").fill("known, palliative")
    page.get_by_test_id("override").click()
    expect(page.get_by_text("Your disagreement is recorded.")).to_be_visible()
    expect(page.get_by_test_id("answers")).to_contain_text(
        "overridden: does not apply to this patient by clinician"
    )
    expect(toggle).to_be_visible()  # only the card was replaced
    page.get_by_test_id("undo").click()
    expect(page.get_by_text("Taken back.")).to_be_visible()


def test_cine_steps_and_plays(enter: Callable[[str], Page], site: Site) -> None:
    page = enter("clinician")
    page.goto(f"/patients/{site.ids['patient']}/risk")
    frame, play = page.get_by_test_id("cine-frame"), page.get_by_test_id("cine-play")
    expect(frame).to_have_text("Frame 1 of 24, 0 ms")  # starts paused
    page.get_by_role("button", name="One frame on").click()
    expect(frame).to_have_text("Frame 2 of 24, 42 ms")
    page.keyboard.press("ArrowLeft")
    expect(frame).to_have_text("Frame 1 of 24, 0 ms")
    page.get_by_role("button", name="Most weighted").click()
    expect(frame).to_have_text("Frame 11 of 24, 420 ms")
    play.click()
    expect(frame).not_to_have_text("Frame 11 of 24, 420 ms")
    play.click()
    expect(play).to_have_text("Play")


def test_a_row_changes_by_itself_and_says_when_order_would(enter: Callable[[str], Page], site: Site) -> None:
    page = enter("clinician")
    page.goto("/worklist?category=low")
    row = page.locator("[data-testid=worklist-row]").last
    patient = row.get_attribute("data-patient")
    assert patient
    expect(page.locator("body")).to_have_attribute("data-stream", "open")
    page.locator("#search").focus()
    site.act("rise", patient, "0.6123")
    changed = page.locator(f"#row-{patient}")
    expect(changed).to_contain_text("61 %", timeout=10_000)
    expect(page.locator("#order-changed")).to_contain_text("1 patient has changed category")
    expect(page.locator("#search")).to_be_focused()


def test_panel_updates_but_keeps_what_is_being_typed(enter: Callable[[str], Page], site: Site) -> None:
    page = enter("clinician")
    page.goto(f"/patients/{site.ids['risen']}/risk")
    expect(page.locator("body")).to_have_attribute("data-stream", "open")
    comment = page.get_by_label("Comment (optional)")
    whence = page.locator("#about details")
    whence.locator("summary").click()
    of_before = whence.text_content() or ""
    comment.fill("half a thou")
    said = page.locator("#about .mono").all_text_contents()
    site.act("rise", site.ids["risen"], "0.777")
    expect(page.get_by_test_id("risk-score")).to_have_text("78 %", timeout=10_000)
    expect(page.locator("#about .mono")).not_to_have_text(said)
    expect(comment).to_have_value("half a thou")
    expect(whence).not_to_have_text(of_before)  # the assessment it names is the one whose number is shown
    expect(whence).to_have_attribute("open", "")


def test_paper_keeps_category_and_caution_and_leaves_out_what_cannot_be_pressed(
    enter: Callable[[str], Page], site: Site
) -> None:
    """Browsers print no grounds: white words on a dark chip would be gone."""
    page = enter("clinician")
    page.goto(f"/patients/{site.ids['patient']}/risk")
    expect(page.locator("[data-role=controls]").first).to_be_visible()
    page.emulate_media(media="print")
    expect(page.get_by_test_id("risk-category")).to_have_css("color", "rgb(16, 34, 47)")
    expect(page.locator(".label-strong", has_text="Research use only").first).to_be_visible()
    expect(page.locator("footer")).to_be_visible()
    for pressed in page.locator("main button, main input, main select").all():
        expect(pressed).to_be_hidden()


def test_without_script_text_and_answering_work(
    browser_name: str, enter: Callable[[str], Page], site: Site
) -> None:
    signed_in = enter("clinician")
    context = signed_in.context.browser.new_context(  # type: ignore[union-attr]
        base_url=site.url, java_script_enabled=False, storage_state=signed_in.context.storage_state()
    )
    page = context.new_page()
    page.goto("/worklist?state=Stale")
    page.locator("[data-testid=worklist-row] a.who-name").first.click()
    expect(page.get_by_test_id("risk-score")).to_be_visible()
    expect(page.get_by_test_id("contribution-sum")).to_be_visible()
    page.get_by_test_id("ack").click()
    expect(page.get_by_text("Acknowledged.", exact=True)).to_be_visible()
    expect(page.get_by_test_id("answers")).to_contain_text("acknowledged by clinician")
    context.close()


# Last: afterwards another model is in use, which has scored nobody yet.
def test_run_progress_candidate_request_second_person_in_use(
    enter: Callable[[str], Page], site: Site
) -> None:
    admin = enter("admin")
    admin.goto("/models/runs/new")
    admin.get_by_label("Admission to intensive care within 14 days").check()
    admin.get_by_role("button", name="Check").click()
    expect(admin.get_by_test_id("run-preview")).to_be_visible()

    admin.goto(f"/models/runs/{site.ids['run']}")
    bar = admin.get_by_role("progressbar")
    expect(bar).to_have_attribute("value", "30")
    expect(admin.locator("body")).to_have_attribute("data-stream", "open")
    site.act("progress", site.ids["run"], "0.7")
    expect(bar).to_have_attribute("value", "70", timeout=10_000)
    expect(admin.get_by_role("heading", name="Calibrating")).to_be_visible()
    made = site.act("finish", site.ids["run"])
    admin.get_by_role("link", name=f"Open {made['label']}").click(timeout=10_000)
    expect(admin.get_by_test_id("metric-auroc")).to_contain_text("0.84")
    expect(admin.get_by_test_id("approve")).to_have_count(0)
    admin.get_by_label("Why should this version be put to use?").fill("Better on this year")
    admin.get_by_test_id("promote").click()
    expect(admin.get_by_text("Another person decides.")).to_be_visible()

    approver = enter("approver")
    approver.get_by_role("link", name=made["label"]).first.click()
    approver.get_by_label("Your password").fill("not it")
    approver.get_by_test_id("approve").click()
    expect(approver.get_by_text("Nothing was approved.")).to_be_visible()
    approver.get_by_label("Your password").fill(PASSWORD)
    approver.get_by_test_id("approve").click()
    expect(approver.get_by_text(f"{made['label']} is now in use.")).to_be_visible()
    expect(approver.locator(".status")).to_contain_text(f"Model in use: {made['label']}")
    assert site.act("active", "icu-admission") == {"label": made["label"]}
    approver.get_by_text("Roll back ICU admission").click()
    approver.get_by_label("Why?").fill("Back to the one the other tests look at")
    approver.get_by_label("Your password").fill(PASSWORD)
    approver.get_by_test_id("rollback").click()
    # The files of the earlier model of this ward are gone: what is put to use must be what was measured.
    expect(approver.get_by_role("heading", name="That is no longer possible")).to_be_visible()
