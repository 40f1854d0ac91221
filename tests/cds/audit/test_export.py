"""The audit trail as FHIR AuditEvents: valid by others' validators, looks by BALP, nothing left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

import ehr
from cds.audit import recording
from cds.audit.models import AuditEvent
from tests.ehr.fhir.validating import list_faults
from tests.factories import NOW, make_patient, make_user

pytestmark = pytest.mark.django_db
PATIENT_READ = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.PatientRead"


def test_the_whole_trail_is_written_as_valid_events(tmp_path: Path) -> None:
    patient = make_patient("p1")
    looker = recording.Actor(f"user:{make_user('clinician').pk}", role="clinician", address="10.1.2.3")
    common = {"object_type": "Patient", "object_id": patient.pk, "patient_id": patient.pk, "now": NOW}
    recording.record(by=looker, action="patient.view", **common)
    recording.record(by=looker, action="patient.view", outcome="refused", **common)
    recording.record(
        by=recording.system("worker"), action="run.start", object_type="TrainingRun", object_id="7", now=NOW
    )
    call_command("export_audit", str(tmp_path / "audit.ndjson"))
    events = [json.loads(line) for line in (tmp_path / "audit.ndjson").read_text().splitlines()]
    assert len(events) == AuditEvent.objects.count()  # the export itself included
    assert [fault for event in events for fault in list_faults(event)] == []
    looks = [event for event in events if event["subtype"][-1]["code"] == "patient.view"]
    assert [event["outcome"] for event in looks] == ["0", "4"]
    seen, refused = looks
    assert seen["meta"]["profile"] == [PATIENT_READ]
    assert "meta" not in refused  # the profile is of successful reads
    kinds = [agent["type"]["coding"][0]["code"] for agent in seen["agent"]]
    assert kinds == ["110152", "110153", "IRCP"]
    assert {"reference": "Patient/p1"} in [entity["what"] for entity in seen["entity"]]
    assert "Testperson" not in json.dumps(events)


def test_only_the_days_asked_for(tmp_path: Path) -> None:
    recording.record(by=recording.system("x"), action="run.start", object_type="Run", object_id="1", now=NOW)
    call_command("export_audit", str(tmp_path / "a"), "--since=2026-03-02", "--until=2026-03-03")
    assert (tmp_path / "a").read_text() == ""
    with pytest.raises(CommandError, match="cannot write"):
        call_command("export_audit", str(tmp_path / "no" / "such"))


def test_an_outcome_without_a_code_is_refused() -> None:
    act = ehr.AuditedAct(
        key="k", at=NOW, actor="a", action="b", object_type="c", object_id="d", outcome="maybe", server="s"
    )
    with pytest.raises(ehr.BadResource, match="outcome"):
        ehr.build_audit_event(act)
