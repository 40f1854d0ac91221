"""How the notes of a simulated patient are worded: plain English that follows frailty and physiology.

Never a word on intensive care, death, or what the pictures show.
"""

from __future__ import annotations

import numpy as np

from cds.demo.simulating import SimulatedPatient

_BREATHING = (
    (
        "Comfortable at rest, speaking in full sentences.",
        "No distress, walking to the bathroom unaided.",
        "Lying flat without discomfort, good appetite.",
    ),
    (
        "Breathless on climbing stairs, speaking in short sentences.",
        "Needs one person's help to stand, tires quickly.",
        "Sleeps propped on two pillows, eating half portions.",
    ),
    (
        "Speaking in single words, using accessory muscles to breathe.",
        "Unable to lie flat, sitting forward and exhausted.",
        "Drowsy at times, cool hands and feet, refusing meals.",
    ),
)
_PLAN = (
    "Plan: observation on the ward, repeat bloods tomorrow.",
    "Plan: oxygen as needed, careful fluid balance, repeat bloods this evening.",
    "Plan: close observation, senior review requested, early warning score every hour.",
)
_NIGHT = (
    "Slept well. Observations stable, no concerns raised by the family.",
    "Restless night. Needed repositioning and reassurance several times.",
    "Poor night. Increasingly tired and confused about the time; family worried.",
)
_COMPLAINT = (
    "shortness of breath and cough for three days",
    "increasing breathlessness and swollen ankles",
    "fever, cough and fatigue for a week",
    "chest tightness and breathlessness on exertion",
)


def write_admission_note(patient: SimulatedPatient, conditions: list[str]) -> str:
    """The doctor's note on admission."""
    rng = patient.rng("admission note")
    level = _level(patient.causes.frailty + 0.35 * float(rng.standard_normal()))
    who = f"{round(patient.age_years)}-year-old {'woman' if patient.is_female else 'man'}"
    history = f"History of {_listed(conditions)}." if conditions else "No relevant history."
    lines = [
        f"{who} admitted with {_pick(rng, _COMPLAINT)}.",
        history,
        *_some(rng, _BREATHING[level], 2),
        _circulation(patient),
        _PLAN[level],
    ]
    return " ".join(lines)


def write_nursing_note(patient: SimulatedPatient) -> str:
    """The nurse's note of the same day."""
    rng = patient.rng("nursing note")
    level = _level(patient.causes.frailty + 0.35 * float(rng.standard_normal()))
    return " ".join(
        [
            "Nursing note.",
            *_some(rng, _BREATHING[level], 1),
            _NIGHT[level],
            "Pressure areas intact. Medication given as charted.",
        ]
    )


def _circulation(patient: SimulatedPatient) -> str:
    if patient.causes.physiology > 0.8:
        return "Tachycardic and clammy, urine output reduced."
    if patient.causes.physiology > -0.4:
        return "Pulse regular, peripheries warm, passing urine."
    return "Examination otherwise unremarkable."


def _level(frailty: float) -> int:
    return 0 if frailty < -0.3 else 1 if frailty < 0.7 else 2


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return _some(rng, choices, 1)[0]


def _some(rng: np.random.Generator, choices: tuple[str, ...], count: int) -> list[str]:
    order = rng.permutation(len(choices))
    return [choices[i] for i in sorted(order[:count])]


def _listed(words: list[str]) -> str:
    lower = [word.lower() if word[1:2].islower() else word for word in words]
    return lower[0] if len(lower) == 1 else ", ".join(lower[:-1]) + " and " + lower[-1]
