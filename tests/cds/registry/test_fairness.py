"""A gap between groups of patients over the site's limit stops a promotion; nothing else about a report
does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Conflict
from cds.registry import bundles, fairness, outcomes, promoting, queries
from cds.registry.models import ModelVersion, Promotion, Stage
from cds.risk import thresholds
from tests.cds.registry.rows import make_version
from tests.factories import NOW, make_user

pytestmark = pytest.mark.django_db


def gap(value: float, *, figure: str = "calibration", clear: bool = True) -> dict[str, Any]:
    return {
        "attribute": "sex",
        "figure": figure,
        "between": ["female", "male"],
        "value": value,
        "clear": clear,
        "over": False,
        "said": f"sex: observed minus expected of female minus male is {value:+.2f}; limit 0.50",
    }


@pytest.fixture
def candidate(settings: Any, tmp_path: Path) -> ModelVersion:
    settings.BUNDLE_STORE = tmp_path
    settings.FAIRNESS_AUROC_GAP = settings.FAIRNESS_CALIBRATION_GAP = 0.1
    version = make_version(active=False)
    folder = queries.bundle_folder(version)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    version.metadata = {"files": bundles.file_digests(folder)}
    version.save()
    return version


def told(version: ModelVersion, *gaps: dict[str, Any]) -> ModelVersion:
    version.report = {"fairness": {"icu-admission": {"gaps": list(gaps)}}}
    version.save()
    return version


def ask(version: ModelVersion) -> Promotion:
    admin = make_user("admin")
    return promoting.request(version, reason="better", by=recording.person(admin), user=admin, now=NOW)


@pytest.mark.parametrize(
    ("gaps", "blocked"),
    [
        ([gap(0.15)], True),
        ([gap(-0.15)], True),
        ([gap(0.12, figure="auroc")], True),
        ([gap(0.05)], False),
        ([gap(0.3, clear=False)], False),  # chance alone would explain it
        ([gap(0.05), gap(0.11, figure="auroc")], True),
        ([], False),
    ],
)
def test_what_blocks_a_promotion(candidate: ModelVersion, gaps: list[dict[str, Any]], blocked: bool) -> None:
    told(candidate, *gaps)
    if not blocked:
        assert ask(candidate).approved is None
        return
    with pytest.raises(
        Conflict, match=r"differs too much between groups of patients: icu-admission, sex: .*limit 0\.10"
    ):
        ask(candidate)
    refused = AuditEvent.objects.get(action="promotion.request")
    assert refused.outcome == "refused"
    assert not Promotion.objects.exists()


def test_a_version_without_such_a_report_is_not_judged(candidate: ModelVersion) -> None:
    candidate.report = {"outcomes": {}}
    candidate.save()
    assert fairness.gaps_over(candidate) == []
    ask(candidate)


def test_limits_of_now_decide_at_the_approval_too(candidate: ModelVersion, settings: Any) -> None:
    settings.FAIRNESS_CALIBRATION_GAP = 0.2
    promotion = ask(told(candidate, gap(0.15)))
    settings.FAIRNESS_CALIBRATION_GAP = 0.1
    approver = make_user("approver")
    with pytest.raises(Conflict, match="differs too much"):
        promoting.approve(promotion, by=recording.person(approver), user=approver, now=NOW)
    assert AuditEvent.objects.get(action="promotion.approve").outcome == "refused"
    assert queries.active_version("icu-admission") is None
    settings.FAIRNESS_CALIBRATION_GAP = 0.2
    promoting.approve(promotion, by=recording.person(approver), user=approver, now=NOW)
    candidate.refresh_from_db()
    assert candidate.stage == Stage.ACTIVE


def test_rolling_back_is_never_blocked(candidate: ModelVersion) -> None:
    approver = make_user("approver")
    by = recording.person(approver)
    promoting.approve(ask(candidate), by=by, user=approver, now=NOW)
    second = make_version(active=False, number=2)
    folder = queries.bundle_folder(second)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"other weights")
    second.metadata = {"files": bundles.file_digests(folder)}
    second.save()
    promoting.approve(ask(second), by=by, user=approver, now=NOW)
    told(candidate, gap(0.4))
    assert promoting.rollback("icu-admission", reason="alarms", by=by, user=approver, now=NOW) == candidate


def test_the_registry_and_the_policy_act_at_the_same_risk() -> None:
    for name, outcome in outcomes.OUTCOMES.items():
        assert thresholds.threshold_of(name) == outcome.act_at
