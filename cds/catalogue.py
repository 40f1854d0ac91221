"""The feature catalogue: what a model may know of a record, each with its codes, unit, range and window.

Data only: no database, no torch. `cds.features` turns it into `fusion.FieldSpec`s and reads the rows.
Units are UCUM and are those of `ehr.units`; a value outside `low`-`high` is a slip of the pen, not a patient.
Codes: LOINC for measurements, SNOMED CT and ICD-10 (by prefix) for conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A quantity by its LOINC codes (synonyms: first one found wins by time, not by order).

    window_days  how old the latest value may be and still describe the patient
    """

    name: str
    label: str
    loinc: tuple[str, ...]
    unit: str
    low: float
    high: float
    window_days: float


@dataclass(frozen=True, slots=True)
class ConditionFlag:
    """1 when a condition of this group is known and not abated; 0 when others are known; else missing."""

    name: str
    label: str
    snomed: frozenset[str]
    icd10: tuple[str, ...]  # prefixes


@dataclass(frozen=True, slots=True)
class Computed:
    """A field worked out from several rows; `how` names the rule in `cds.features`."""

    name: str
    label: str
    unit: str
    low: float
    high: float
    how: Literal["age", "female", "smoker", "medications", "conditions", "family_cardiac"]
    is_binary: bool = False
    code: str = ""


@dataclass(frozen=True, slots=True)
class Genomic:
    """A pathogenic variant in one of `genes` (1, 0 or missing), or, without genes, a score."""

    name: str
    label: str
    genes: tuple[str, ...] = ()
    unit: str = "1"
    low: float = 0.0
    high: float = 1.0


# -- vital signs (LOINC panel 85353-1) and laboratory results ---------------------------------------
@dataclass(frozen=True, slots=True)
class Measured:
    """A size that `risk.measuring` finds in pixels.

    low, high    what a body can have: a value outside it is not believed
    window_days  how old a picture's measurement may be to count
    reference    usual range (None: open), and whose it is
    """

    name: str
    label: str
    unit: str
    low: float
    high: float
    window_days: int
    reference: tuple[float | None, float | None] = (None, None)
    reference_source: str = ""


HEART_RATE = Measurement("heart_rate", "Heart rate", ("8867-4", "8889-8"), "/min", 15, 300, 7)
RESPIRATORY_RATE = Measurement("respiratory_rate", "Respiratory rate", ("9279-1",), "/min", 2, 90, 7)
SYSTOLIC = Measurement("systolic_bp", "Systolic blood pressure", ("8480-6", "8459-0"), "mm[Hg]", 40, 300, 30)
DIASTOLIC = Measurement(
    "diastolic_bp", "Diastolic blood pressure", ("8462-4", "8453-3"), "mm[Hg]", 15, 200, 30
)
TEMPERATURE = Measurement("temperature", "Body temperature", ("8310-5", "8331-1", "8329-5"), "Cel", 25, 45, 7)
SPO2 = Measurement("spo2", "Oxygen saturation", ("59408-5", "2708-6"), "%", 40, 100, 7)
BMI = Measurement("bmi", "Body mass index", ("39156-5",), "kg/m2", 8, 90, 1825)
CREATININE = Measurement("creatinine", "Creatinine", ("2160-0", "38483-4"), "mg/dL", 0.1, 30, 90)
CRP = Measurement("crp", "C-reactive protein", ("1988-5", "30522-7"), "mg/L", 0, 700, 30)
LACTATE = Measurement("lactate", "Lactate", ("2524-7", "32693-4", "2518-9"), "mmol/L", 0.1, 40, 7)
LEUKOCYTES = Measurement("leukocytes", "White blood cells", ("6690-2", "26464-8"), "10*3/uL", 0, 500, 30)
NEUTROPHILS = Measurement("neutrophils", "Neutrophils", ("751-8", "26499-4"), "10*3/uL", 0, 300, 30)
LYMPHOCYTES = Measurement("lymphocytes", "Lymphocytes", ("731-0", "26474-7"), "10*3/uL", 0, 400, 30)
HAEMOGLOBIN = Measurement("haemoglobin", "Haemoglobin", ("718-7",), "g/dL", 2, 26, 90)
PLATELETS = Measurement("platelets", "Platelets", ("777-3", "26515-7"), "10*3/uL", 1, 3000, 90)
SODIUM = Measurement("sodium", "Sodium", ("2951-2", "2947-0"), "mmol/L", 95, 200, 90)
POTASSIUM = Measurement("potassium", "Potassium", ("2823-3", "6298-4"), "mmol/L", 1, 10, 90)
UREA = Measurement("urea_nitrogen", "Urea nitrogen", ("3094-0", "6299-2"), "mg/dL", 1, 300, 90)
GLUCOSE = Measurement("glucose", "Glucose", ("2345-7", "2339-0"), "mg/dL", 10, 1500, 90)
NT_PROBNP = Measurement("nt_probnp", "NT-proBNP", ("33762-6",), "pg/mL", 0, 100000, 90)
BNP = Measurement("bnp", "BNP", ("30934-4", "42637-9"), "pg/mL", 0, 20000, 90)
TROPONIN = Measurement("troponin_i", "Troponin I", ("10839-9", "89579-7"), "ng/mL", 0, 500, 30)
EJECTION_FRACTION = Measurement(
    "ejection_fraction", "Ejection fraction", ("10230-1", "8806-2"), "%", 3, 95, 365
)

MEASURED: tuple[Measured, ...] = (
    Measured(
        "cardiothoracic_ratio", "Cardiothoracic ratio (measured)", "1", 0.2, 0.95, 365,
        (None, 0.50), "adults, upright frontal view (Danzer 1919)",
    ),
    Measured("lung_area", "Lung area (measured)", "cm2", 20, 1500, 365),
    Measured(
        "measured_ejection_fraction", "Ejection fraction (measured)", "%", 3, 95, 365,
        (52.0, 74.0), "adults, women and men together (ASE/EACVI 2015)",
    ),
    Measured("tumour_volume", "Brain tumour volume (measured)", "mL", 0.1, 500, 365),
)  # fmt: skip

SERIES: tuple[Measurement, ...] = (
    HEART_RATE, RESPIRATORY_RATE, SYSTOLIC, DIASTOLIC, TEMPERATURE, SPO2,
    CREATININE, CRP, LACTATE, LEUKOCYTES, NT_PROBNP, TROPONIN,
)  # fmt: skip
LATEST: tuple[Measurement, ...] = (
    *SERIES, BMI, NEUTROPHILS, LYMPHOCYTES, HAEMOGLOBIN, PLATELETS, SODIUM, POTASSIUM, UREA, GLUCOSE, BNP,
    EJECTION_FRACTION,
)  # fmt: skip

# -- who the patient is ------------------------------------------------------------------------------
SMOKING_STATUS = "72166-2"  # LOINC, answered with one of these SNOMED CT codes
SMOKES = frozenset({"449868002", "428041000124106", "428071000124103", "428061000124105", "77176002"})
DOES_NOT_SMOKE = frozenset({"266919005", "8517006", "8392000"})

COMPUTED: tuple[Computed, ...] = (
    Computed("age", "Age", "a", 0, 120, "age", code=f"{LOINC}|30525-0"),
    Computed("female", "Female sex", "1", 0, 1, "female", is_binary=True, code=f"{LOINC}|46098-0"),
    Computed(
        "smoker", "Current smoker", "1", 0, 1, "smoker", is_binary=True, code=f"{LOINC}|{SMOKING_STATUS}"
    ),
    Computed("active_medications", "Active medications", "1", 0, 80, "medications"),
    Computed("active_conditions", "Active conditions", "1", 0, 150, "conditions"),
    Computed("family_cardiac", "Heart disease in the family", "1", 0, 1, "family_cardiac", is_binary=True),
)

CARDIOMYOPATHY = ConditionFlag(
    "cardiomyopathy", "Cardiomyopathy", frozenset({"85898001", "399020009", "233873004"}), ("I42", "I43")
)
HEART_FAILURE = ConditionFlag(
    "heart_failure",
    "Heart failure",
    frozenset({"84114007", "88805009", "42343007", "85232009", "417996009"}),
    ("I50",),
)
CORONARY = ConditionFlag(
    "coronary_disease",
    "Coronary heart disease",
    frozenset({"53741008", "414545008", "22298006", "399211009", "194828000"}),
    ("I20", "I21", "I22", "I23", "I24", "I25"),
)
CONDITIONS: tuple[ConditionFlag, ...] = (
    HEART_FAILURE,
    CORONARY,
    CARDIOMYOPATHY,
    ConditionFlag(
        "hypertension",
        "Hypertension",
        frozenset({"38341003", "59621000"}),
        ("I10", "I11", "I12", "I13", "I15"),
    ),
    ConditionFlag(
        "atrial_fibrillation", "Atrial fibrillation", frozenset({"49436004", "282825002"}), ("I48",)
    ),
    ConditionFlag(
        "diabetes", "Diabetes", frozenset({"73211009", "44054006", "46635009"}), ("E10", "E11", "E13", "E14")
    ),
    ConditionFlag(
        "copd",
        "Chronic obstructive lung disease",
        frozenset({"13645005", "185086009", "87433001"}),
        ("J43", "J44"),
    ),
    ConditionFlag("asthma", "Asthma", frozenset({"195967001", "233678006", "195977004"}), ("J45",)),
    ConditionFlag(
        "chronic_kidney_disease",
        "Chronic kidney disease",
        frozenset(
            {
                "709044004",
                "431855005",
                "431856006",
                "433144002",
                "431857002",
                "433146000",
                "90688005",
                "46177005",
            }
        ),
        ("N18",),
    ),
    ConditionFlag("stroke", "Stroke", frozenset({"230690007", "422504002"}), ("I63", "I64")),
    ConditionFlag(
        "cancer",
        "Cancer",
        frozenset({"363346000", "254837009", "363406005", "254637007", "126906006"}),
        ("C",),
    ),
    ConditionFlag(
        "pneumonia",
        "Pneumonia",
        frozenset({"233604007", "882784691000119100", "75570004"}),
        ("J12", "J13", "J14", "J15", "J16", "J17", "J18"),
    ),
    ConditionFlag(
        "covid19", "COVID-19", frozenset({"840539006", "840544004"}), ("U07.1", "U071", "U07.2", "U072")
    ),
)
FAMILY_CARDIAC_SNOMED = (
    CARDIOMYOPATHY.snomed
    | HEART_FAILURE.snomed
    | CORONARY.snomed
    | frozenset({"56265001", "49601007", "266894000"})
)
FAMILY_CARDIAC_ICD10 = (*CARDIOMYOPATHY.icd10, *HEART_FAILURE.icd10, *CORONARY.icd10, "Z82.4", "Z824")

GENOMICS: tuple[Genomic, ...] = (
    Genomic(
        "cardiomyopathy_variant",
        "Pathogenic cardiomyopathy variant",
        ("TTN", "MYH7", "MYBPC3", "LMNA", "TNNT2", "RBM20", "FLNC", "BAG3"),
    ),
    Genomic("polygenic_risk", "Polygenic risk score", (), "1", -6, 6),
)


MODALITY_WORDS = {
    "tabular": "Record",
    "series": "Labs and vitals over time",
    "text": "Notes",
    "genomics": "Genomics",
    "image": "Image",
    "cine": "Cine",
    "volume": "Volume (CT or MR)",
}
YES_NO = frozenset(
    [one.name for one in COMPUTED if one.is_binary]
    + [flag.name for flag in CONDITIONS]
    + [one.name for one in GENOMICS if one.genes]
)
UNIT_WORDS = {
    "1": "",
    "a": "years",
    "mm[Hg]": "mmHg",
    "Cel": "°C",
    "10*3/uL": "×10³/µL",
    "umol/L": "µmol/L",
    "ug/L": "µg/L",
    "kg/m2": "kg/m²",
    "cm2": "cm²",
    "{score}": "",
    "d": "days",
}


def value_in_words(name: str, value: float, unit: str) -> str:
    """How a clinician writes a field's value: "yes", "72 years", "4.1 mmol/L"."""
    if name in YES_NO:
        return "yes" if value else "no"
    return f"{value:.4g} {UNIT_WORDS.get(unit, unit)}".strip()


def find_measurement(name: str) -> Measurement | None:
    """The measurement behind a field or channel, for whoever wants its raw values; None for other fields."""
    return _BY_NAME.get(name)


def label_of(name: str) -> str:
    """What people call a field; one that is in no table here by its own name, in words."""
    return _LABELS.get(name, name.replace("_", " "))


_BY_NAME = {measurement.name: measurement for measurement in LATEST}
_LABELS: dict[str, str] = {
    one.name: one.label for table in (COMPUTED, LATEST, CONDITIONS, GENOMICS, MEASURED) for one in table
}
