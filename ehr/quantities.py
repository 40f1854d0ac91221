# ruff: noqa: E501 - the tables are read by column
"""The quantities Tessera knows: one canonical UCUM unit each, and the LOINC codes that mean it.

A row is `key  unit  LOINC codes  what else is known`. Codes in one row measure the same thing, so their values
may be compared once they are in the same unit; specimens that differ in meaning (arterial and venous blood
gases, D-dimer in FEU and DDU) have rows of their own. Sources: LOINC 2.77 (code meanings), UCUM 2.1 (units),
IUPAC abridged standard atomic weights 2021 (molar masses are computed from the formula).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# g/mol, IUPAC (CIAAW) abridged standard atomic weights 2021
ATOMIC_WEIGHTS = {
    "H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "Na": 22.990, "Mg": 24.305, "P": 30.974, "S": 32.06,
    "Cl": 35.45, "K": 39.098, "Ca": 40.078, "Fe": 55.845, "Co": 58.933, "I": 126.90,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    """A measurable quantity.

    unit        canonical UCUM unit
    loincs      the LOINC codes that mean it, the preferred one first
    molar_mass  g/mol for mol ↔ mass, None where the two cannot be exchanged
    valence     charge for meq ↔ mmol, 0 where it does not apply
    low, high   physically possible range in `unit`; outside it the unit (or the value) must be wrong
    """

    key: str
    unit: str
    loincs: tuple[str, ...]
    molar_mass: float | None = None
    valence: int = 0
    low: float | None = 0.0
    high: float | None = None


def molar_mass(formula: str) -> float:
    """g/mol of a molecular formula such as "C6H12O6"."""
    return sum(
        ATOMIC_WEIGHTS[symbol] * int(count or 1)
        for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    )


# What "mol" counts where it is not obvious: urea nitrogen counts urea (2 N each), phosphate counts P,
# triglyceride is taken as triolein, haemoglobin as its monomer (ICSH: 16114.5 g/mol).
_HAEMOGLOBIN_MONOMER = 16114.5

_VITALS = """
heart-rate            /min      8867-4 76282-3 8889-8 8893-0                              max=600
respiratory-rate      /min      9279-1                                                    max=300
systolic-pressure     mm[Hg]    8480-6 8459-0 8460-8 8461-6 76534-7 76215-3               max=400
diastolic-pressure    mm[Hg]    8462-4 8453-3 8454-1 8455-8 76535-4 76213-8               max=400
mean-pressure         mm[Hg]    8478-0 76536-2 76214-6                                    max=400
central-venous-pressure mm[Hg]  60985-9                                                   min=-30 max=100
temperature           Cel       8310-5 8331-1 8332-9 8328-7 8333-7 8329-5 8334-5 75539-7  min=10 max=50
oxygen-saturation     %         2708-6 59408-5 20564-1                                    max=100
inspired-oxygen       %         3150-6 19994-3                                            min=15 max=100
oxygen-flow           L/min     3151-8                                                    max=200
weight                kg        29463-7 3141-9 3142-7 8341-0 8335-2                       max=800
height                cm        8302-2 3137-7 3138-5 8306-3 8301-4                        min=10 max=300
body-mass-index       kg/m2     39156-5                                                   max=300
body-surface          m2        3140-1                                                    max=6
head-circumference    cm        9843-4 8287-5                                             max=100
waist-circumference   cm        8280-0                                                    max=400
coma-scale            {score}   9269-2                                                    min=3 max=15
coma-scale-eye        {score}   9267-6                                                    min=1 max=4
coma-scale-verbal     {score}   9270-0                                                    min=1 max=5
coma-scale-motor      {score}   9268-4                                                    min=1 max=6
pain                  {score}   72514-3 38208-5                                           max=10
ejection-fraction     %         10230-1 18043-0 8806-2                                    max=100
peep                  cm[H2O]   20077-4                                                   max=100
fev1                  L         20150-9                                                   max=15
fev1-over-fvc         %         19926-5                                                   max=150
pr-interval           ms        8625-6
qrs-duration          ms        8633-0
qtc-interval          ms        8636-3
"""

_BLOOD_CELLS = """
leukocytes            10*3/uL   6690-2 26464-8 804-5
neutrophils           10*3/uL   751-8 26499-4 753-4
neutrophils-share     %         770-8 26511-6                                             max=100
lymphocytes           10*3/uL   731-0 26474-7 732-8
lymphocytes-share     %         736-9 26478-8                                             max=100
monocytes             10*3/uL   742-7 26484-6
monocytes-share       %         5905-5 26485-3                                            max=100
eosinophils           10*3/uL   711-2 26449-9
eosinophils-share     %         713-8 26450-7                                             max=100
basophils             10*3/uL   704-7 26444-0
basophils-share       %         706-2 30180-4                                             max=100
erythrocytes          10*6/uL   789-8 26453-1                                             max=20
haemoglobin           g/dL      718-7 20509-6 30313-1 30350-3 59260-0                     molar=haemoglobin max=40
haematocrit           %         4544-3 20570-8 48703-3                                    max=100
mcv                   fL        787-2 30428-7
mch                   pg        785-6 28539-5
mchc                  g/dL      786-4 28540-3
rdw                   %         788-0 30385-9                                             max=100
rdw-sd                fL        21000-5 30384-2
platelets             10*3/uL   777-3 26515-7 778-1 49497-1
mpv                   fL        32623-1 28542-9 776-5
pdw                   fL        32207-3
reticulocytes-share   %         17849-1                                                   max=100
sedimentation-rate    mm/h      4537-7 30341-2
"""

_CHEMISTRY = """
sodium                mmol/L    2951-2 2947-0 32717-1                                     molar=Na valence=1
potassium             mmol/L    2823-3 6298-4 32713-0                                     molar=K valence=1
chloride              mmol/L    2075-0 2069-3                                             molar=Cl valence=1
bicarbonate           mmol/L    1963-8 1959-6 1960-4 14627-4                              valence=1
total-co2             mmol/L    2028-9 20565-8 2026-3 2027-1                              valence=1
anion-gap             mmol/L    33037-3 1863-0 10466-1                                    valence=1 min=-50
glucose               mg/dL     2345-7 2339-0 14749-6 15074-8 41653-7 2340-8 32016-8 14743-9 1558-6 14771-0  molar=C6H12O6
urea-nitrogen         mg/dL     3094-0 6299-2 14937-7 22664-7                             molar=N2
urea                  mg/dL     3091-6                                                    molar=CH4N2O
creatinine            mg/dL     2160-0 38483-4 59826-8 14682-9                            molar=C4H7N3O
egfr                  mL/min/{1.73_m2}  33914-3 48642-3 48643-1 62238-1 98979-8 88293-6 88294-4 77147-7
calcium               mg/dL     17861-6 49765-1 2000-8                                    molar=Ca valence=2
calcium-ionised       mmol/L    1994-3 1995-0 13959-2                                     molar=Ca valence=2
magnesium             mg/dL     19123-9 2601-3                                            molar=Mg valence=2
phosphate             mg/dL     2777-1 14879-1                                            molar=P
albumin               g/dL      1751-7 61151-7 61152-5 2862-1
protein               g/dL      2885-2
globulin              g/dL      10834-0 2336-6
bilirubin             mg/dL     1975-2 14631-6 42719-5                                    molar=C33H36N4O6
bilirubin-direct      mg/dL     1968-7 14629-0                                            molar=C33H36N4O6
aspartate-transaminase U/L      1920-8 30239-8
alanine-transaminase  U/L       1742-6 1743-4 1744-2
alkaline-phosphatase  U/L       6768-6
gamma-glutamyl-transferase U/L  2324-2
lactate-dehydrogenase U/L       2532-0 14804-9 14805-6
creatine-kinase       U/L       2157-6
creatine-kinase-mb    ng/mL     13969-1
lipase                U/L       3040-3
amylase               U/L       1798-8
lactate               mmol/L    2524-7 32693-4 2518-9 2519-7 14118-4                      molar=C3H6O3 valence=1
uric-acid             mg/dL     3084-1 14933-6                                            molar=C5H4N4O3
iron                  ug/dL     2498-4 14798-3                                            molar=Fe
iron-binding-capacity ug/dL     2500-7 14800-7                                            molar=Fe
transferrin-saturation %        2502-3                                                    max=150
ferritin              ng/mL     2276-4 20567-4
ammonia               umol/L    16362-6 22763-7                                           molar=NH3
osmolality            mosm/kg   2692-2
cholesterol           mg/dL     2093-3 14647-2 35200-5                                    molar=C27H46O
hdl-cholesterol       mg/dL     2085-9 14646-4                                            molar=C27H46O
ldl-cholesterol       mg/dL     2089-1 18262-6 13457-7 22748-8 39469-2                    molar=C27H46O
triglyceride          mg/dL     2571-8 14927-8 35217-9                                    molar=C57H104O6
haemoglobin-a1c       %         4548-4 17856-6 4549-2 59261-8                             max=40
albumin-creatinine-ratio mg/g   14959-1 9318-7 32294-1
"""

_MARKERS = """
c-reactive-protein    mg/L      1988-5 30522-7
procalcitonin         ng/mL     33959-8 75241-0
interleukin-6         pg/mL     26881-3
troponin-i            ng/mL     10839-9 89579-7 49563-0 42757-5
troponin-t            ng/mL     6598-7 67151-1
bnp                   pg/mL     30934-4 42637-9
nt-pro-bnp            pg/mL     33762-6 83107-3
d-dimer-feu           ng/mL{FEU} 48065-7 48067-3 71427-9
d-dimer-ddu           ng/mL{DDU} 48066-5 48058-2
inr                   1         6301-6 34714-6                                            max=100
prothrombin-time      s         5902-2 5964-2
aptt                  s         3173-2 14979-9
fibrinogen            mg/dL     3255-7
tsh                   m[IU]/L   3016-3 11580-8
thyroxine-free        ng/dL     3024-7 14920-3                                            molar=C15H11I4NO4
cortisol              ug/dL     2143-6 14675-3                                            molar=C21H30O5
vitamin-b12           pg/mL     2132-9 14685-2                                            molar=C63H88CoN14O14P
folate                ng/mL     2284-8 14732-2                                            molar=C19H19N7O6
vitamin-d-25-hydroxy  ng/mL     1989-3 62292-8                                            molar=C27H44O2
prostate-antigen      ng/mL     2857-1
digoxin               ng/mL     10535-3 14698-5                                           molar=C41H64O14
vancomycin            ug/mL     4092-3 20578-1                                            molar=C66H75Cl2N9O24
acetaminophen         ug/mL     3298-7                                                    molar=C8H9NO2
ethanol               mg/dL     5643-2                                                    molar=C2H6O
ph-arterial           [pH]      2744-1                                                    min=6 max=9
ph-venous             [pH]      2746-6                                                    min=6 max=9
ph-blood              [pH]      11558-4                                                   min=6 max=9
oxygen-pressure-arterial mm[Hg] 2703-7                                                    max=900
oxygen-pressure-venous mm[Hg]   2705-2                                                    max=900
oxygen-pressure-blood mm[Hg]    11556-8                                                   max=900
carbon-dioxide-pressure-arterial mm[Hg] 2019-8                                            max=400
carbon-dioxide-pressure-venous mm[Hg] 2021-4                                              max=400
carbon-dioxide-pressure-blood mm[Hg] 11557-6                                              max=400
base-excess-arterial  mmol/L    1925-7                                                    valence=1 min=-60 max=60
base-excess-blood     mmol/L    11555-0                                                   valence=1 min=-60 max=60
horowitz-index        mm[Hg]    50984-4                                                   max=1000
"""


def _read_row(row: str) -> Quantity:
    key, unit, *rest = row.split()
    quantity = Quantity(key, unit, tuple(item for item in rest if "=" not in item))
    for name, text in (item.split("=") for item in rest if "=" in item):
        if name == "molar":
            mass = _HAEMOGLOBIN_MONOMER if text == "haemoglobin" else molar_mass(text)
            quantity = replace(quantity, molar_mass=mass)
        elif name == "valence":
            quantity = replace(quantity, valence=int(text))
        else:
            quantity = (
                replace(quantity, low=float(text)) if name == "min" else replace(quantity, high=float(text))
            )
    return quantity


QUANTITIES: dict[str, Quantity] = {
    quantity.key: quantity
    for table in (_VITALS, _BLOOD_CELLS, _CHEMISTRY, _MARKERS)
    for quantity in map(_read_row, filter(str.strip, table.splitlines()))
}

BY_LOINC: dict[str, Quantity] = {loinc: q for q in QUANTITIES.values() for loinc in q.loincs}


def find_quantity(loinc_or_key: str) -> Quantity | None:
    """The quantity of a LOINC code, or of one of our keys ("creatinine"); None when Tessera does not know it."""
    return BY_LOINC.get(loinc_or_key) or QUANTITIES.get(loinc_or_key)
