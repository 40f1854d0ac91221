"""The bodies that are sent: a small call and one with a large prefetch; many patients, fresh tokens."""

from __future__ import annotations

import time
import uuid
from typing import Any

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey

ISSUER = "https://benchmark.example"
PATIENTS = 64  # so that calls about one patient rarely meet, as in a hospital
LARGE = 161_000  # bytes
CODES = (("8867-4", "Heart rate", "/min"), ("9279-1", "Respiratory rate", "/min"), ("59408-5", "SpO2", "%"))


def patient_id(place: int) -> str:
    """An id of always the same length."""
    return f"b{place:03}"


def small(place: int) -> bytes:
    """The least that can be asked: one Patient."""
    patient = {"resourceType": "Patient", "id": patient_id(place)}
    return _call(place, {"patient": patient})


def large(place: int, *, newest: float = 88.0, at: str = "2026-03-01T08:00:00Z") -> bytes:
    """A prefetch of observations, filled up to 161 KB; `newest` is the one that changes."""
    vitals = [_observation(place, number) for number in range(365)]
    vitals.append(_observation(place, 999, newest, at))
    patient = {
        "resourceType": "Patient", "id": patient_id(place), "gender": "female", "birthDate": "1950-06-01",
        "text": {"status": "generated", "div": "<div></div>"},
    }  # fmt: skip
    bundle = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": one} for one in vitals]}
    body = _call(place, {"patient": patient, "vitals": bundle})
    filling = "x" * max(0, LARGE - len(body))
    patient["text"] = {"status": "generated", "div": f"<div>{filling}</div>"}
    return _call(place, {"patient": patient, "vitals": bundle})


def token(key: ECKey, url: str, *, life_s: int = 1800) -> str:
    """A fresh ES384 token for one call."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": url, "iat": now, "exp": now + life_s, "jti": str(uuid.uuid4())}
    return jwt.encode({"alg": "ES384", "typ": "JWT", "kid": "b1"}, claims, key, algorithms=["ES384"])


def _call(place: int, prefetch: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "hook": "patient-view",
            "hookInstance": str(uuid.uuid4()),
            "context": {"userId": "Practitioner/b", "patientId": patient_id(place)},
            "prefetch": prefetch,
        }
    )


def _observation(place: int, number: int, value: float | None = None, at: str = "") -> dict[str, Any]:
    code, display, unit = CODES[number % len(CODES)] if value is None else CODES[0]
    return {
        "resourceType": "Observation",
        "id": f"{patient_id(place)}-o{number}",
        "status": "final",
        "category": [{"coding": [{"code": "vital-signs"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": display}]},
        "subject": {"reference": f"Patient/{patient_id(place)}"},
        "effectiveDateTime": at or f"2026-02-{number % 27 + 1:02}T{number % 24:02}:00:00Z",
        "valueQuantity": {
            "value": value or 70 + number % 25,
            "system": "http://unitsofmeasure.org",
            "code": unit,
        },
    }
