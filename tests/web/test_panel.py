"""The panel says exactly what was stored, labels what must be labelled, and lets nobody in through a name."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from PIL import Image

from cds.errors import NotAllowed, NotFound
from cds.hooks.models import CardShown, Feedback
from cds.hooks.queries import list_said
from cds.patients import access, sources
from cds.patients.models import Note, Patient
from cds.registry.models import ActiveModel, ModelVersion
from cds.risk.models import HeatMap, Response, RiskAssessment, RiskPrediction
from cds.risk.responding import REASON_SYSTEM
from tests.web import clinic
from tests.web.clinic import BY, Clinic, assessment, version
from web import words

NASTY = '<script>alert(1)</script> O\'Hara & "Söhne"'


def text_of(client: Client, patient: Patient, part: str = "") -> str:
    answer = client.get(f"/patients/{patient.pk}/risk{part}")
    assert answer.status_code == 200
    return str(answer.content.decode())


def values(page: str, testid: str) -> list[float]:
    """The exact numbers beside what is rounded for reading."""
    tags = re.findall(rf'<data[^>]*data-testid="{testid}"[^>]*>', page)
    return [float(re.search(r'value="([^"]+)"', tag)[1]) for tag in tags]  # type: ignore[index]


def newest(patient: Patient) -> RiskPrediction:
    return RiskPrediction.objects.filter(assessment__patient=patient).order_by("-assessment__as_of")[0]


def test_a_paused_source_is_said_beside_every_number(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client, patient = sign_in("clinician"), ward.patients[0]
    assert 'data-testid="paused"' not in text_of(client, patient)
    sources.pause(patient.source, by=BY, now=ward.now)
    page = text_of(client, patient)
    assert 'data-testid="paused"' in page
    assert "somebody has paused it" in page


def test_what_was_said_in_the_ehr_is_seen_by_who_may_see_the_patient(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    patient, other = ward.patients[0], ward.patients[1]
    lactate = str(uuid.uuid4())
    card = CardShown.objects.create(
        service="tessera-icu-admission-order-sign", hook_instance="one", kind="order", patient=patient,
        prediction=newest(patient), outcome="icu-admission", version=ward.version, shown_at=ward.now,
        suggestions={lactate: "Order: Lactate"},
    )  # fmt: skip
    said: list[dict[str, object]] = [
        {"outcome": "overridden", "comment": "on the way to theatre <b>"},
        {"outcome": "overridden", "reason_code": "local-7", "reason_system": "urn:ehr"},
        {"outcome": "accepted", "accepted_suggestions": [lactate]},
        # an answer of the panel, and one that says nothing
        {"outcome": "overridden", "reason_code": "patient-refuses", "reason_system": REASON_SYSTEM,
         "comment": "answered"},
        {"outcome": "accepted"},
    ]  # fmt: skip
    unscored = CardShown.objects.create(
        service="tessera-icu-admission-patient-view", hook_instance="two", kind="not-scored", patient=patient,
        outcome="icu-admission", version=ward.version, shown_at=ward.now,
    )  # fmt: skip
    Feedback.objects.create(
        card=unscored, outcome="overridden", outcome_at=ward.now, received_at=ward.now,
        reason_code="patient-refuses", reason_system=REASON_SYSTEM,
    )  # fmt: skip
    for minutes, one in enumerate(said):
        at = ward.now - timedelta(minutes=minutes)
        Feedback.objects.create(card=card, outcome_at=at, received_at=ward.now, **one)
    page = text_of(sign_in("clinician"), patient)
    listed = re.search(r'data-testid="said-in-ehr">(.*?)</ul>', page, re.S)
    assert listed is not None
    assert listed[1].count("<li>") == 4
    assert "<strong>Overridden</strong>: the patient declines," in listed[1], "there was no score to answer"
    assert "on the way to theatre &lt;b&gt;" in listed[1]
    assert "code local-7" in listed[1]
    assert "Order: Lactate" in listed[1]
    assert "(card at order-sign)" in listed[1]
    assert "answered" not in listed[1]
    assert "said-in-ehr" not in text_of(sign_in("clinician"), other)
    other.merged_into = patient
    other.save(update_fields=["merged_into"])
    first = ward.patients[2]
    first.merged_into = other  # into one who was merged later
    first.save(update_fields=["merged_into"])
    for whose in (other, first):
        CardShown.objects.update(patient=whose)
        assert "on the way to theatre" in text_of(sign_in("clinician"), patient)
    stranger = User.objects.create_user("elsewhere")
    access.give_role(stranger, access.Role.CLINICIAN)
    with pytest.raises(NotFound):
        list_said(stranger, patient, "icu-admission")
    with pytest.raises(NotAllowed):
        list_said(ward.people["approver"], patient, "icu-admission")


def test_numbers_on_the_screen_are_the_stored_ones(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    stored = newest(ward.patients[0])
    page = text_of(sign_in("clinician"), ward.patients[0])
    assert values(page, "risk-score") == [stored.risk] == [0.5234567]
    interval = re.search(r'data-testid="risk-interval".*?</span>', page, re.S)
    assert interval is not None
    assert [float(v) for v in re.findall(r'<data value="([^"]+)"', interval[0])] == [stored.low, stored.high]
    assert ">52 %</data>" in page
    assert "52 in 100 patients like this are admitted to intensive care within 14 days." in page
    assert "Very high" in page
    assert "22 % of the patients the model learned from" in page
    assert "At 25 % and above" in page


def test_contributions_on_the_screen_sum_to_the_risk(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = text_of(sign_in("clinician"), ward.patients[0])
    stored = newest(ward.patients[0])
    bars = {
        m: float(v)
        for m, v in re.findall(
            r'data-testid="modality-(\w+)">.*?<data class="value-right" value="([^"]+)"', page
        )
        if m != "genomics"
    }
    assert set(bars) == {"series", "image", "cine", "text", "tabular"}
    assert stored.base_rate + sum(bars.values()) == pytest.approx(stored.risk, abs=1e-9)
    assert "Not attributed" not in page
    shown = [
        float(p.replace("−", "-"))
        for p in re.findall(r'<data class="value-right" value="[^"]+">([+−][\d.]+)</data></li>', page)
    ]
    assert round(22.1 + sum(shown[:5]), 1) == pytest.approx(52.3, abs=0.3)  # as printed, within rounding


def test_a_remainder_is_shown_not_hidden(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    stored = newest(ward.patients[0])
    stored.explanation["contributions"][0]["points"] -= 0.05
    stored.save()
    assert "Not attributed" in text_of(sign_in("clinician"), ward.patients[0])


def test_drivers_show_raw_values_units_and_times(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = text_of(sign_in("clinician"), ward.patients[0])
    lactate = page[page.index('<div class="driver-name">Lactate') :]
    lactate = lactate[: lactate.index("</li>")]
    assert "4.1 mmol/L" in lactate
    assert "above range" in lactate
    assert "0.5 to 2.2 mmol/L" in lactate
    assert "5 source values" in lactate
    assert "Observation/2524-7-4" in lactate
    assert lactate.count("<time datetime=") >= 6


def test_a_first_model_is_not_compared_with_one_before(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    client, patient = sign_in("clinician"), ward.patients[0]
    assert "may differ from those of the one before" in text_of(client, patient)
    ActiveModel.objects.update(previous=None)
    page = text_of(client, patient)
    assert "There was none before it." in page
    assert "may differ" not in page


def test_frames_that_all_weigh_alike_have_no_peak(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client, patient = sign_in("clinician"), ward.patients[0]
    assert "Most weighted" in text_of(client, patient)
    scored = newest(patient).assessment
    for kept in scored.frame_weights.values():
        kept["weights"] = [1 / len(kept["weights"])] * len(kept["weights"])
    scored.save(update_fields=["frame_weights"])
    page = text_of(client, patient)
    assert "the model kept weighed: all alike" in page
    assert "Most weighted" not in page
    assert 'class="peak"' not in page


def test_labels_of_caution(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = text_of(sign_in("clinician"), ward.patients[0])
    for said in (
        "Research use only",
        "simulated patient",
        "simulated data",
        "412 simulated patients only",
        "Not for primary diagnosis",
        "not a finding and not a boundary",
        "association, not cause",
        "This model is new",
    ):
        assert said in page, said


def test_titles_and_addresses_name_nobody(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    for patient in ward.patients[:3]:
        page = text_of(sign_in("clinician"), patient)
        title = re.search(r"<title>(.*?)</title>", page)
        assert title is not None
        addresses = " ".join(
            re.findall(r'(?:href|src|action|hx-get|hx-post|data-heat|data-src)="([^"]*)"', page)
        )
        for secret in (patient.family, patient.given, "MRN", patient.resource_id + '"'):
            assert secret not in title[1]
            assert secret not in addresses


def test_search_words_stay_out_of_addresses(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = sign_in("clinician").post("/worklist", {"search": "Sommer"}).content.decode()
    assert "Sommer, Clara" in page
    assert "1 patient found" in page
    assert "Sommer" not in " ".join(re.findall(r'(?:href|action|hx-get)="([^"]*)"', page))


def test_names_and_notes_are_text_never_markup(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    patient = ward.patients[0]
    Patient.objects.filter(pk=patient.pk).update(family=NASTY, given="<b>x</b>")
    Note.objects.filter(patient=patient).update(title=NASTY, author=NASTY)
    stored = newest(patient)
    stored.explanation["drivers"][-2]["text"] = NASTY
    stored.explanation["summary"] = NASTY
    stored.save()
    client = sign_in("clinician")
    for page in (text_of(client, patient), client.get("/worklist").content.decode()):
        assert "<script>alert" not in page
        assert "<b>x</b>" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_policy_headers(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("clinician")
    answer = client.get(f"/patients/{ward.patients[0].pk}/risk")
    policy = answer["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer["Cache-Control"] == "no-store"
    assert client.get(f"/patients/{ward.patients[0].pk}/risk/score")["Cache-Control"] == "no-store"
    page = answer.content.decode()
    assert not re.search(r"<[^>]+\sstyle=", page)
    assert not re.search(r"<[^>]+\son\w+=", page)
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    assert '"allowEval":false' in page


def test_a_fresh_score_brings_its_outcome_and_its_source_along(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    client, patient = sign_in("clinician"), ward.patients[0]
    another = version(4, now=ward.now)
    ModelVersion.objects.filter(pk=another.pk).update(outcomes=["death"], name="death")
    ActiveModel.objects.create(outcome="death", version=another, since=ward.now)
    page = text_of(client, patient)
    assert "hx-swap-oob" not in page
    part = client.get(f"/patients/{patient.pk}/risk/score").content.decode()
    for known in ("outcomes", "about"):
        assert re.search(rf'id="{known}"[^>]* hx-swap-oob="true"', part)
        assert page.count(f'id="{known}"') == 1
    assert str(newest(patient).assessment_id) in part[part.index('id="about"') :]


@pytest.mark.parametrize(
    ("number", "state", "says"),
    [
        (1, "Abstained", "Outside the age range the model knows (18 to 95)."),
        (2, "Stale", "Newer data have arrived; not yet rescored."),
        (3, "Failed", "The worker ran out of memory three times."),
        (4, "Updating", "Not yet known: the first score of this model is being computed."),
        (5, "Partial", "Still being read: image."),
        (6, "Current", "Looking back: this is what the record said on"),
    ],
)
def test_each_state_says_what_it_is(
    number: int, state: str, says: str, ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    page = text_of(sign_in("clinician"), ward.patients[number])
    assert re.search(rf'data-testid="state">{state}<', page)
    assert says in page
    if state in {"Abstained", "Failed", "Updating"}:
        assert 'data-testid="not-scored"' in page
        assert 'data-testid="risk-score"' not in page
        assert "chip-low" not in page
    if state == "Stale":
        assert 'class="stack is-stale"' in page
    if state == "Failed":
        assert ">Try again</button>" in page


def test_without_a_model_nothing_is_claimed(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    from cds.registry.models import ActiveModel

    ActiveModel.objects.all().delete()
    client = sign_in("clinician")
    assert "No model is in use, so nothing is known" in text_of(client, ward.patients[0])
    assert client.get("/worklist").status_code == 200


def test_what_was_told_of_an_answer_stays_when_its_card_is_fetched_again(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    """The answer itself is news, for which the page fetches the card at once: nobody could read it."""
    client, there = sign_in("clinician"), f"/patients/{ward.patients[0].pk}"
    act = f"{there}/risk/act"
    page = client.get(f"{there}/risk").content.decode()
    said = client.post(_action(page, "acknowledge"), headers={"HX-Request": "true"}).content.decode()
    again = client.get(act, headers={"X-Live": "1"}).content.decode()
    for shown in (said, again):
        assert 'role="status"><p>Acknowledged.</p>' in shown
    client.post(_action(again, "undo"), headers={"HX-Request": "true"})
    assert 'role="status"><p>Taken back.</p>' in client.get(act).content.decode()
    other = Client()
    other.force_login(clinic.person("other", access.Role.CLINICIAN, unit="Ward 4"))
    assert 'role="status"' not in other.get(act).content.decode()
    Response.objects.update(at=timezone.now() - timedelta(seconds=11))
    assert 'role="status"' not in client.get(act).content.decode()


def _action(page: str, does: str) -> str:
    found = re.search(rf'action="(/patients/[^"]+/{does})"', page)
    assert found is not None
    return found[1]


def test_acknowledge_disagree_and_undo_without_script(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    patient, client = ward.patients[0], sign_in("clinician")
    prediction = newest(patient)
    base = f"/patients/{patient.pk}/responses/{prediction.pk}"
    assert client.post(f"{base}/acknowledge", follow=True).status_code == 200
    page = text_of(client, patient)
    undo = re.search(r'action="(/patients/[^"]+/undo)"', page)
    assert undo is not None
    client.post(undo[1])
    assert list(Response.objects.order_by("at").values_list("kind", flat=True)) == ["acknowledged", "undone"]
    refused = client.post(f"{base}/override", {"comment": "no reason chosen"})
    assert (refused.status_code, "Choose a reason." in refused.content.decode()) == (400, True)
    client.post(f"{base}/override", {"reason": "cds-not-applicable", "comment": "<i>known</i>"})
    given = Response.objects.latest("at")
    assert (given.kind, given.reason_code, given.by) == (
        "overridden",
        "cds-not-applicable",
        ward.people["clinician"],
    )
    assert "&lt;i&gt;known&lt;/i&gt;" in text_of(client, patient)


def test_with_htmx_only_the_card_comes_back(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    patient = ward.patients[0]
    address = f"/patients/{patient.pk}/responses/{newest(patient).pk}/acknowledge"
    answer = sign_in("clinician").post(address, headers={"HX-Request": "true"})
    page = answer.content.decode()
    assert "<html" not in page
    assert "Acknowledged." in page
    assert 'data-testid="undo"' in page


def test_a_failed_score_can_be_tried_again(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    failed = RiskAssessment.objects.get(work_state="failed")
    answer = sign_in("clinician").post(f"/patients/{failed.patient_id}/rescore", {"failed": str(failed.pk)})
    assert answer.status_code == 302
    failed.refresh_from_db()
    assert failed.work_state == "queued"


def test_a_heat_map_is_transparent_where_influence_is_weak(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    held = HeatMap.objects.get()
    answer = sign_in("clinician").get(f"/patients/{ward.patients[0].pk}/heatmaps/{held.pk}.png")
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (28, 28, 4)
    assert picture[0, 0, 3] == 0
    assert picture[17, 18].tolist() == [254, 232, 56, 255]


def test_a_frame_is_what_is_stored(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    from cds.studies import clips
    from cds.studies.models import Series

    cine = Series.objects.get(frames__gt=1)
    answer = sign_in("clinician").get(f"/patients/{ward.patients[0].pk}/series/{cine.pk}/frames/7.png")
    assert answer["Content-Type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), clips.frame(cine, 7))


def test_trend_leaves_gaps_and_marks_another_model(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    patient, now = ward.patients[7], ward.now
    for hours, risk in ((3.0, 0.2), (2.0, 0.22), (40.0, 0.1)):
        assessment(patient, ward.version, now=now, risk=risk, as_of=now - timedelta(hours=hours))
    page = text_of(sign_in("clinician"), patient)
    chart = page[page.index('data-testid="risk-trend"') :]
    chart = chart[: chart.index("</svg>")]
    assert chart.count('class="band"') == 1  # the three of today; the one of yesterday stands alone
    assert chart.count('class="whisker"') == 1
    assert "model-change" in text_of(sign_in("clinician"), ward.patients[0])


@pytest.mark.parametrize(
    ("risk", "text"),
    [
        (0.9991, "More than 99 in 100"),
        (0.23, "23 in 100"),
        (0.004, "4 in 1,000"),
        (0.0, "Fewer than 1 in 1,000"),
    ],
)
def test_in_words_there_is_no_certainty_either(risk: float, text: str) -> None:
    assert words.in_hundred(risk) == text


def test_a_quantity_used_twice_is_one_driver(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    stored = newest(ward.patients[0])
    lactate = stored.explanation["drivers"][0]
    stored.explanation["drivers"].append({**lactate, "modality": "tabular", "points": 0.011})
    stored.save()
    page = text_of(sign_in("clinician"), ward.patients[0])
    assert page.count('<div class="driver-name">Lactate') == 1
    assert f'<data class="value-right" value="{lactate["points"] + 0.011}"' in page
    assert "course +8.3, latest value +1.1" in page


@pytest.mark.parametrize(
    ("risk", "text"),
    [
        (0.0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.004, "0.4 %"),
        (0.234, "23 %"),
        (0.995, "99.5 %"),
        (1.0, "100 %"),
        (None, "–"),
    ],
)
def test_a_risk_is_never_rounded_to_certainty(risk: float | None, text: str) -> None:
    assert words.percent(risk) == text
