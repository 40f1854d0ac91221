"""A stored risk → FHIR R4 RiskAssessment, the form in which it goes back to the hospital (INTEROP 36).

https://hl7.org/fhir/R4/riskassessment.html. The performer is the model: a Device of the server, or else a
contained one (name, version, digest), so that the resource stands alone. `probabilityDecimal` is a
percentage: a risk of 0.42 is 42.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ehr.codes import Code
from ehr.errors import BadResource

STATUSES = frozenset(
    ["registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown"]
)
CATEGORIES = {"low": "Low likelihood", "moderate": "Moderate likelihood", "high": "High likelihood"}
_QUALITATIVE = "http://terminology.hl7.org/CodeSystem/risk-probability"
OUR_SYSTEM = "urn:ietf:rfc:3986"
_DICOM_UID = re.compile(r"\d+(\.\d+){3,}")


def our_identifier(uuid: str) -> dict[str, str]:
    """By which a resource of ours is found again on a server."""
    return {"system": OUR_SYSTEM, "value": f"urn:uuid:{uuid}"}


def reference_to(kind: str, identity: str) -> dict[str, Any]:
    """By id on the server; a Study that came as pixels is known by its Study Instance UID only."""
    if kind == "ImagingStudy" and _DICOM_UID.fullmatch(identity):
        return {"type": kind, "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{identity}"}}
    return {"reference": f"{kind}/{identity}"}


def build_risk_assessment(
    *,
    identifier: str,
    status: str,
    patient_id: str,
    outcome: Code | str,
    risk: float,
    occurred_at: datetime,
    until: datetime,
    model_name: str,
    model_version: str,
    model_digest: str,
    basis: Sequence[tuple[str, str]],
    encounter_id: str = "",
    category: str = "",
    interval: tuple[float, float] | None = None,
    interval_level: float | None = None,
    missing: Sequence[str] = (),
    rationale: str = "",
    method: str = "Fusion of imaging and record by a neural network, calibrated",
    device_id: str = "",
    notice: str = "",
    resource_id: str = "",
) -> dict[str, Any]:
    """Assemble a RiskAssessment.

    identifier       our UUID of it, the same whenever it is sent again (conditional create, update)
    status           one of STATUSES; "preliminary" while an expected modality is missing
    risk, interval   in [0, 1]; the interval goes into the rationale, as prediction has one probability[x]
    occurred_at      when it was computed as of (aware); `until` is the end of its horizon
    basis            (resource type, id) of every resource that was used
    category         "low", "moderate", "high" or "very-high"
    missing          modalities that were not there, for the rationale
    device_id        of the model's Device on the server; "" for a contained one
    notice           the regulatory label, as a note
    raises           BadResource naming the argument that breaks a rule of the standard
    """
    if status not in STATUSES:
        raise BadResource("RiskAssessment.status is not a code of observation-status")
    if not (math.isfinite(risk) and 0.0 <= risk <= 1.0):
        raise BadResource("RiskAssessment.prediction.probability[x]: the risk must be in [0, 1] (ras-2)")
    if occurred_at.tzinfo is None or until.tzinfo is None:
        raise BadResource("RiskAssessment dates need a zone")
    if until < occurred_at:
        raise BadResource("RiskAssessment.prediction.whenPeriod ends before it starts (per-1)")
    if not patient_id:
        raise BadResource("RiskAssessment.subject is required")
    prediction: dict[str, Any] = {
        "outcome": _concept(outcome),
        "probabilityDecimal": round(risk * 100, 4),
        "whenPeriod": {"start": occurred_at.isoformat(), "end": until.isoformat()},
        "rationale": _rationale(interval, interval_level, missing, rationale),
    }
    if category:
        prediction["qualitativeRisk"] = _qualitative(category)
    resource: dict[str, Any] = {
        "resourceType": "RiskAssessment",
        "identifier": [our_identifier(identifier)],
        "status": status,
        "method": {"text": method},
        "code": {"text": f"Risk of {_name(outcome)}"},
        "subject": {"reference": f"Patient/{patient_id}"},
        "occurrenceDateTime": occurred_at.isoformat(),
        "performer": {"display": f"{model_name} {model_version}"},
        "prediction": [prediction],
    }
    if device_id:
        resource["performer"]["reference"] = f"Device/{device_id}"
    else:
        resource["contained"] = [_device(model_name, model_version, model_digest)]
        resource["performer"]["reference"] = "#model"
    if notice:
        resource["note"] = [{"text": notice}]
    if resource_id:
        resource["id"] = resource_id
    if encounter_id:
        resource["encounter"] = {"reference": f"Encounter/{encounter_id}"}
    if basis:
        resource["basis"] = [reference_to(kind, identity) for kind, identity in dict.fromkeys(basis)]
    return resource


def _device(name: str, version: str, digest: str) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "model",
        "identifier": [{"type": {"text": "SHA-256 of the model bundle"}, "value": digest}],
        "deviceName": [{"name": name, "type": "model-name"}],
        "version": [{"value": version}],
    }


def _concept(outcome: Code | str) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"text": outcome}
    coding = {"system": outcome.uri, "code": outcome.code, "display": outcome.display}
    return {"coding": [{key: value for key, value in coding.items() if value}], "text": _name(outcome)}


def _name(outcome: Code | str) -> str:
    return outcome if isinstance(outcome, str) else outcome.display or outcome.code


def _qualitative(category: str) -> dict[str, Any]:
    if category in CATEGORIES:
        return {"coding": [{"system": _QUALITATIVE, "code": category, "display": CATEGORIES[category]}]}
    return {"text": category}  # "very-high" has no code in risk-probability


def _rationale(
    interval: tuple[float, float] | None, level: float | None, missing: Sequence[str], rationale: str
) -> str:
    sentences = [rationale] if rationale else []
    if interval:
        name = f"{level:.0%} interval" if level else "Interval"
        sentences.append(f"{name}: {interval[0] * 100:.1f} % to {interval[1] * 100:.1f} %.")
    sentences.append(f"Missing: {', '.join(missing)}." if missing else "No expected modality is missing.")
    return " ".join(sentences)
