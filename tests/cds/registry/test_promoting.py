"""Promotion takes two people and the very files that were evaluated; everything is audited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Conflict, Invalid, NotAllowed
from cds.jobs import Job
from cds.jobs.models import LiveEvent, OutboxMessage
from cds.registry import bundles, promoting, queries
from cds.registry.models import ModelVersion, Stage
from tests.cds.registry.rows import make_version
from tests.factories import NOW, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def candidate(settings: Any, tmp_path: Path) -> ModelVersion:
    settings.BUNDLE_STORE = tmp_path
    return _with_files(make_version(active=False))


def _with_files(version: ModelVersion) -> ModelVersion:
    folder = queries.bundle_folder(version)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights of " + version.label.encode())
    version.metadata = {"files": bundles.file_digests(folder)}
    version.save()
    return version


def _promote(version: ModelVersion) -> ModelVersion:
    asking, approving = make_user("admin"), make_user("approver")
    promotion = promoting.request(version, reason="better", by=recording.person(asking), user=asking, now=NOW)
    return promoting.approve(promotion, by=recording.person(approving), user=approving, now=NOW)


def test_two_people_make_a_candidate_active(candidate: ModelVersion) -> None:
    active = _promote(candidate)
    assert active.stage == Stage.ACTIVE
    assert queries.active_version("icu-admission") == candidate
    assert OutboxMessage.objects.filter(job=Job.ASSESS_ALL.value).count() == 1
    assert LiveEvent.objects.filter(kind="model").exists()
    actions = list(AuditEvent.objects.filter(action__startswith="promotion").values_list("action", flat=True))
    assert sorted(actions) == ["promotion.approve", "promotion.request"]


def test_nobody_approves_their_own_request(candidate: ModelVersion) -> None:
    both = make_user("admin", "approver")
    promotion = promoting.request(candidate, reason="mine", by=recording.person(both), user=both, now=NOW)
    with pytest.raises(NotAllowed, match="another person"):
        promoting.approve(promotion, by=recording.person(both), user=both, now=NOW)
    assert queries.active_version("icu-admission") is None
    refused = AuditEvent.objects.get(action="promotion.approve")
    assert refused.outcome == "refused"


@pytest.mark.parametrize("role", ["clinician", "admin"])
def test_approving_needs_the_role(candidate: ModelVersion, role: str) -> None:
    asking, other = make_user("admin"), make_user(role)
    promotion = promoting.request(candidate, reason="x", by=recording.person(asking), user=asking, now=NOW)
    with pytest.raises(NotAllowed):
        promoting.approve(promotion, by=recording.person(other), user=other, now=NOW)
    with pytest.raises(NotAllowed):
        promoting.request(
            candidate, reason="x", by=recording.person(other), user=make_user("clinician"), now=NOW
        )


def test_changed_files_are_never_promoted(candidate: ModelVersion) -> None:
    (queries.bundle_folder(candidate) / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(Conflict, match="not those that were evaluated"):
        _promote(candidate)
    assert AuditEvent.objects.get(action="promotion.approve").outcome == "refused"


def test_one_open_request_and_one_decision(candidate: ModelVersion) -> None:
    asking, approving = make_user("admin"), make_user("approver")
    by = recording.person(asking)
    promotion = promoting.request(candidate, reason="a", by=by, user=asking, now=NOW)
    with pytest.raises(Conflict, match="already waiting"):
        promoting.request(candidate, reason="b", by=by, user=asking, now=NOW)
    promoting.reject(promotion, by=recording.person(approving), user=approving, now=NOW)
    with pytest.raises(Conflict, match="already been decided"):
        promoting.approve(promotion, by=recording.person(approving), user=approving, now=NOW)
    assert queries.open_promotions() == []
    with pytest.raises(Invalid, match="say why"):
        promoting.request(candidate, reason=" ", by=by, user=asking, now=NOW)


def test_the_next_version_retires_this_one_and_rollback_brings_it_back(candidate: ModelVersion) -> None:
    _promote(candidate)
    second = _with_files(make_version(active=False, number=2))
    _promote(second)
    candidate.refresh_from_db()
    assert (candidate.stage, queries.active_version("icu-admission")) == (Stage.RETIRED, second)
    approver = make_user("approver")
    back = promoting.rollback(
        "icu-admission", reason="alarms", by=recording.person(approver), user=approver, now=NOW
    )
    second.refresh_from_db()
    assert (back, back.stage, second.stage) == (candidate, Stage.ACTIVE, Stage.RETIRED)
    assert queries.active_version("icu-admission") == candidate
    with pytest.raises(NotAllowed):
        promoting.rollback(
            "icu-admission", reason="x", by=recording.person(approver), user=make_user("admin"), now=NOW
        )


def test_without_an_earlier_model_there_is_nothing_to_go_back_to(candidate: ModelVersion) -> None:
    _promote(candidate)
    approver = make_user("approver")
    with pytest.raises(Conflict, match="no earlier model"):
        promoting.rollback("icu-admission", reason="x", by=recording.person(approver), user=approver, now=NOW)


def test_finding_a_version_by_what_people_type(candidate: ModelVersion) -> None:
    for typed in (str(candidate.pk), "icu-admission v1", "icu-admission:1", "icu-admission"):
        assert queries.find_version(typed) == candidate
    assert queries.find_version("icu-admission v9") is None
