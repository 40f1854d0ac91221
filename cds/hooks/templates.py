"""What we ask an EHR to send ahead: what the active version reads, and nothing else.

Templates keep to CDS Hooks 2.0 (INTEROP 5, 6): instance reads and type searches by reference and token, with
`_sort` and `_count`. They are derived from what the version's bundle says of its inputs, by the codes of
`cds.catalogue`; a version whose bundle says nothing gets all of the catalogue.

Two are asked for whatever the model reads, because a risk is about somebody, at some moment: the Patient, and
the Encounters that say as of when (`risk.standing.moment`) and whether there is still a risk to speak of.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from uuid import UUID

from cds import catalogue
from cds.registry import queries as registry_queries
from cds.registry.models import ModelVersion

_OF_PATIENT = "patient={{context.patientId}}"
VITAL_SIGNS = frozenset(
    {
        "heart_rate", "respiratory_rate", "systolic_bp", "diastolic_bp", "temperature", "spo2", "bmi",
        "ejection_fraction",
    }
)  # fmt: skip
PANELS = {"systolic_bp": ("85354-9", "55284-4"), "diastolic_bp": ("85354-9", "55284-4")}
VARIANT, SIGNIFICANCE, POLYGENIC = "69548-6", "53037-8", "category=genetics"
PER_SERIES, PER_LATEST, MOST = 25, 4, 200  # results asked for: of a course, of a latest value, of a search
PIXELS = ("image", "cine", "volume")


def templates(version: ModelVersion) -> dict[str, str]:
    """Prefetch templates for a version, by key."""
    return dict(_templates(version.pk))


@lru_cache(maxsize=32)
def _templates(version_id: UUID) -> tuple[tuple[str, str], ...]:
    """By id, for what a version reads is settled when it is made."""
    version = ModelVersion.objects.get(pk=version_id)
    reads = _Inputs(version)
    asked = {
        "patient": "Patient/{{context.patientId}}",
        "encounters": f"Encounter?{_OF_PATIENT}&_sort=-date&_count=20",
    }
    if reads.any("active_conditions", *(flag.name for flag in catalogue.CONDITIONS)):
        asked["conditions"] = f"Condition?{_OF_PATIENT}&_count=200"
    if reads.any("active_medications"):
        asked["medications"] = f"MedicationRequest?{_OF_PATIENT}&_count=100"
    measured = [one for one in catalogue.LATEST if reads.any(one.name)]
    for key, wanted in (
        ("vitals", [one for one in measured if one.name in VITAL_SIGNS]),
        ("labs", [one for one in measured if one.name not in VITAL_SIGNS]),
    ):
        if wanted:
            asked[key] = _results(wanted, reads)
    if reads.any("smoker"):
        asked["smoking"] = _observations([catalogue.SMOKING_STATUS], 5)
    if reads.any("family_cardiac"):
        asked["family"] = f"FamilyMemberHistory?{_OF_PATIENT}&_count=50"
    if reads.any(*(one.name for one in catalogue.GENOMICS if one.genes)):
        asked["variants"] = _observations([VARIANT, SIGNIFICANCE], 50)
    if reads.any(*(one.name for one in catalogue.GENOMICS if not one.genes)):
        asked["scores"] = f"Observation?{_OF_PATIENT}&{POLYGENIC}&_sort=-date&_count=20"
    if "text" in reads.modalities:
        asked["notes"] = f"DocumentReference?{_OF_PATIENT}&_sort=-date&_count=20"
    if reads.modalities & set(PIXELS):
        asked["imaging"] = f"ImagingStudy?{_OF_PATIENT}&_sort=-started&_count=20"
    return tuple(asked.items())


class _Inputs:
    """What a version reads: names of fields, channels and genomics, and its modalities with encoders."""

    def __init__(self, version: ModelVersion) -> None:
        config: Any = version.metadata.get("config") or {}
        self.modalities = set(version.encoders) - registry_queries.unused_modalities(
            version.metadata, version.outcomes
        )
        self._series = _names(config.get("channels"))
        fields, genomics = _names(config.get("fields")), _names(config.get("genomics"))
        if "modalities" in config:
            fields = fields if "tabular" in config["modalities"] else set()
            genomics = genomics if "genomics" in config["modalities"] else set()
            self._series = self._series if "series" in config["modalities"] else set()
        self._names = (fields | genomics | self._series) if config else None

    def any(self, *names: str) -> bool:
        """Whether one of these is read."""
        return self._names is None or not self._names.isdisjoint(names)

    def is_course(self, name: str) -> bool:
        """Whether it is read as a course over time, not only its latest value."""
        return name in self._series or (self._names is None and name in _COURSES)


_COURSES = frozenset(one.name for one in catalogue.SERIES)


def _names(specs: Any) -> set[str]:
    return {str(spec.get("name")) for spec in specs or ()}


def _results(wanted: Iterable[catalogue.Measurement], reads: _Inputs) -> str:
    codes: dict[str, None] = {}
    count = 0
    for one in wanted:
        codes |= dict.fromkeys((*one.loinc, *PANELS.get(one.name, ())))
        count += PER_SERIES if reads.is_course(one.name) else PER_LATEST
    return _observations(codes, min(MOST, count))


def _observations(loinc: Iterable[str], count: int) -> str:
    code = ",".join(f"{catalogue.LOINC}|{one}" for one in loinc)
    return f"Observation?{_OF_PATIENT}&code={code}&_sort=-date&_count={count}"


def resolved(template: str, patient_id: str) -> str:
    """A template for one patient (INTEROP 5: the only token used here)."""
    return template.replace("{{context.patientId}}", patient_id)
