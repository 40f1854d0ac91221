"""What a version knows already of a kind of imaging study, for the card about an order."""

from __future__ import annotations

from typing import Any

from cds.hooks.order_cards import Known
from cds.hooks.ordering import Imaging
from cds.patients.models import Patient
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion
from cds.risk.standing import Standing
from cds.studies.models import Series


def known_of(study: Imaging, standing: Standing, *, outcome: str, patient: Patient) -> Known:
    """Whether the model reads such studies, whether the score shown used one, and what such a study adds."""
    version, assessment = standing.version, standing.assessment
    unused = registry_queries.unused_modalities(version.metadata, version.outcomes)
    if not study.modality or study.modality not in version.encoders or study.modality in unused:
        return Known(is_read=False)
    with_all, without = _ablation(version, outcome, study.modality)
    is_used = assessment is not None and study.modality in assessment.present
    return Known(
        is_read=True,
        is_used=is_used,
        is_pending=assessment is not None and study.modality in assessment.pending,
        taken_at=_taken_at(study, standing, patient) if is_used else None,
        with_all=with_all,
        without=without,
    )


def _taken_at(study: Imaging, standing: Standing, patient: Patient) -> Any:
    """When the newest decoded study of that kind was taken, as the score knew it."""
    assert standing.assessment is not None
    rows = Series.objects.filter(
        study__patient=patient,
        study__started_at__lte=standing.assessment.as_of,
        imaging_modality__in=study.dicom,
        failure="",
    ).exclude(pixels_digest="")
    newest = rows.order_by("-study__started_at").values_list("study__started_at", flat=True)
    return newest.first()


def _ablation(version: ModelVersion, outcome: str, modality: str) -> tuple[float | None, float | None]:
    """AUROC on held-out patients with every input, and without this one; None where it was not measured."""
    arms = {arm.get("name"): arm for arm in version.report.get("ablation", {}).get(outcome, [])}
    others = [name for name in arms if str(name).endswith(" only") and name != f"{modality} only"]
    without = arms.get(f"without {modality}") or (arms.get(others[0]) if len(others) == 1 else None)
    return _auroc(arms.get("all")), _auroc(without)


def _auroc(arm: Any) -> float | None:
    found = (arm or {}).get("auroc")
    value = found.get("value") if isinstance(found, dict) else found
    return float(value) if isinstance(value, int | float) else None
