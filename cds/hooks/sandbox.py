"""Trying a hook from the admin's page: a real call, signed and verified, of which nothing stays but a note.

The call goes to the very view an EHR reaches, by a client and a key that exist for this call only. It runs in
one transaction that is rolled back: no patient, no card, no alert, no feedback and no request for a score is
left, so nothing is counted. What stays is an audit event that says "test". The sample patient is made for the
call; of a patient we hold, the record as it is counts as what the EHR sent, so that nothing of it changes.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import orjson
from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.db import transaction
from django.urls import resolve, reverse
from joserfc import jwt
from joserfc.jwk import ECKey

from cds.audit import recording
from cds.errors import Invalid
from cds.hooks import budget, client_auth, offering, prefetching, registering
from cds.hooks.contexts import FHIR_ID, WITH_ENCOUNTER, WITH_ORDERS
from cds.hooks.offering import Service
from cds.patients import importing
from cds.patients.models import Patient, Source

SOURCE = "sandbox"
USER = "Practitioner/sandbox"
SAMPLE = "sandbox-1"
TOKEN_S = 60


@dataclass(frozen=True, slots=True)
class Tried:
    """What was sent and what came back. Neither the key nor the signature is among it."""

    service: Service
    method: str
    url: str
    token_header: Mapping[str, Any]
    token_claims: Mapping[str, Any]
    body: Mapping[str, Any]
    status: int
    milliseconds: float
    answer: Mapping[str, Any]

    @property
    def cards(self) -> list[Mapping[str, Any]]:
        """The cards of a good answer."""
        return list(self.answer.get("cards", [])) if self.status == 200 else []


def try_service(service_id: str, *, patient: Patient | None, by: recording.Actor, now: datetime) -> Tried:
    """Call a service as an EHR would: with a sample body, or for a patient we hold.

    patient  one the caller has looked up by `access.get_patient`; None: the sample
    raises   NotFound for an unknown service; Invalid for a patient whose id no FHIR server could have
    """
    service = offering.get_service(service_id)
    if patient is not None and not FHIR_ID.fullmatch(patient.resource_id):
        raise Invalid("this patient's id is no FHIR id, so no EHR could ask for it")
    body = sample_body(service, patient, now=now)
    try:
        with transaction.atomic():
            tried = _call(service, body, patient, by=by, now=now)
            transaction.set_rollback(True)
    finally:
        client_auth.forget()  # the client is gone with the transaction
    with transaction.atomic():
        recording.record(
            by=by,
            action="hook.sandbox",
            object_type="HookService",
            object_id=service.id[:64],
            patient_id=patient.pk if patient is not None else None,
            now=now,
            outcome="success" if tried.status < 400 else "failed" if tried.status >= 500 else "refused",
            test=True,
            status=tried.status,
            milliseconds=round(tried.milliseconds, 1),
            cards=len(tried.cards),
        )
    return tried


def sample_body(service: Service, patient: Patient | None, *, now: datetime) -> dict[str, Any]:
    """The body of a call at the service's hook."""
    identity = patient.resource_id if patient is not None else SAMPLE
    context: dict[str, Any] = {"userId": USER, "patientId": identity}
    if service.hook in WITH_ENCOUNTER:
        context["encounterId"] = "sandbox-stay"
    if service.hook in WITH_ORDERS:
        context["draftOrders"] = _bundle("collection", _radiograph(identity))
    if service.hook == "order-select":
        context["selections"] = ["ServiceRequest/sandbox-radiograph"]
    if service.hook == "appointment-book":
        context["appointments"] = _bundle("collection", _appointment(identity))
    prefetch = {"patient": _patient(patient)} if patient is not None else _sample_prefetch(now)
    return {
        "hook": service.hook,
        "hookInstance": str(uuid.uuid4()),
        "context": context,
        "prefetch": prefetch,
    }


def _call(
    service: Service, body: dict[str, Any], patient: Patient | None, *, by: recording.Actor, now: datetime
) -> Tried:
    """Register a client, sign, call, all inside the caller's transaction."""
    key = ECKey.generate_key("P-384", parameters={"kid": uuid.uuid4().hex})
    issuer = f"{settings.PUBLIC_URL}/sandbox/{uuid.uuid4()}"
    registering.register(
        "Sandbox",
        issuer=issuer,
        jwks={"keys": [key.as_dict(private=False)]},
        source=_source(patient, now),
        by=by,
        now=now,
    )
    path, sent = reverse("cds-service", args=[service.id]), orjson.dumps(body)
    if patient is not None:
        prefetching.know(sent, patient=patient, service=service)
    issued = int(time.time())
    header = {"alg": "ES384", "typ": "JWT", "kid": key.kid}
    claims = {
        "iss": issuer,
        "aud": settings.PUBLIC_URL + path,
        "iat": issued,
        "exp": issued + TOKEN_S,
        "jti": str(uuid.uuid4()),
    }
    token = jwt.encode(header, claims, key, algorithms=["ES384"])
    view = resolve(path)
    request = _request(path, sent, token, address=by.address)
    began = time.perf_counter()
    response = view.func(request, *view.args, **view.kwargs)
    took = (time.perf_counter() - began) * 1000
    return Tried(
        service=service,
        method="POST",
        url=settings.PUBLIC_URL + path,
        token_header=header,
        token_claims=claims,
        body=body,
        status=response.status_code,
        milliseconds=took,
        answer=orjson.loads(response.content) if response.content else {},
    )


def _request(path: str, body: bytes, token: str, *, address: str) -> WSGIRequest:
    """The call as a web server hands it on."""
    public = urlsplit(settings.PUBLIC_URL)
    return WSGIRequest(
        {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": public.hostname or "localhost",
            "SERVER_PORT": str(public.port or (443 if public.scheme == "https" else 80)),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": address,
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_AUTHORIZATION": f"Bearer {token}",
            "wsgi.url_scheme": public.scheme,
            "wsgi.input": io.BytesIO(body),
            budget.NO_WAIT_KEY: True,  # a worker could not see a request for a score that is rolled back
        }
    )


def _source(patient: Patient | None, now: datetime) -> Source:
    if patient is not None:
        return patient.source
    source = importing.get_source(SOURCE, title="Sandbox", now=now)
    source.simulated = True
    source.save(update_fields=["simulated"])
    return source


def _patient(patient: Patient) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": patient.resource_id,
        **({"gender": patient.sex} if patient.sex in {"male", "female", "other", "unknown"} else {}),
        **({"birthDate": patient.birth_date.isoformat()} if patient.birth_date else {}),
    }


def _sample_prefetch(now: datetime) -> dict[str, Any]:
    vitals = [("8867-4", 112, "/min"), ("9279-1", 26, "/min"), ("59408-5", 91, "%")]
    return {
        "patient": {
            "resourceType": "Patient",
            "id": SAMPLE,
            "gender": "female",
            "birthDate": "1950-06-01",
            "name": [{"family": "Sample", "given": ["Simulated"]}],
        },
        "vitals": _bundle(
            "searchset",
            *(
                {
                    "resourceType": "Observation",
                    "id": f"sandbox-{code}",
                    "status": "final",
                    "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
                    "subject": {"reference": f"Patient/{SAMPLE}"},
                    "effectiveDateTime": now.isoformat(),
                    "valueQuantity": {
                        "value": value,
                        "system": "http://unitsofmeasure.org",
                        "code": unit,
                    },
                }
                for code, value, unit in vitals
            ),
        ),
    }


def _radiograph(patient_id: str) -> dict[str, Any]:
    return {
        "resourceType": "ServiceRequest",
        "id": "sandbox-radiograph",
        "status": "draft",
        "intent": "order",
        "subject": {"reference": f"Patient/{patient_id}"},
        "code": {
            "coding": [{"system": "http://snomed.info/sct", "code": "399208008"}],
            "text": "Chest X-ray",
        },
    }


def _appointment(patient_id: str) -> dict[str, Any]:
    return {
        "resourceType": "Appointment",
        "id": "sandbox-appointment",
        "status": "proposed",
        "participant": [{"actor": {"reference": f"Patient/{patient_id}"}, "status": "tentative"}],
    }


def _bundle(kind: str, *resources: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Bundle",
        "type": kind,
        "entry": [{"resource": resource} for resource in resources],
    }
