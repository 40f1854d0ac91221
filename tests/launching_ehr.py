"""An EHR that launches apps, on loopback: discovery, sign-in that says yes at once, tokens, keys, patients.

It checks what a real one would (redirect URI, PKCE, client assertion), and errs where a test tells it to.
`python -m tests.launching_ehr` runs it for people to try a launch: it prints the settings and the links.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from tests.conformance.peers import AllAtOnce

CLIENT = "tessera"
VALUES = (  # LOINC, what, value, UCUM unit: of the simulated patient that people may launch with
    ("8867-4", "Heart rate", 112, "/min"), ("9279-1", "Respiratory rate", 24, "/min"),
    ("8480-6", "Systolic blood pressure", 98, "mm[Hg]"), ("8462-4", "Diastolic blood pressure", 61, "mm[Hg]"),
    ("8310-5", "Body temperature", 38.4, "Cel"), ("2708-6", "Oxygen saturation", 91, "%"),
    ("2524-7", "Lactate", 3.1, "mmol/L"), ("2160-0", "Creatinine", 1.6, "mg/dL"),
    ("1988-5", "CRP", 88, "mg/L"), ("2823-3", "Potassium", 4.6, "mmol/L"),
    ("6690-2", "Leukocytes", 14.2, "10*3/uL"), ("718-7", "Haemoglobin", 11.2, "g/dL"),
    ("777-3", "Platelets", 180, "10*3/uL"), ("2951-2", "Sodium", 134, "mmol/L"),
    ("751-8", "Neutrophils", 11.8, "10*3/uL"), ("731-0", "Lymphocytes", 0.9, "10*3/uL"),
    ("33762-6", "NT-proBNP", 2900, "pg/mL"), ("10839-9", "Troponin I", 0.03, "ng/mL"),
    ("39156-5", "Body mass index", 27.5, "kg/m2"),
    ("3094-0", "Urea nitrogen", 38, "mg/dL"), ("2345-7", "Glucose", 150, "mg/dL"),
)  # fmt: skip


class LaunchingEhr:
    """What the server knows and how it errs.

    patients   FHIR id → Patient resource
    results    FHIR id → what else is known of them: any resources
    launches   launch handle → patient
    claims     what its id_tokens say besides, or instead
    answers    what its token answers say besides, or instead
    discovery  what its discovery says besides, or instead
    app_keys   our public keys, where we are a confidential client
    is_busy    its records are answered 503 for the time being
    """

    def __init__(self) -> None:
        self.url, self.fhir = "", ""
        self.patients: dict[str, dict[str, Any]] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.launches: dict[str, str] = {}
        self.claims: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.discovery: dict[str, Any] = {}
        self.app_keys: dict[str, Any] | None = None
        self.is_busy = False
        self.key = ECKey.generate_key("P-384", {"kid": "one"})
        self.signs_with: Any = None  # another key than the published one
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []  # paths, in order
        self.tokens: set[str] = set()
        self.spent: set[str] = set()

    def add(self, identity: str, family: str) -> None:
        """Somebody to open; their launch handle is `launch-<id>`."""
        self.patients[identity] = {
            "resourceType": "Patient",
            "id": identity,
            "name": [{"family": family, "given": ["Test"]}],
            "gender": "female",
            "birthDate": "1950-06-01",
        }
        self.launches[f"launch-{identity}"] = identity

    def configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.fhir,
            "authorization_endpoint": f"{self.url}/auth/authorize",
            "token_endpoint": f"{self.url}/auth/token",
            "jwks_uri": f"{self.url}/auth/keys",
            "code_challenge_methods_supported": ["S256"],
            "capabilities": ["launch-ehr", "permission-v2", "sso-openid-connect"],
            **self.discovery,
        }

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser goes next."""
        if asked.get("client_id") != CLIENT or asked.get("aud") not in (self.fhir, f"{self.fhir}/"):
            return (
                f"{asked['redirect_uri']}?{urlencode({'error': 'invalid_request', 'state': asked['state']})}"
            )
        code = secrets.token_urlsafe(8)
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def token(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        begun = self.codes.pop(form.get("code", ""), None)
        if begun is None or begun["redirect_uri"] != form.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != begun["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        if not self._is_us(form):
            return 401, {"error": "invalid_client"}
        patient = self.launches.get(begun.get("launch", ""), next(iter(self.patients)))
        now = int(time.time())
        claims = {
            "iss": self.fhir,
            "aud": CLIENT,
            "sub": "7",
            "iat": now,
            "exp": now + 300,
            "nonce": begun.get("nonce"),
            "fhirUser": "Practitioner/7",
            "name": "Dr Autumn",
            **self.claims,
        }
        key = self.signs_with or self.key
        token = secrets.token_urlsafe(16)
        self.tokens.add(token)
        said = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": 300,
            "scope": begun["scope"],
            "patient": patient,
            "encounter": "e1",
            "id_token": jwt.encode({"alg": "ES384", "kid": key.kid}, claims, key, algorithms=["ES384"]),
            **self.answers,
        }
        return 200, {name: value for name, value in said.items() if value is not None}

    def _is_us(self, form: dict[str, str]) -> bool:
        if self.app_keys is None:
            return form.get("client_id") == CLIENT
        try:
            token = jwt.decode(
                form.get("client_assertion", ""),
                KeySet.import_key_set(self.app_keys),  # type: ignore[arg-type]
                algorithms=["ES384", "RS384"],
            )
        except Exception:
            return False
        claims = token.claims
        is_fresh = claims["jti"] not in self.spent and claims["exp"] <= time.time() + 300
        self.spent.add(claims["jti"])
        return (
            is_fresh
            and claims["iss"] == claims["sub"] == CLIENT
            and claims["aud"] == f"{self.url}/auth/token"
        )

    def read(self, path: str, bearer: str, patient: str = "") -> tuple[int, dict[str, Any]]:
        if self.is_busy:
            return 503, _outcome("transient")
        if bearer not in self.tokens:
            return 401, _outcome("login")
        kind, _, identity = path.partition("/")
        if identity:
            found = self.patients.get(identity) if kind == "Patient" else None
            return (200, found) if found else (404, _outcome("not-found"))
        known = self.results.get(patient.rpartition("/")[2], [])
        held = [one for one in known if one["resourceType"] == kind]
        return 200, {
            "resourceType": "Bundle",
            "type": "searchset",
            "entry": [{"resource": one} for one in held],
        }


def _outcome(code: str) -> dict[str, Any]:
    return {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code}]}


@contextmanager
def launching_ehr(port: int = 0) -> Iterator[LaunchingEhr]:
    """One that runs, for as long as the block does; on any free port unless one is named."""
    ehr = LaunchingEhr()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            ehr.asked.append(parts.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/fhir/.well-known/smart-configuration":
                self._answer(200, ehr.configuration())
            elif parts.path == "/auth/keys":
                self._answer(200, {"keys": [ehr.key.as_dict(private=False)]})
            elif parts.path == "/auth/authorize":
                self.send_response(302)
                self.send_header("Location", ehr.authorize(asked))
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif parts.path.startswith("/fhir/"):
                bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
                about = asked.get("patient", asked.get("subject", ""))
                self._answer(*ehr.read(parts.path.removeprefix("/fhir/"), bearer, about))
            elif parts.path == "/chart":
                self._page(asked["app"])
            elif parts.path == "/style.json":
                self._answer(200, {"color_background": "#edeae3", "color_highlight": "#69b5ce"})
            else:
                self._answer(404, {})

        def do_POST(self) -> None:
            ehr.asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._answer(*(ehr.token(form) if self.path == "/auth/token" else (404, {})))

        def _answer(self, status: int, said: dict[str, Any]) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _page(self, app: str) -> None:
            """The EHR's chart, with the app in a frame of 800 pixels."""
            body = (
                "<!doctype html><title>Chart</title><h1>Chart</h1>"
                f'<iframe id="app" width="800" height="900" src="{app}"></iframe>'
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = AllAtOnce(("127.0.0.1", port), Handler)
    ehr.url = f"http://127.0.0.1:{server.server_port}"
    ehr.fhir = f"{ehr.url}/fhir"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ehr
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def main(arguments: list[str] | None = None) -> None:
    """Run one until Ctrl-C, with a simulated patient, and say what to register and to open."""
    asked = argparse.ArgumentParser(prog="python -m tests.launching_ehr", description=main.__doc__)
    asked.add_argument("--port", type=int, default=9000)
    asked.add_argument("--app", default="http://127.0.0.1:8000", help="PUBLIC_URL of Tessera")
    asked.add_argument("--patient", default="example-1", help="FHIR id; the patient's launch is launch-<id>")
    given = asked.parse_args(arguments)
    with launching_ehr(given.port) as ehr:
        ehr.add(given.patient, "Example")
        ehr.results[given.patient] = _results(given.patient)
        launch = f"{given.app.rstrip('/')}/launch?" + urlencode(
            {"iss": ehr.fhir, "launch": f"launch-{given.patient}"}
        )
        print(f"A small EHR with one simulated patient, at {ehr.url}; Ctrl-C ends it.\n")
        print("Register it with Tessera, once:")
        print(f'  manage.py smart_server add "Practice EHR" --issuer {ehr.fhir} --client-id {CLIENT} \\')
        print(f"    --source example-ehr --frame {ehr.url}\n")
        print(f"Launch, in a window:    {launch}")
        print(f"Launch, in its chart:   {ehr.url}/chart?app={quote(launch, safe='')}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


def _results(patient: str) -> list[dict[str, Any]]:
    """One value of each of VALUES, half an hour old, and a heart failure: enough for a demo's model."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1800))
    about = "http://terminology.hl7.org/CodeSystem/condition"
    condition: dict[str, Any] = {
        "resourceType": "Condition",
        "id": f"{patient}-heart-failure",
        "clinicalStatus": {"coding": [{"system": f"{about}-clinical", "code": "active"}]},
        "verificationStatus": {"coding": [{"system": f"{about}-ver-status", "code": "confirmed"}]},
        "code": {
            "coding": [{"system": "http://snomed.info/sct", "code": "84114007"}],
            "text": "Heart failure",
        },
        "subject": {"reference": f"Patient/{patient}"},
        "recordedDate": "2026-01-15",
    }
    return [condition] + [
        {
            "resourceType": "Observation",
            "id": f"{patient}-{code}",
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": name}]},
            "subject": {"reference": f"Patient/{patient}"},
            "effectiveDateTime": at,
            "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": unit},
        }
        for code, name, value, unit in VALUES
    ]


if __name__ == "__main__":
    main()
