"""The bodies that are sent: a small call and one with a large prefetch; many patients, fresh tokens.

The records are those of the demo's simulated patients who are in hospital, under other ids and without notes
(pictures they have none of): so that every call needs a score and nothing else.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey

ISSUER, KID = "https://benchmark.example", "b1"
PATIENTS = 64  # so that calls about one patient rarely meet, as in a hospital
CANDIDATES = 96  # of whom the first PATIENTS are taken that the model gives a number for
LARGE = 161_000  # bytes
KEYS = {
    "Patient": "patient",
    "Encounter": "encounters",
    "Condition": "conditions",
    "MedicationRequest": "medications",
    "FamilyMemberHistory": "family",
    "vital-signs": "vitals",
    "laboratory": "labs",
    "social-history": "smoking",
    "": "variants",
}
UNSENT = ("notes", "imaging", "scores")  # prefetch keys for which the EHR says that there is nothing


@dataclass(frozen=True, slots=True)
class Sent:
    """One patient's prefetch, by key."""

    patient_id: str
    prefetch: Mapping[str, Any]

    def small(self) -> bytes:
        """The least that can be asked: one Patient."""
        return self._call({"patient": {"resourceType": "Patient", "id": self.patient_id}})

    def large(self, *, newest: float | None = None, at: datetime | None = None) -> bytes:
        """The whole record, filled up to 161 KB.

        newest, at  a heart rate that the record did not hold yet, and when it was measured
        """
        prefetch = dict(self.prefetch)
        if newest is not None and at is not None:
            entries = [*prefetch["vitals"]["entry"], {"resource": self._heart_rate(newest, at)}]
            prefetch["vitals"] = _bundle(entries)
        missing = LARGE - len(self._call(prefetch)) - len('"text":{"status":"generated","div":""},')
        text = {"status": "generated", "div": "x" * max(0, missing)}
        prefetch["patient"] = {**prefetch["patient"], "text": text}
        return self._call(prefetch)

    def _call(self, prefetch: Mapping[str, Any]) -> bytes:
        return orjson.dumps(
            {
                "hook": "patient-view",
                "hookInstance": str(uuid.uuid4()),
                "context": {"userId": "Practitioner/b", "patientId": self.patient_id},
                "prefetch": prefetch,
            }
        )

    def _heart_rate(self, value: float, at: datetime) -> dict[str, Any]:
        like = next(one["resource"] for one in self.prefetch["vitals"]["entry"])
        said = at.isoformat(timespec="seconds")
        return {
            **like,
            "id": f"{self.patient_id}-newest",
            "effectiveDateTime": said,
            "issued": said,
            "valueQuantity": {**like["valueQuantity"], "value": value},
        }


def candidates(clinic: Path) -> list[Sent]:
    """Patients to send, from the demo's FHIR files in a clinic's folder."""
    texts = [path.read_text() for path in sorted((clinic / "demo" / "fhir").glob("*.json"))]
    inside = [text for text in texts if '"in-progress"' in text]
    return [_sent(inside[place % len(inside)], f"b{place:03}") for place in range(CANDIDATES)]


def _sent(text: str, patient_id: str) -> Sent:
    theirs = orjson.loads(text)["id"]
    entries: dict[str, list[Any]] = {}
    for entry in orjson.loads(text.replace(theirs, patient_id))["entry"]:
        resource = entry["resource"]
        kind = resource["resourceType"]
        if kind != "DocumentReference":
            key = _category(resource) if kind == "Observation" else KEYS[kind]
            entries.setdefault(key, []).append({"resource": resource})
    patient = entries.pop("patient")[0]["resource"]
    bundles = {key: _bundle(found) for key, found in entries.items()}
    return Sent(patient_id, {"patient": patient, **dict.fromkeys(UNSENT), **bundles})


def _category(observation: Mapping[str, Any]) -> str:
    for category in observation.get("category", []):
        for coding in category.get("coding", []):
            if coding.get("code") in KEYS:
                return KEYS[coding["code"]]
    return KEYS[""]


def _bundle(entries: list[Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries}


def token(key: ECKey, url: str, *, life_s: int = 1800) -> str:
    """A fresh ES384 token for one call."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": url, "iat": now, "exp": now + life_s, "jti": str(uuid.uuid4())}
    return jwt.encode({"alg": "ES384", "typ": "JWT", "kid": KID}, claims, key, algorithms=["ES384"])
