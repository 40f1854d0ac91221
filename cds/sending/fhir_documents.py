"""A stored score as the FHIR resources a hospital gets: rows in, resources out. No network, no writing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Q

import ehr
from cds.errors import Invalid
from cds.jobs.models import WorkState
from cds.patients.models import Encounter, Patient
from cds.registry.models import ModelVersion
from cds.registry.outcomes import OUTCOMES, STAYS
from cds.risk.models import AssessmentStatus, RiskPrediction
from cds.sending.models import Document, DocumentKind


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A resource, and the search that only it answers to. `amend`: one that is there may be updated."""

    resource: dict[str, Any]
    match: dict[str, str]
    amend: bool = True


def build(document: Document) -> Outgoing:
    """Raises Invalid when what it needs has no id at the destination yet; ehr.BadResource, also when what was
    built is not FHIR R4: it is kept as refused with the element, and never sent."""
    outgoing = _build(document)
    ehr.check_structure(outgoing.resource)
    return outgoing


def _build(document: Document) -> Outgoing:
    if document.kind == DocumentKind.DEVICE:
        return _identified(_device(ModelVersion.objects.get(pk=document.subject), document))
    prediction = RiskPrediction.objects.select_related("assessment__patient", "assessment__version").get(
        pk=int(document.subject)
    )
    if document.kind == DocumentKind.RISK_ASSESSMENT:
        return _identified(_risk_assessment(prediction, document))
    if document.kind == DocumentKind.DIAGNOSTIC_REPORT:
        return _identified(_report(prediction, document))
    resource = _provenance(prediction, document)
    match = {"target": resource["target"][0]["reference"], "recorded": resource["recorded"]}
    return Outgoing(resource, match, amend=False)


def remote_id(document: Document | None, kind: str) -> str:
    """The id of an accepted document at its destination. Raises Invalid without one."""
    found, _, identity = (document.remote if document is not None else "").partition("/")
    if found != kind or not identity:
        raise Invalid(f"its {kind} has not been accepted by the destination yet")
    return identity


def _identified(resource: dict[str, Any]) -> Outgoing:
    return Outgoing(resource, ehr.identified(resource))


def _device(version: ModelVersion, document: Document) -> dict[str, Any]:
    return ehr.build_device(
        identifier=str(document.identity),
        name=f"Tessera {version.name}",
        version=str(version.number),
        digest=version.digest,
        notice=settings.REGULATORY_LABEL,
    )


def _risk_assessment(prediction: RiskPrediction, document: Document) -> dict[str, Any]:
    assessment = prediction.assessment
    version, patient = assessment.version, assessment.patient
    return ehr.build_risk_assessment(
        identifier=str(document.identity),
        status=_status(prediction, document),
        patient_id=_patient_id(patient),
        encounter_id=_encounter_id(patient, assessment.as_of),
        outcome=_label(prediction),
        risk=prediction.risk,
        interval=(prediction.low, prediction.high),
        interval_level=prediction.level,
        occurred_at=assessment.as_of,
        until=assessment.as_of + timedelta(hours=prediction.horizon_hours),
        model_name=f"Tessera {version.name}",
        model_version=str(version.number),
        model_digest=version.digest,
        device_id=remote_id(document.needs, "Device"),
        basis=[(one["type"], one["id"]) for one in assessment.basis],
        category=prediction.category,
        missing=assessment.missing,
        rationale=str(prediction.explanation.get("summary", "")),
        notice=settings.REGULATORY_LABEL,
    )


def _report(prediction: RiskPrediction, document: Document) -> dict[str, Any]:
    assessment = prediction.assessment
    studies = [one["id"] for one in assessment.basis if one["type"] == "ImagingStudy"]
    return ehr.build_diagnostic_report(
        identifier=str(document.identity),
        status=_status(prediction, document),
        patient_id=_patient_id(assessment.patient),
        encounter_id=_encounter_id(assessment.patient, assessment.as_of),
        risk_assessment_id="" if _says_it_alone(document) else remote_id(document.needs, "RiskAssessment"),
        outcome=_label(prediction),
        occurred_at=assessment.as_of,
        issued_at=assessment.finished_at or assessment.as_of,
        panel_url=f"{settings.PUBLIC_URL}/patients/{assessment.patient_id}/risk",
        conclusion=f"{prediction.risk:.0%} ({prediction.low:.0%} to {prediction.high:.0%}). "
        f"{assessment.version.label}. {settings.REGULATORY_LABEL}.",
        study_uids=studies,
    )


def _provenance(prediction: RiskPrediction, document: Document) -> dict[str, Any]:
    assessment, said = prediction.assessment, document.needs
    device = said.needs if said is not None else None
    by = "DiagnosticReport" if said is not None and _says_it_alone(said) else "RiskAssessment"
    return ehr.build_provenance(
        target=f"{by}/{remote_id(said, by)}",
        device_id=remote_id(device, "Device"),
        recorded_at=assessment.finished_at or assessment.as_of,
        model_digest=assessment.version.digest,
        inputs_digest=assessment.inputs_digest,
        is_amended=said is not None and _earlier(said).exists(),
    )


def _says_it_alone(document: Document) -> bool:
    """A DiagnosticReport for a server that takes no RiskAssessment."""
    needs = document.needs
    return document.kind == DocumentKind.DIAGNOSTIC_REPORT and (
        needs is not None and needs.kind == DocumentKind.DEVICE
    )


def _status(prediction: RiskPrediction, document: Document) -> str:
    """ "amended" where a final one of the same identity was accepted before."""
    if prediction.assessment.status == AssessmentStatus.PRELIMINARY:
        return "preliminary"
    finals = RiskPrediction.objects.filter(
        pk__in=[int(subject) for subject in _earlier(document).values_list("subject", flat=True)],
        assessment__status=AssessmentStatus.FINAL,
    )
    return "amended" if finals.exists() else "final"


def _earlier(document: Document) -> Any:
    return Document.objects.filter(
        destination=document.destination_id,
        kind=document.kind,
        identity=document.identity,
        order__lt=document.order,
        work_state=WorkState.DONE,
    )


def _patient_id(patient: Patient) -> str:
    """A merged patient's facts are those of the surviving one."""
    return patient.replaced_by or patient.resource_id


def _encounter_id(patient: Patient, at: datetime) -> str:
    """The stay that goes on at that moment; "" outside hospital."""
    stays = Encounter.objects.filter(
        patient=patient, kind__in=STAYS, start__lte=at, resource_type="Encounter"
    )
    going_on = stays.filter(Q(end=None) | Q(end__gte=at)).exclude(status__in=["planned", "cancelled"])
    stay = going_on.order_by("-start").first()
    return stay.resource_id if stay is not None else ""


def _label(prediction: RiskPrediction) -> str:
    known = OUTCOMES.get(prediction.outcome)
    return known.label if known is not None else prediction.label
