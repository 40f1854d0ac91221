"""What an admin types: retrain, promote, assess; and what each says when it cannot go on."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from cds.jobs import leases
from cds.jobs.models import WorkState
from cds.management.commands import assess as assess_command
from cds.management.commands import retrain as retrain_command
from cds.patients.models import Patient
from cds.registry import queries
from cds.registry.models import TrainingRun
from cds.risk.models import RiskAssessment
from tests.cds.registry import ward
from tests.factories import make_user

TINY = [f"--set={name}={value}" for name, value in ward.TINY.items()]


@pytest.fixture(autouse=True)
def _nobody_works(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"


@pytest.mark.django_db(transaction=True)
def test_retrain_promote_assess(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ward.learn_once(monkeypatch)
    ward.fill()
    call_command("retrain", "--outcome", "icu-admission", "--here", *TINY)
    said = capsys.readouterr().out
    assert "30 patients" in said
    assert "icu-admission v1: candidate" in said
    assert "AUROC" in said
    with pytest.raises(CommandError, match="no model is active"):
        call_command("assess", "--all")

    admin, approver = make_user("admin"), make_user("approver")
    two = ["--requested-by", admin.username, "--approved-by", approver.username, "--reason", "first"]
    out = StringIO()
    call_command("promote", "icu-admission v1", *two, stdout=out)
    assert "now answers for icu-admission" in out.getvalue()
    assert queries.active_version("icu-admission") is not None

    out = StringIO()
    call_command("assess", "--all", "--here", stdout=out)
    assert "30 scores asked for: 30 done." in out.getvalue()
    one = Patient.objects.all()[0]
    call_command("assess", "--patient", str(one.pk), "--here", stdout=out)
    assert RiskAssessment.objects.count() == 30  # the same question again


@pytest.mark.django_db(transaction=True)
def test_without_a_worker_retrain_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_command, "NOBODY_AFTER_S", 0.0)
    ward.fill(5)
    with pytest.raises(CommandError, match="celery -A cds worker"):
        call_command("retrain", "--outcome", "icu-admission", "--wait")
    assert TrainingRun.objects.get().work_state == WorkState.QUEUED


@pytest.mark.django_db
class TestRefusals:
    @pytest.fixture(autouse=True)
    def _still(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "heartbeat", ward.still_heart)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--outcome", "rain"], "no outcome 'rain'"),
            (["--outcome", "death", "--set", "epochs=0"], "epochs must lie"),
            (["--outcome", "death", "--set", "epochs"], "FIELD=VALUE"),
            (["--outcome", "death", "--source", "nowhere"], "no source nowhere"),
        ],
    )
    def test_retrain(self, arguments: list[str], message: str) -> None:
        with pytest.raises(CommandError, match=message):
            call_command("retrain", *arguments)
        assert not TrainingRun.objects.exists()

    def test_a_run_that_failed_fails_the_command(self) -> None:
        with pytest.raises(CommandError, match="the run has failed"):
            retrain_command._report(_failed(), retrain_command.Console(quiet=True))

    def test_promote_needs_two_people_and_a_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = make_user("admin", "approver")
        with pytest.raises(CommandError, match="no model version"):
            call_command("promote", "x", "--requested-by=a", "--approved-by=b", "--reason=r")
        ward.learn_once(monkeypatch)
        ward.fill()
        version = ward.retrain().version
        with pytest.raises(CommandError, match="no active user"):
            call_command("promote", version.label, "--requested-by=ghost", "--approved-by=b", "--reason=r")
        with pytest.raises(CommandError, match="another person"):
            call_command(
                "promote", version.label, "--reason=r",
                f"--requested-by={both.username}", f"--approved-by={both.username}",
            )  # fmt: skip
        assert queries.open_promotions() == []
        assert queries.active_versions() == []

    def test_assess_an_unknown_patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assess_command.registry_queries, "active_versions", lambda: ["one"])
        for given in ("nobody", "00000000-0000-0000-0000-000000000000"):
            with pytest.raises(CommandError, match="no patient"):
                call_command("assess", "--patient", given)


def _failed() -> TrainingRun:
    ward.admit(1, sick=False)
    return ward.retrain()
