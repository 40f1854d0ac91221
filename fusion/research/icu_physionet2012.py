"""Intensive care: 48 h of irregular labs and vitals → death in hospital (PhysioNet/CinC 2012, set A).

Read from records.csv.gz (RecordID, Time as hh:mm since admission, Parameter, Value; -1 = unknown) and
outcomes.csv. One row a stay, judged 48 h after admission. Age, sex, height and kind of unit are fields; they
also stand in the series, as in the challenge's files (recorded at 00:00): what a lab value means depends on
age, and a sum of two modalities cannot say so. The simple stack would count them twice and leaves them to the
series (`fusion.baselines.counted_once`): it is boosting on the 48 h series then. The other parameters are
series in the units of the challenge. A value outside its plausible range is missing.

SAPS-I and SOFA are computed from the same hours by others: they are a baseline (`extra["severity"]`), not an
input. Days to death, and days in hospital where death was not recorded, stand in `extra["survival"]`.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from pathlib import Path

from fusion.config import FieldKind, FieldSpec
from fusion.errors import BadInput
from fusion.examples import Example
from fusion.inputs import Modality, PatientInputs, SeriesPoint
from fusion.research import Collection, Task

TASK = "in_hospital_death"
HOURS = 48.0  # of record before the moment of judgement
UNITS = {1: "coronary", 2: "cardiac surgery", 3: "medical", 4: "surgical"}
FIELDS = (
    FieldSpec("age", "Age", "a", low=15, high=110),
    FieldSpec("male", "Male", kind=FieldKind.BINARY),
    FieldSpec("height", "Height", "cm", low=120, high=230),
    *(
        FieldSpec(f"unit_{name.replace(' ', '_')}", f"Unit: {name}", kind=FieldKind.BINARY)
        for name in UNITS.values()
    ),
)
CHANNELS = FIELDS + tuple(
    FieldSpec(name, label, unit, low=low, high=high)
    for name, label, unit, low, high in (
        ("ALP", "Alkaline phosphatase", "U/L", 1, 5000),
        ("ALT", "Alanine transaminase", "U/L", 1, 20000),
        ("AST", "Aspartate transaminase", "U/L", 1, 30000),
        ("Albumin", "Albumin", "g/dL", 0.5, 7),
        ("BUN", "Urea nitrogen", "mg/dL", 1, 300),
        ("Bilirubin", "Bilirubin", "mg/dL", 0.05, 80),
        ("Cholesterol", "Cholesterol", "mg/dL", 20, 600),
        ("Creatinine", "Creatinine", "mg/dL", 0.1, 30),
        ("DiasABP", "Diastolic pressure, arterial line", "mm[Hg]", 10, 200),
        ("FiO2", "Inspired oxygen", "1", 0.2, 1),
        ("GCS", "Glasgow coma score", "{score}", 3, 15),
        ("Glucose", "Glucose", "mg/dL", 10, 1500),
        ("HCO3", "Bicarbonate", "mmol/L", 3, 60),
        ("HCT", "Haematocrit", "%", 5, 70),
        ("HR", "Heart rate", "/min", 15, 300),
        ("K", "Potassium", "mmol/L", 1, 15),
        ("Lactate", "Lactate", "mmol/L", 0.1, 35),
        ("MAP", "Mean pressure, arterial line", "mm[Hg]", 15, 250),
        ("MechVent", "Mechanical ventilation", "1", 0, 1),
        ("Mg", "Magnesium", "mmol/L", 0.2, 10),
        ("NIDiasABP", "Diastolic pressure, cuff", "mm[Hg]", 10, 200),
        ("NIMAP", "Mean pressure, cuff", "mm[Hg]", 15, 250),
        ("NISysABP", "Systolic pressure, cuff", "mm[Hg]", 30, 300),
        ("Na", "Sodium", "mmol/L", 90, 190),
        ("PaCO2", "Carbon dioxide, arterial", "mm[Hg]", 8, 150),
        ("PaO2", "Oxygen, arterial", "mm[Hg]", 20, 700),
        ("Platelets", "Platelets", "10*3/uL", 2, 2500),
        ("RespRate", "Respiratory rate", "/min", 2, 90),
        ("SaO2", "Oxygen saturation, arterial", "%", 30, 100),
        ("SysABP", "Systolic pressure, arterial line", "mm[Hg]", 30, 300),
        ("Temp", "Temperature", "Cel", 28, 43),
        ("TroponinI", "Troponin I", "ug/L", 0, 100),
        ("TroponinT", "Troponin T", "ug/L", 0, 50),
        ("Urine", "Urine output", "mL", 0, 5000),
        ("WBC", "Leukocytes", "10*3/uL", 0.05, 300),
        ("Weight", "Weight", "kg", 25, 300),
        ("pH", "pH, arterial", "[pH]", 6.5, 7.9),
    )
)
_CHANNELS = {spec.name for spec in CHANNELS}


def read(folder: Path) -> Collection:
    """The folder → one task. Raises BadInput for a missing table or column, or a value that is no number."""
    outcomes = _outcomes(folder / "outcomes.csv")
    static, series = _records(folder / "records.csv.gz", set(outcomes))
    examples = []
    for stay, facts in outcomes.items():
        fields, unit = _fields(static.get(stay, {}))
        admission = [SeriesPoint(name, HOURS, value) for name, value in fields.items() if value is not None]
        inputs = PatientInputs(key=stay, fields=fields, series=(*admission, *series.get(stay, ())))
        label = int(float(facts["In_hospital_death"]))
        examples.append(Example(inputs, {TASK: label}, stay, _attributes(fields, unit)))
    return Collection(
        name="icu_physionet2012",
        tasks={TASK: Task(name=TASK, label="Death in hospital", examples=tuple(examples))},
        settings={
            "fields": FIELDS,
            "channels": CHANNELS,
            "modalities": (Modality.TABULAR, Modality.SERIES),
            "series_hours": HOURS,
        },
        caveats=("One country, 2001 to 2008: treatment has changed since.",),
        extra={
            "severity": {stay: (_known(f["SAPS_I"]), _known(f["SOFA"])) for stay, f in outcomes.items()},
            "survival": {
                stay: (_known(f["Survival"]), _known(f["Length_of_stay"])) for stay, f in outcomes.items()
            },
        },
    )


def _outcomes(path: Path) -> dict[str, Mapping[str, str]]:
    needed = ("RecordID", "SAPS_I", "SOFA", "Length_of_stay", "Survival", "In_hospital_death")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as fault:
        raise BadInput(f"{path.name} cannot be read: {fault.strerror}") from fault
    if missing := [column for column in needed if not rows or column not in rows[0]]:
        raise BadInput(f"{path.name} lacks the columns {', '.join(missing)}")
    return {row["RecordID"]: row for row in rows}


def _records(path: Path, stays: set[str]) -> tuple[dict[str, dict[str, float]], dict[str, list[SeriesPoint]]]:
    """Static descriptors and series of each stay; what is after 48 h, or unknown, is left out."""
    static: dict[str, dict[str, float]] = {}
    series: dict[str, list[SeriesPoint]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != ["RecordID", "Time", "Parameter", "Value"]:
                raise BadInput(f"{path.name} must have the columns RecordID, Time, Parameter, Value")
            for stay, time, name, text in rows:
                if stay not in stays:
                    continue
                value = float(text)
                if name in _CHANNELS:
                    hour = int(time[:-3]) + int(time[-2:]) / 60
                    if value != -1 and hour <= HOURS:
                        series.setdefault(stay, []).append(SeriesPoint(name, HOURS - hour, value))
                elif value != -1:
                    static.setdefault(stay, {})[name] = value
    except (OSError, EOFError, ValueError) as fault:
        if isinstance(fault, BadInput):
            raise
        raise BadInput(f"{path.name} cannot be read: {type(fault).__name__}") from fault
    return static, series


def _fields(known: Mapping[str, float]) -> tuple[dict[str, float | None], str]:
    unit = UNITS.get(int(known.get("ICUType", 0)), "unknown")
    gender = known.get("Gender")
    fields: dict[str, float | None] = {
        "age": known.get("Age"),
        "male": gender if gender in (0.0, 1.0) else None,
        "height": known.get("Height"),
    }
    for name in UNITS.values():
        fields[f"unit_{name.replace(' ', '_')}"] = None if unit == "unknown" else float(unit == name)
    return fields, unit


def _attributes(fields: Mapping[str, float | None], unit: str) -> dict[str, str]:
    age, male = fields["age"], fields["male"]
    band = "unknown" if age is None else "under 50" if age < 50 else "50 to 69" if age < 70 else "70 and over"
    sex = "unknown" if male is None else "male" if male else "female"
    return {"age": band, "sex": sex, "unit": unit}


def _known(text: str) -> float | None:
    value = float(text)
    return None if value < 0 else value
