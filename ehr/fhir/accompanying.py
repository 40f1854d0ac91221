"""What goes with a RiskAssessment (INTEROP 36): the model as a Device, a DiagnosticReport that points to the
panel, and the Provenance that names the model by its digest. FHIR R4, https://hl7.org/fhir/R4/.

A DiagnosticReport has no element for a RiskAssessment; the standard's own extension `diagnosticReport-risk`
links to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ehr.errors import BadResource
from ehr.fhir.risk_assessment import our_identifier, reference_to

RISK_EXTENSION = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-risk"
PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
OPERATION = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"


def build_device(
    *, identifier: str, name: str, version: str, digest: str, notice: str = ""
) -> dict[str, Any]:
    """A model version as a Device.

    identifier  our UUID of the version
    digest      SHA-256 hex of its bundle
    notice      its regulatory label
    """
    device: dict[str, Any] = {
        "resourceType": "Device",
        "identifier": [
            our_identifier(identifier),
            {"type": {"text": "SHA-256 of the model bundle"}, "value": digest},
        ],
        "status": "active",
        "deviceName": [{"name": name, "type": "model-name"}],
        "type": {"text": "Clinical prediction model (software)"},
        "version": [{"value": version}],
    }
    if notice:
        device["note"] = [{"text": notice}]
    return device


def build_diagnostic_report(
    *,
    identifier: str,
    status: str,
    patient_id: str,
    risk_assessment_id: str,
    outcome: str,
    occurred_at: datetime,
    issued_at: datetime,
    panel_url: str,
    conclusion: str = "",
    encounter_id: str = "",
    study_uids: Sequence[str] = (),
) -> dict[str, Any]:
    """A pointer for whoever reads reports: to the panel, and to the RiskAssessment on the same server.

    risk_assessment_id  "" where the server has none: `conclusion` then says the number
    identifier  our UUID of it
    status      "preliminary", "final", or another code of diagnostic-report-status
    study_uids  Study Instance UIDs of the pictures that were used
    raises      BadResource without patient, with neither RiskAssessment nor conclusion, or for dates without
                a zone
    """
    if not patient_id or not (risk_assessment_id or conclusion):
        raise BadResource(
            "a DiagnosticReport points to a Patient, and to a RiskAssessment or says the number"
        )
    if occurred_at.tzinfo is None or issued_at.tzinfo is None:
        raise BadResource("DiagnosticReport dates need a zone")
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "identifier": [our_identifier(identifier)],
        "status": status,
        "code": {"text": f"Risk of {outcome}"},
        "subject": {"reference": f"Patient/{patient_id}"},
        "effectiveDateTime": occurred_at.isoformat(),
        "issued": issued_at.isoformat(),
        "presentedForm": [{"contentType": "text/html", "url": panel_url, "title": "Risk panel in Tessera"}],
    }
    if risk_assessment_id:
        risk = {"reference": f"RiskAssessment/{risk_assessment_id}"}
        report["extension"] = [{"url": RISK_EXTENSION, "valueReference": risk}]
    if encounter_id:
        report["encounter"] = {"reference": f"Encounter/{encounter_id}"}
    if study_uids:
        report["imagingStudy"] = [reference_to("ImagingStudy", uid) for uid in dict.fromkeys(study_uids)]
    if conclusion:
        report["conclusion"] = conclusion
    return report


def build_provenance(
    *,
    target: str,
    device_id: str,
    recorded_at: datetime,
    model_digest: str,
    inputs_digest: str,
    is_amended: bool = False,
) -> dict[str, Any]:
    """Who made `target` ("RiskAssessment/[id]"), and from what: the digests of model and inputs.

    device_id     the Device on the same server
    recorded_at   when the score was computed; with `target` it tells one Provenance from another, as R4's has
                  no identifier
    """
    if recorded_at.tzinfo is None:
        raise BadResource("Provenance.recorded needs a zone")
    code = "UPDATE" if is_amended else "CREATE"
    return {
        "resourceType": "Provenance",
        "target": [{"reference": target}],
        "recorded": recorded_at.isoformat(timespec="milliseconds"),
        "activity": {"coding": [{"system": OPERATION, "code": code, "display": code.lower()}]},
        "agent": [
            {
                "type": {"coding": [{"system": PARTICIPANT, "code": "assembler", "display": "Assembler"}]},
                "who": {"reference": f"Device/{device_id}"},
            }
        ],
        "entity": [
            _digested("SHA-256 of the model bundle", model_digest),
            _digested("SHA-256 of the inputs", inputs_digest),
        ],
    }


def _digested(what: str, digest: str) -> dict[str, Any]:
    return {
        "role": "source",
        "what": {"identifier": {"type": {"text": what}, "value": digest}, "display": what},
    }
