"""The official CDS Hooks sandbox, unchanged, at the open demo: what it sends gets a card, and grants nothing.

Headers and body as its source makes them (`jwt-generator.js`, `service-exchange.js` of cds-hooks/sandbox).
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from django.test import Client
from joserfc import jwt
from joserfc.jwk import ECKey

from cds.hooks.models import CardShown, HookClient, SpentToken
from cds.patients.models import Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import BASE, ISSUER, SERVICE, hook_body, patient_resource, searchset, token

ORIGIN = "https://sandbox.cds-hooks.org"
KEY = ECKey.generate_key("P-256")


@pytest.fixture(autouse=True)
def _open_demo(settings: Any) -> None:
    settings.HOOKS_OPEN, settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = True, 0, 60.0


def sandbox_token(url: str, **changes: Any) -> str:
    now = round(time.time())
    top = {
        "alg": "ES256",
        "typ": "JWT",
        "kid": "d9cd3c4f-eb08-4304-b973-44f352fd2ca2",
        "jku": f"{ORIGIN}/.well-known/jwks.json",
    }
    said = {
        "iss": ORIGIN,
        "sub": "48163c5e-88b5-4cb3-92d3-23b800caa927",
        "aud": url,
        "exp": now + 300,
        "iat": now,
        "jti": str(uuid.uuid4()),
        **changes,
    }
    return jwt.encode(top, said, KEY, algorithms=["ES256"])


def sandbox_body(**more: Any) -> dict[str, Any]:
    return {
        "hookInstance": str(uuid.uuid4()),
        "hook": "patient-view",
        "fhirServer": "https://api.hspconsortium.org/cdshooksr4/open",
        "context": {"patientId": "SMART-1288992", "userId": "Practitioner/COREPRACTITIONER1"},
        "prefetch": {
            "patient": patient_resource("SMART-1288992"),
            "encounters": searchset(),
            "labs": searchset(),
        },
        **more,
    }


def sent(path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    headers = {
        "Accept": "application/json",
        "Authorization": f"Bearer {sandbox_token(BASE + path)}",
        "Origin": ORIGIN,
        **headers,
    }
    if body is None:
        return Client().get(path, headers=headers)
    return Client().post(
        path, data=json.dumps(body), content_type="application/json;charset=utf-8", headers=headers
    )


def test_discovery_and_a_card_for_what_it_sends(version: ModelVersion) -> None:
    found = sent("/cds-services")
    assert SERVICE.rpartition("/")[2] in {one["id"] for one in found.json()["services"]}
    answer = sent(SERVICE, sandbox_body())
    assert answer.status_code == 200
    assert len(answer.json()["cards"]) == 1
    assert answer["Access-Control-Allow-Origin"] == ORIGIN
    assert "Retry-After" in answer["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:8080"])
@pytest.mark.parametrize("path", ["/cds-services", SERVICE, f"{SERVICE}/feedback"])
def test_its_browser_may_call_this_machine(version: ModelVersion, origin: str, path: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = Client().options(path, headers=asked)
    assert answer.status_code == 204
    assert answer["Access-Control-Allow-Origin"] == origin
    assert answer["Access-Control-Allow-Private-Network"] == "true"
    elsewhere = Client().options(path, headers={**asked, "Origin": "https://elsewhere.example"})
    assert elsewhere.status_code == 403
    assert "Access-Control-Allow-Private-Network" not in elsewhere


def test_its_token_grants_nothing(version: ModelVersion, hook_client: HookClient) -> None:
    """It is as if none had come: the patient is the open demo's, and nobody's FHIR server is read."""
    claimed = sandbox_token(BASE + SERVICE, sub=ISSUER, tenant="t", patient="p1")
    sent(SERVICE, sandbox_body(), Authorization=f"Bearer {claimed}")
    patient = Patient.objects.get()
    assert patient.source.slug == "hooks-open"
    assert CardShown.objects.get().client is None
    assert not SpentToken.objects.exists()


def test_whoever_claims_a_registered_issuer_must_prove_it(
    version: ModelVersion, hook_client: HookClient
) -> None:
    forged = sandbox_token(BASE + SERVICE, iss=ISSUER)
    assert sent(SERVICE, sandbox_body(), Authorization=f"Bearer {forged}").status_code == 401
    right = sent(SERVICE, hook_body(), Authorization=f"Bearer {token(BASE + SERVICE)}")
    assert right.status_code == 200
    assert Patient.objects.get().source == hook_client.source
    HookClient.objects.update(is_active=False)
    forged = sandbox_token(BASE + SERVICE, iss=ISSUER)
    assert sent(SERVICE, sandbox_body(), Authorization=f"Bearer {forged}").status_code == 401


@pytest.mark.parametrize(
    "words", ["Bearer x", "Bearer a.b.c", "Basic YTpi", "Bearer ", f"Bearer {'x' * 9000}"]
)
def test_what_is_no_jwt_is_still_refused(version: ModelVersion, words: str) -> None:
    assert sent(SERVICE, sandbox_body(), Authorization=words).status_code == 401


def test_not_from_elsewhere_and_not_where_it_is_not_open(version: ModelVersion, settings: Any) -> None:
    bearer = {"Authorization": f"Bearer {sandbox_token(BASE + '/cds-services')}", "Origin": ORIGIN}
    assert Client(REMOTE_ADDR="192.0.2.7").get("/cds-services", headers=bearer).status_code == 401
    settings.HOOKS_OPEN = False
    answer = Client().get("/cds-services", headers=bearer)
    assert answer.status_code == 401
    assert "ES384" in answer.json()["issue"][0]["diagnostics"]
    assert "Access-Control-Allow-Origin" not in answer


@pytest.mark.parametrize("path", ["/cds-services", SERVICE, f"{SERVICE}/feedback", "/cds-services/a/b"])
def test_another_host_is_refused_in_words_of_fhir_that_a_browser_may_read(db: None, path: str) -> None:
    http = Client(
        headers={"Host": "tessera.elsewhere.example", "Origin": ORIGIN}, raise_request_exception=False
    )
    for answer in (
        http.get(path),
        http.post(path, "{}", content_type="application/json"),
        http.options(path),
    ):
        assert answer.status_code == 400
        said = answer.json()
        assert said["resourceType"] == "OperationOutcome"
        assert "ALLOWED_HOSTS" in said["issue"][0]["diagnostics"]
        assert answer["Access-Control-Allow-Origin"] == ORIGIN
    assert (
        Client(headers={"Host": "evil.example"}).get("/login").headers["Content-Type"].startswith("text/html")
    )
