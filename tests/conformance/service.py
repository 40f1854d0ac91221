"""The service under test, as an EHR sees it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.conformance.peers import Peers
from tests.launching_ehr import LaunchingEhr

TIMEOUT_S = 30.0
ANY_ALGORITHM = ["ES384", "RS384", "ES256", "RS256", "HS256", "HS384"]
WITH_ENCOUNTER = ("encounter-start", "encounter-discharge")
WITH_ORDERS = ("order-select", "order-sign")
UNSET: Any = object()


@dataclass
class Ehr:
    """Who calls, and launches: as registered with the service. `key` None: it asks for no token."""

    issuer: str = ""
    key: Mapping[str, Any] | None = None
    origin: str = ""  # web origin that calls (CORS)
    frame: str = ""  # web origin whose pages may show the service's
    tenant: str = ""
    patient: str = "conformance-1"
    launches: str = ""  # FHIR base address of an EHR whose launches the service answers
    peers: Peers | None = None  # the suite's own FHIR server (registered for `issuer`) and key set
    rotating: str = ""  # issuer that is registered with that key set's address
    launching: LaunchingEhr | None = None  # the suite's own EHR that launches, as registered
    body_limit: int = 0  # bytes of the largest body that the service takes; 0: not known
    launching_v1: LaunchingEhr | None = None  # another, which lists only permission-v1


@dataclass
class Service:
    """A base address, with the calls of CDS Hooks. Nothing is retried and no redirect is followed."""

    base: str
    ehr: Ehr
    launch: str = "launch"  # where the service is launched, and where its public keys are
    keys: str = ".well-known/jwks.json"
    seen: list[Mapping[str, Any]] = field(default_factory=list)  # services, once asked for

    def __post_init__(self) -> None:
        self.base = self.base.rstrip("/")
        self._http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def url(self, path: str) -> str:
        return f"{self.base}/{path.lstrip('/')}"

    def token(
        self, url: str, *, key: Any = None, header: Mapping[str, Any] | None = None, **claims: Any
    ) -> str:
        """A JWT as the specification wants it; what is given replaces a part, None leaves it out."""
        assert self.ehr.key is not None
        now = int(time.time())
        said = {"iss": self.ehr.issuer, "aud": url, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())}
        if self.ehr.tenant:
            said["tenant"] = self.ehr.tenant
        held = key or import_key(self.ehr.key)
        algorithm = "ES384" if self.ehr.key["kty"] == "EC" else "RS384"
        top = {"alg": algorithm, "typ": "JWT", "kid": self.ehr.key["kid"], **(header or {})}
        return jwt.encode(
            {name: value for name, value in top.items() if value is not None},
            {name: value for name, value in {**said, **claims}.items() if value is not None},
            held,
            algorithms=ANY_ALGORITHM,
        )

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = UNSET,
        raw: bytes | None = None,
        token: str | None = UNSET,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request; a fresh token unless one (or None) is given."""
        url = self.url(path)
        sent = dict(headers or {})
        if token is UNSET:
            token = self.token(url) if self.ehr.key is not None else None
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if raw is not None:
            sent.setdefault("Content-Type", "application/json")
            return self._http.request(method, url, content=raw, headers=sent)
        if body is not UNSET:
            return self._http.request(method, url, json=body, headers=sent)
        return self._http.request(method, url, headers=sent)

    def services(self) -> list[Mapping[str, Any]]:
        """What discovery lists; asked for once."""
        if not self.seen:
            self.seen = list(self.send("GET", "cds-services").json()["services"])
        return self.seen

    def one_of(self, *hooks: str) -> Mapping[str, Any] | None:
        """A service of one of these hooks, in their order; any, without one named."""
        for hook in hooks or ("patient-view", ""):
            for service in self.services():
                if service["hook"] == hook or not hook:
                    return service
        return None

    def call(self, service: Mapping[str, Any], body: Any = UNSET, **more: Any) -> httpx.Response:
        """Call a service, with a request that is right unless another is given."""
        given = self.request(service) if body is UNSET else body
        return self.send("POST", f"cds-services/{service['id']}", body=given, **more)

    def request(self, service: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """A request that is right for a service's hook, its prefetch as asked for; UNSET takes a "
        "part out."""
        body = {
            "hook": service["hook"],
            "hookInstance": str(uuid.uuid4()),
            "context": self.context(service["hook"]),
            "prefetch": self.prefetch(service),
            **changes,
        }
        return {name: value for name, value in body.items() if value is not UNSET}

    def context(self, hook: str, **changes: Any) -> dict[str, Any]:
        said: dict[str, Any] = {"userId": "Practitioner/conformance", "patientId": self.ehr.patient}
        if hook in WITH_ENCOUNTER:
            said["encounterId"] = "conformance-encounter"
        if hook in WITH_ORDERS:
            said["draftOrders"] = bundle(self.order())
        if hook == "order-select":
            said["selections"] = ["ServiceRequest/conformance-order"]
        if hook == "appointment-book":
            said["appointments"] = bundle(self.appointment())
        return {name: value for name, value in {**said, **changes}.items() if value is not UNSET}

    def order(self) -> dict[str, Any]:
        """A draft order of a chest radiograph (SNOMED CT 399208008)."""
        return {
            "resourceType": "ServiceRequest",
            "id": "conformance-order",
            "status": "draft",
            "intent": "order",
            "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "363679005"}]}],
            "code": {
                "coding": [{"system": "http://snomed.info/sct", "code": "399208008"}],
                "text": "Chest X-ray",
            },
            "subject": {"reference": f"Patient/{self.ehr.patient}"},
        }

    def appointment(self) -> dict[str, Any]:
        return {
            "resourceType": "Appointment",
            "id": "conformance-appointment",
            "status": "proposed",
            "participant": [
                {"actor": {"reference": f"Patient/{self.ehr.patient}"}, "status": "needs-action"}
            ],
        }

    def prefetch(self, service: Mapping[str, Any]) -> dict[str, Any]:
        """Each template answered: the Patient, one heart rate where observations are asked for, "
        "else nothing."""
        return {key: self._answer(query) for key, query in service.get("prefetch", {}).items()}

    def _answer(self, query: str) -> dict[str, Any]:
        if query.startswith("Patient/"):
            return {
                "resourceType": "Patient",
                "id": self.ehr.patient,
                "gender": "female",
                "birthDate": "1950-06-01",
            }
        return bundle(self.heart_rate()) if query.startswith("Observation?") else bundle()

    def heart_rate(self) -> dict[str, Any]:
        return {
            "resourceType": "Observation",
            "id": "conformance-heart-rate",
            "status": "final",
            "category": [{"coding": [{"code": "vital-signs"}]}],
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
            "subject": {"reference": f"Patient/{self.ehr.patient}"},
            "effectiveDateTime": "2026-03-01T08:00:00Z",
            "valueQuantity": {"value": 88, "system": "http://unitsofmeasure.org", "code": "/min"},
        }


def bundle(*resources: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A searchset."""
    entries = [{"resource": dict(resource)} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries, **more}


def import_key(jwk: Mapping[str, Any]) -> Any:
    """The private key an EHR signs with."""
    material = {name: value for name, value in jwk.items() if name not in ("alg", "use", "key_ops")}
    return ECKey.import_key(material) if jwk["kty"] == "EC" else RSAKey.import_key(material)
