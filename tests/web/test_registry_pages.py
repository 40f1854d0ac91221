"""Starting a run, the second person, rolling back, and what a model's page shows of its report."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.test import Client
from django.utils import timezone

from cds.audit import recording
from cds.jobs.models import WorkState
from cds.registry import bundles, promoting
from cds.registry.models import ActiveModel, CohortMember, ModelVersion, Promotion, TrainingRun
from tests.web import clinic
from tests.web.clinic import PASSWORD, Clinic


@pytest.fixture
def candidate(ward: Clinic, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    """A candidate whose promotion the admin has asked for; its files count as unchanged."""
    monkeypatch.setattr(bundles, "check_unchanged", lambda version: None)
    version = ModelVersion.objects.get(number=3)
    admin = ward.people["admin"]
    promoting.request(
        version, reason="Better on this year", by=recording.person(admin), user=admin, now=timezone.now()
    )
    return version


def test_a_report_is_shown_with_its_tables(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = sign_in("approver").get(f"/models/{ward.version.pk}").content.decode()
    for name in ("auroc", "auprc", "brier", "calibration-slope", "calibration-intercept", "ece"):
        assert f'data-testid="metric-{name}"' in page
    assert "0.84" in page
    assert "95 %: 0.77 to 0.91" in page
    for title in ("ROC curve", "Calibration for", "Precision-recall curve"):
        assert re.search(rf'role="img" aria-label="{title}', page)
    assert page.count("Show as table") == 3
    for said in (
        "Record only",
        "Logistic regression on the record",
        "too few events",
        "Only 27 events",
        "−0.05",
        "Roll back ICU admission",
    ):
        assert said in page


def test_a_report_with_holes_shows_holes(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    report = {
        "outcomes": {"icu-admission": {"n": 9, "events": 0, "auroc": None, "calibration": {"bins": []}}}
    }
    ModelVersion.objects.filter(pk=ward.version.pk).update(report=report)
    assert "not measured" in sign_in("admin").get(f"/models/{ward.version.pk}").content.decode()
    ModelVersion.objects.filter(pk=ward.version.pk).update(report={})
    assert "No report was stored" in sign_in("admin").get(f"/models/{ward.version.pk}").content.decode()
    assert sign_in("admin").get("/models").status_code == 200


def test_a_candidate_stands_beside_the_version_in_use(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    """Figures of the same moments are subtracted; of other patients they are not, and that is said."""
    candidate, client = ModelVersion.objects.get(number=3), sign_in("approver")
    report = clinic.report()
    report["outcomes"]["icu-admission"]["auroc"] = {"value": 0.79, "low": 0.7, "high": 0.87}
    ModelVersion.objects.filter(pk=candidate.pk).update(report=report)
    page = client.get(f"/models/{candidate.pk}").content.decode()
    beside = page[page.index('id="beside"') : page.index('id="o-icu-admission"')]
    assert "icu-admission v2</a>" in beside
    assert beside.count('data-testid="beside-row"') == 6
    assert "On whom one of them was measured is not known" in beside
    assert "Difference" not in beside

    run = clinic.training_run(ward.now, by=ward.people["admin"])
    ModelVersion.objects.filter(pk=candidate.pk).update(run=run)
    assert ward.version.run is not None
    for cohort in (run.cohort, ward.version.run.cohort):
        for patient in ward.patients[:4]:
            CohortMember.objects.create(
                cohort=cohort, patient=patient, as_of=ward.now, labels={"icu-admission": 0}, split="held_out"
            )
    page = client.get(f"/models/{candidate.pk}").content.decode()
    assert "Both were measured on the same patients at the same moments" in page
    assert '<td class="num">−0.05</td>' in page
    assert '<td class="num">0.00</td>' in page, "no sign where nothing differs"

    CohortMember.objects.filter(cohort=run.cohort, patient=ward.patients[0]).update(split="train")
    page = client.get(f"/models/{candidate.pk}?beside={ward.version.pk}").content.decode()
    assert "Not measured on the same patients: 3 of the moments held out are the same, of 3 and 4." in page
    assert '<td class="num">−0.05</td>' not in page

    before = client.get(f"/models/{ward.version.pk}").content.decode()
    assert "icu-admission v1</a>" in before[before.index('id="beside-title"') :][:300], (
        "where to roll back to"
    )
    asked = client.get(f"/models/{ward.version.pk}?beside={candidate.pk}").content.decode()
    assert "icu-admission v3</a>" in asked[asked.index('id="beside-title"') :][:300]
    assert client.get(f"/models/{ward.version.pk}?beside=nonsense").status_code == 200


def test_versions_asked_about_the_same_patients_say_how_far_apart_they_are(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    candidate, client = ModelVersion.objects.get(number=3), sign_in("approver")
    auroc, brier = (
        {"value": 0.0214, "low": 0.002, "high": 0.041},
        {"value": -0.0031, "low": -0.008, "high": 0.001},
    )
    apart = {"n": 120, "patients": 96, "events": 14, "auroc": auroc, "brier": brier}
    told = {
        "version": str(ward.version.pk),
        "label": ward.version.label,
        "outcomes": {"icu-admission": apart},
    }

    def shown(version: ModelVersion, beside: ModelVersion) -> str:
        page = client.get(f"/models/{version.pk}?beside={beside.pk}").content.decode()
        start = page.find('data-testid="paired"')
        return page[start : page.index("</table>", start)] if start >= 0 else ""

    assert shown(candidate, ward.version) == "", "it was never asked"
    report = clinic.report()
    ModelVersion.objects.filter(pk=candidate.pk).update(report={**report, "beside_active": [told]})
    ours = shown(candidate, ward.version)
    assert "120 moments of 96 patients, 14 events" in ours
    for said in (
        "+0.021",
        "+0.002 to +0.041",
        "better, beyond",
        "−0.003",
        "−0.008 to +0.001",
        "may be chance",
    ):
        assert said in ours, said
    assert "icu-admission v3 minus icu-admission v2" in ours
    theirs = shown(ward.version, candidate)
    for said in (
        "−0.021",
        "−0.041 to −0.002",
        "worse, beyond chance",
        "icu-admission v2 minus icu-admission v3",
    ):
        assert said in theirs, said
    apart["auroc"], apart["brier"] = (
        {"value": None, "low": None, "high": None},
        {"value": 0.02, "low": 0.01, "high": 0.03},
    )
    ModelVersion.objects.filter(pk=candidate.pk).update(report={**report, "beside_active": [told]})
    assert "not known: one answer only" in (ours := shown(candidate, ward.version))
    assert "worse, beyond chance" in ours, "a higher Brier score is worse"
    silent = {**told, "outcomes": {}, "note": "icu-admission v2 could not be asked: it is gone"}
    ModelVersion.objects.filter(pk=candidate.pk).update(report={**report, "beside_active": [silent]})
    assert "Not asked about the same patients: icu-admission v2 could not be asked: it is gone." in shown(
        candidate, ward.version
    )


def test_the_person_who_asked_cannot_approve(
    ward: Clinic, candidate: ModelVersion, sign_in: Callable[[str], Client]
) -> None:
    from cds.patients import access

    access.give_role(ward.people["admin"], access.Role.APPROVER)
    client = sign_in("admin")
    assert 'data-testid="approve"' not in client.get(f"/models/{candidate.pk}").content.decode()
    waiting = Promotion.objects.get(approved=None)
    answer = client.post(f"/models/promotions/{waiting.pk}/approve", {"password": PASSWORD})
    assert answer.status_code == 403
    assert ActiveModel.objects.get().version == ward.version


def test_a_second_person_approves_with_their_password(
    ward: Clinic, candidate: ModelVersion, sign_in: Callable[[str], Client]
) -> None:
    client, waiting = sign_in("approver"), Promotion.objects.get(approved=None)
    assert "“Better on this year”" in client.get("/models").content.decode()
    assert 'data-testid="approve"' in client.get(f"/models/{candidate.pk}").content.decode()
    wrong = client.post(f"/models/promotions/{waiting.pk}/approve", {"password": "guess"})
    assert (wrong.status_code, ActiveModel.objects.get().version) == (400, ward.version)
    assert "Nothing was approved." in wrong.content.decode()
    right = client.post(f"/models/promotions/{waiting.pk}/approve", {"password": PASSWORD})
    assert right.status_code == 302
    assert ActiveModel.objects.get().version == candidate


def test_roll_back_needs_reason_and_password(
    ward: Clinic, candidate: ModelVersion, sign_in: Callable[[str], Client]
) -> None:
    client = sign_in("approver")
    ask = {"outcome": "icu-admission", "reason": "Too many alerts", "password": PASSWORD}
    assert client.post("/models/rollback", {**ask, "password": "x"}).status_code == 400
    assert client.post("/models/rollback", {**ask, "reason": " "}).status_code == 400
    assert ActiveModel.objects.get().version.number == 2
    assert client.post("/models/rollback", ask).status_code == 302
    assert ActiveModel.objects.get().version.number == 1


def test_a_run_is_checked_before_it_starts(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("admin")
    asked = "/models/runs/new?outcomes=icu-admission&fusion=gated&accumulate=4&check=1"
    page = client.get(asked).content.decode()
    assert 'data-testid="run-preview"' in page
    assert "<option selected>gated</option>" in page
    assert '<input type="hidden" name="accumulate" value="4">' in page, "what was checked is what is started"
    assert "A run of this would fail." in page  # nobody was admitted in this ward
    assert 'data-testid="start-run"' not in page
    assert TrainingRun.objects.count() == 1
    bad = client.post("/models/runs/new", {"outcomes": ["icu-admission"], "epochs": "-3"})
    assert (bad.status_code, "must lie in 1 to 1000" in bad.content.decode()) == (400, True)
    good = client.post(
        "/models/runs/new",
        {"outcomes": ["icu-admission"], "epochs": "3", "accumulate": "2", "note": "<b>monthly</b>"},
    )
    run = TrainingRun.objects.get(work_state=WorkState.QUEUED)
    assert run.config == {"epochs": 3, "accumulate": 2}
    assert good["Location"] == f"/models/runs/{run.pk}"
    page = client.get(good["Location"]).content.decode()
    assert "&lt;b&gt;monthly&lt;/b&gt;" in page
    assert "Waiting for a worker" in page


def test_a_private_run_is_asked_for_in_the_form(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("admin")
    asked = {"outcomes": ["icu-admission"], "dp_noise": "2.75", "dp_delta": "1e-6"}
    page = client.get("/models/runs/new", {**asked, "check": "1"}).content.decode()
    assert page.count('name="dp_noise"') == 2  # to be seen, and kept for the start
    assert page.count('value="2.75"') == 2
    bad = client.post("/models/runs/new", {**asked, "fusion": "gated"})
    assert (bad.status_code, "fusion must be late" in bad.content.decode()) == (400, True)
    client.post("/models/runs/new", asked)
    run = TrainingRun.objects.get(work_state=WorkState.QUEUED)
    assert run.config == {"dp_noise": 2.75, "dp_delta": 1e-6}
    assert "Privacy noise" in client.get(f"/models/runs/{run.pk}").content.decode()


def test_a_run_at_work_shows_where_it_is(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    run = clinic.training_run(ward.now, by=ward.people["admin"], state=WorkState.RUNNING, fraction=0.4)
    client = sign_in("admin")
    page = client.get(f"/models/runs/{run.pk}/progress").content.decode()
    assert 'value="40"' in page
    assert "Training the fusion head" in page
    assert "min left" in page
    assert "Loss of training over 16 epochs" in page
    assert client.post(f"/models/runs/{run.pk}/cancel").status_code == 302
    run.refresh_from_db()
    assert run.cancel_requested
    assert sign_in("approver").post(f"/models/runs/{run.pk}/cancel").status_code == 403


def test_audit_page_lists_filters_and_verifies(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    sign_in("clinician").get(f"/patients/{ward.patients[0].pk}/risk")
    client = sign_in("admin")
    page = client.get("/audit?action=patient.view").content.decode()
    assert page.count('data-testid="audit-row"') == 1
    assert "Sommer" not in page
    verified = client.get("/audit?verify=1").content.decode()
    assert re.search(r"Verified: all \d+ events", verified)
    assert client.get("/audit?since=nonsense&page=x&patient=zz").status_code == 200


FAIR = {
    "threshold": 0.25,
    "verdict": "over the limit",
    "groups": [
        {
            "attribute": "sex",
            "value": "female",
            "n": 90,
            "events": 30,
            "note": "",
            **{
                name: {"value": 0.71, "low": 0.6, "high": 0.8}
                for name in ("auroc", "sensitivity", "ppv", "calibration")
            },
        },
        {"attribute": "sex", "value": "other", "n": 9, "events": 2, "note": "too few", "auroc": None},
    ],
    "gaps": [
        {
            "attribute": "sex",
            "figure": "auroc",
            "between": ["female", "male"],
            "value": -0.15,
            "clear": True,
            "over": True,
            "said": "sex: AUROC of female minus male is -0.15 [-0.20, -0.10]; limit 0.10",
        }
    ],
}


def test_fairness_is_shown_and_a_gap_over_its_limit_keeps_a_version_from_use(
    ward: Clinic, sign_in: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "check_unchanged", lambda version: None)
    version = ModelVersion.objects.get(number=3)
    report = {"outcomes": {"icu-admission": {"n": 99, "events": 32}}, "fairness": {"icu-admission": FAIR}}
    ModelVersion.objects.filter(pk=version.pk).update(report=report)
    client = sign_in("admin")
    page = client.get(f"/models/{version.pk}").content.decode()
    for said in (
        'data-testid="fairness"',
        "0.71 (0.60 to 0.80)",
        "too few",
        "AUROC of female minus male is −0.15",
        'data-testid="unfair"',
        "Sensitivity and PPV at a risk of 25",
    ):
        assert said in page
    assert 'data-testid="promote"' not in page
    answer = client.post(f"/models/{version.pk}/request", {"reason": "Better"})
    assert answer.status_code == 409
    assert "differ too much between groups" in answer.content.decode()
    assert not Promotion.objects.filter(version=version).exists()


def test_the_page_of_a_run_says_how_fair_its_version_is(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    run = TrainingRun.objects.first()
    assert run is not None
    ModelVersion.objects.filter(run=run).update(run=None)
    ModelVersion.objects.filter(number=3).update(run=run, report={"fairness": {"icu-admission": FAIR}})
    page = sign_in("admin").get(f"/models/runs/{run.pk}").content.decode()
    assert 'data-testid="run-fairness"' in page
    assert "over the limit" in page
    assert "cannot be put to use" in page
