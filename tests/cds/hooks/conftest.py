"""An EHR with a key of its own, a model that is active, and calls signed as the specification says."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from joserfc import jwt
from joserfc.jwk import ECKey

from cds.audit import recording
from cds.hooks import client_auth, limiting, linking, offering, origins, registering
from cds.hooks.models import HookClient
from cds.patients import importing
from cds.patients.models import Patient
from cds.registry.models import ActiveModel, ModelVersion
from cds.risk import thresholds
from cds.risk.models import AssessmentStatus, RiskAssessment, RiskPrediction

BASE = "http://127.0.0.1:8000"
ISSUER = "https://ehr.example.org"
SERVICE = "/cds-services/tessera-icu-admission-patient-view"
KEY = ECKey.generate_key("P-384", parameters={"kid": "k1"})


@pytest.fixture(autouse=True)
def _no_connection_kept_for_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that keeps one would keep the test's database from being removed."""
    monkeypatch.setattr(limiting, "KEPT_S", 0.0)


@pytest.fixture(autouse=True)
def _nothing_kept_from_another_test() -> None:
    """Processes keep for two seconds what they read of clients and of active models."""
    client_auth.forget()
    offering.forget()
    linking.forget()
    origins.forget()


@pytest.fixture
def hook_client(db: None) -> HookClient:
    """A registered EHR whose patients live in source `ehr`."""
    now = timezone.now()
    offering.forget()
    client, _ = registering.register(
        "Example EHR",
        issuer=ISSUER,
        jwks={"keys": [KEY.as_dict(private=False)]},
        source=importing.get_source("ehr", now=now),
        origins=["https://ehr.example.org"],
        by=recording.system("tests"),
        now=now,
    )
    return client


@pytest.fixture
def version(db: None) -> ModelVersion:
    """An active model of icu-admission that reads notes and chest images."""
    now = timezone.now()
    version = ModelVersion.objects.create(
        name="icu-admission",
        number=3,
        outcomes=["icu-admission"],
        stage="active",
        path="nowhere",
        digest="0" * 64,
        encoders={"text": "minilm:1", "image": "efficientnet_lite0:1"},
        created_at=now,
    )
    ActiveModel.objects.create(outcome="icu-admission", version=version, since=now)
    return version


def token(url: str, *, key: Any = KEY, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A JWT as an EHR signs it; `claims` and `header` replace what is right, None removes it."""
    now = int(time.time())
    said = {"iss": ISSUER, "aud": url, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())} | claims
    top = {"alg": "ES384", "typ": "JWT", "kid": "k1"} | (header or {})
    return jwt.encode(
        {name: value for name, value in top.items() if value is not None},
        {name: value for name, value in said.items() if value is not None},
        key,
        algorithms=["ES384", "RS384", "HS256", "ES256"],
    )


Call = Callable[..., HttpResponse]


@pytest.fixture
def call(hook_client: HookClient, settings: Any) -> Call:
    """Call an address as the registered EHR does: `call(path, body)`; `raw` sends bytes as they are."""
    settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = 0, 60.0  # a busy machine is no fault of the call
    http = Client(raise_request_exception=False)

    def send(
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        bearer: str | None = None,
        content_type: str = "application/json",
        **headers: str,
    ) -> HttpResponse:
        sent = {"Authorization": f"Bearer {bearer or token(BASE + path)}", **headers}
        if body is None and raw is None:
            return http.get(path, headers=sent)
        data = orjson.dumps(body) if raw is None else raw
        return http.post(path, data=data, content_type=content_type, headers=sent)

    return send


def patient_resource(patient_id: str = "p1") -> dict[str, Any]:
    """A FHIR Patient."""
    return {
        "resourceType": "Patient",
        "id": patient_id,
        "gender": "female",
        "birthDate": "1950-06-01",
        "name": [{"family": "Testperson", "given": ["Ada"]}],
    }


def heart_rate(
    value: float, *, at: datetime, resource_id: str = "hr1", patient_id: str = "p1"
) -> dict[str, Any]:
    """A FHIR Observation of the heart rate."""
    return {
        "resourceType": "Observation",
        "id": resource_id,
        "status": "final",
        "category": [{"coding": [{"code": "vital-signs"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": f"Patient/{patient_id}"},
        "effectiveDateTime": at.isoformat(),
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "/min"},
    }


def searchset(*resources: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A FHIR searchset Bundle."""
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [{"resource": resource} for resource in resources],
        **more,
    }


def hook_body(patient_id: str = "p1", prefetch: Any = ..., **changes: Any) -> dict[str, Any]:
    """A patient-view call with a small prefetch."""
    if prefetch is ...:
        vitals = searchset(heart_rate(88, at=timezone.now() - timedelta(hours=1), patient_id=patient_id))
        prefetch = {"patient": patient_resource(patient_id), "vitals": vitals}
    body = {
        "hook": "patient-view",
        "hookInstance": str(uuid.uuid4()),
        "context": {"userId": "Practitioner/example", "patientId": patient_id},
        "prefetch": prefetch,
    }
    return {name: value for name, value in (body | changes).items() if value is not ...}


def make_score(
    patient: Patient,
    version: ModelVersion,
    *,
    risk: float = 0.31,
    as_of: datetime | None = None,
    **changes: Any,
) -> RiskAssessment:
    """A score that was computed for the record as it is now."""
    as_of = as_of or timezone.now()
    known: dict[str, Any] = {
        "patient": patient,
        "version": version,
        "key": uuid.uuid4().hex,
        "status": AssessmentStatus.FINAL,
        "work_state": "done",
        "as_of": as_of,
        "revision": patient.revision,
        "inputs_digest": "1" * 64,
        "data_until": as_of - timedelta(minutes=7),
        "present": ["tabular", "image"],
        "missing": ["cine"],
        "missing_fields": ["lactate"],
        "queued_at": as_of,
    }
    assessment = RiskAssessment.objects.create(**{**known, **changes})
    if assessment.status != AssessmentStatus.CANCELLED:
        RiskPrediction.objects.create(
            assessment=assessment,
            outcome="icu-admission",
            label="Admission to intensive care within 14 days",
            horizon_hours=336,
            risk=risk,
            low=risk * 0.7,
            high=min(1.0, risk * 1.4),
            level=0.9,
            base_rate=0.12,
            category=thresholds.category_of("icu-admission", risk).value,
            explanation={
                "drivers": [
                    {"label": "Oxygen saturation", "points": 0.12, "value": 88.0, "unit": "%"},
                    {"label": "C-reactive protein", "points": 0.05, "value": 120.0, "unit": "mg/L"},
                    {"label": "Age", "points": -0.02, "value": 41.0, "unit": "a"},
                    {"label": "Female sex", "points": 0.001, "value": 1.0, "unit": "1"},
                ]
            },
        )
    return assessment
