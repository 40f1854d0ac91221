"""Rules 18 to 23: who may call, from where, and how fast the answer comes."""

from __future__ import annotations

import base64
import json
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
from joserfc.jwk import ECKey, OctKey

from tests.conformance.judging import NotApplicable, outcome, rule, status
from tests.conformance.service import UNSET, Service

SKEW_S = 60


def _signed(service: Service) -> Mapping[str, Any]:
    if service.ehr.key is None:
        raise NotApplicable("the service asks for no token")
    return service.ehr.key


def _places(service: Service) -> list[tuple[str, str, Any]]:
    """Discovery, call and feedback, each with a body that is right."""
    one = service.one_of("patient-view")
    if one is None:
        raise NotApplicable("no service is offered")
    path = f"cds-services/{one['id']}"
    item = {"card": str(uuid.uuid4()), "outcome": "accepted", "outcomeTimestamp": "2026-03-01T08:00:00Z"}
    return [
        ("GET", "cds-services", UNSET),
        ("POST", path, service.request(one)),
        ("POST", f"{path}/feedback", {"feedback": [item]}),
    ]


def _refused(service: Service, token: str | None) -> None:
    """Refused with 401 wherever it is shown."""
    for method, path, body in _places(service):
        outcome(service.send(method, path, body=body, token=token), 401)


def _refused_at_discovery(service: Service, **changes: Any) -> None:
    url = service.url("cds-services")
    outcome(service.send("GET", "cds-services", token=service.token(url, **changes)), 401)


def _accepted(service: Service, **changes: Any) -> None:
    url = service.url("cds-services")
    status(service.send("GET", "cds-services", token=service.token(url, **changes)), 200)


@rule(18, "no token: 401 at discovery, service and feedback, with WWW-Authenticate")
def no_token(service: Service) -> None:
    _signed(service)
    _refused(service, None)
    answer = service.send("GET", "cds-services", token=None)
    assert answer.headers.get("WWW-Authenticate", "").lower().startswith("bearer")


@rule(18, "something else than a JWT: 401")
def no_jwt(service: Service) -> None:
    _signed(service)
    for token in ("x", "a.b", "a.b.c", "..", "e30.e30.e30", "x" * 20_000):
        _refused(service, token)


@rule(19, "aud is the address called, as text or in a list")
def audience(service: Service) -> None:
    _signed(service)
    url = service.url("cds-services")
    _accepted(service, aud=[url])
    _accepted(service, aud=["https://other.invalid", url])


@rule(19, "aud of another address of the same service: 401")
def other_audience(service: Service) -> None:
    _signed(service)
    url = service.url("cds-services")
    for wrong in (
        f"{url}/x",
        service.base,
        url + "/",
        url + "?a=b",
        url.upper(),
        None,
        [],
        ["x"],
        {"x": url},
    ):
        _refused_at_discovery(service, aud=wrong)


@rule(19, "exp, iat, iss and jti are required, and of their kind")
def claims(service: Service) -> None:
    _signed(service)
    for name in ("exp", "iat", "iss", "jti"):
        _refused_at_discovery(service, **{name: None})
    for name, wrong in (("exp", "soon"), ("exp", True), ("iat", "now"), ("iat", []), ("jti", 7), ("jti", "")):
        _refused_at_discovery(service, **{name: wrong})


@rule(19, "60 seconds of clock skew are allowed, two minutes are not")
def skew(service: Service) -> None:
    _signed(service)
    now = int(time.time())
    _accepted(service, iat=now + SKEW_S - 20)
    _accepted(service, iat=now - SKEW_S, exp=now - SKEW_S + 20)
    _refused_at_discovery(service, iat=now + 2 * SKEW_S, exp=now + 600)
    _refused_at_discovery(service, iat=now - 600, exp=now - 2 * SKEW_S)


@rule(19, "typ is JWT, and a kid is named")
def header(service: Service) -> None:
    _signed(service)
    for changes in ({"typ": "JOSE"}, {"kid": None}, {"kid": ""}):
        _refused_at_discovery(service, header=changes)


@rule(20, "alg none, in any spelling: 401")
def unsigned(service: Service) -> None:
    _signed(service)
    url = service.url("cds-services")
    _, payload, signature = service.token(url).split(".")
    for alg in ("none", "None", "NONE", "nOnE", ""):
        top = _encoded({"alg": alg, "typ": "JWT", "kid": service.ehr.key["kid"]})  # type: ignore[index]
        for tail in ("", signature):
            outcome(service.send("GET", "cds-services", token=f"{top}.{payload}.{tail}"), 401)


@rule(20, "an HMAC over the public key (key confusion): 401")
def confusion(service: Service) -> None:
    key = _signed(service)
    public = {name: value for name, value in key.items() if name not in ("d", "p", "q", "dp", "dq", "qi")}
    for secret in (json.dumps(public), "secret" * 10):
        held = OctKey.import_key(secret)
        for alg in ("HS256", "HS384"):
            _refused_at_discovery(service, key=held, header={"alg": alg})


@rule(20, "other algorithms than ES384 and RS384: 401")
def other_algorithms(service: Service) -> None:
    _signed(service)
    held = ECKey.generate_key("P-256")
    _refused_at_discovery(service, key=held, header={"alg": "ES256"})


@rule(20, "a signature by another key, or over other words: 401")
def forged(service: Service) -> None:
    _signed(service)
    _refused_at_discovery(service, key=ECKey.generate_key("P-384"), header={"alg": "ES384"})
    url = service.url("cds-services")
    top, payload, signature = service.token(url).split(".")
    padded = payload + "=" * (-len(payload) % 4)
    said = json.loads(base64.urlsafe_b64decode(padded))
    for words in ({**said, "jti": "another"}, {**said, "exp": said["exp"] + 60}):
        outcome(service.send("GET", "cds-services", token=f"{top}.{_encoded(words)}.{signature}"), 401)
    outcome(service.send("GET", "cds-services", token=f"{top}.{payload}.{signature[:-4]}AAAA"), 401)


@rule(20, "an issuer that is not registered: 401")
def issuer(service: Service) -> None:
    _signed(service)
    for wrong in ("https://nobody.invalid", "", service.ehr.issuer + "/", service.ehr.issuer.upper(), 7):
        _refused_at_discovery(service, iss=wrong)


@rule(20, "a jku that is not registered is refused or ignored, and never fetched")
def jku(service: Service) -> None:
    _signed(service)
    own = ECKey.generate_key("P-384", {"kid": "own"})
    with listener({"keys": [own.as_dict(private=False)]}) as (url, asked):
        _refused_at_discovery(service, key=own, header={"jku": url, "kid": "own", "alg": "ES384"})
        service.send(
            "GET", "cds-services", token=service.token(service.url("cds-services"), header={"jku": url})
        )
        assert not asked, "the address in the token was fetched"


@rule(20, "a key inside the token (jwk, x5c, x5u) is not believed")
def embedded_key(service: Service) -> None:
    _signed(service)
    own = ECKey.generate_key("P-384", {"kid": "own"})
    for changes in ({"jwk": own.as_dict(private=False)}, {"x5u": "https://nobody.invalid/cert"}):
        _refused_at_discovery(service, key=own, header={**changes, "kid": "own", "alg": "ES384"})


@rule(21, "a token is good once")
def once(service: Service) -> None:
    _signed(service)
    token = service.token(service.url("cds-services"))
    status(service.send("GET", "cds-services", token=token), 200)
    outcome(service.send("GET", "cds-services", token=token), 401)


@rule(21, "a jti is good once, whatever else a new token says")
def once_by_jti(service: Service) -> None:
    _signed(service)
    jti = str(uuid.uuid4())
    _accepted(service, jti=jti)
    _refused_at_discovery(service, jti=jti)


@rule(21, "the same token eight times at once is accepted once")
def once_at_once(service: Service) -> None:
    _signed(service)
    token = service.token(service.url("cds-services"))
    with ThreadPoolExecutor(8) as pool:
        sent = list(
            pool.map(lambda _: service.send("GET", "cds-services", token=token).status_code, range(8))
        )
    assert sorted(sent) == [200] + [401] * 7, f"answered {sorted(sent)}"


@rule(21, "an unknown kid: 401")
def unknown_kid(service: Service) -> None:
    _signed(service)
    _refused_at_discovery(service, header={"kid": "nobody"})


@rule(22, "CORS preflight on discovery, service and feedback, for a registered origin")
def preflight(service: Service) -> None:
    if not service.ehr.origin:
        raise NotApplicable("no origin was given to judge with")
    for method, path, _ in _places(service):
        answer = status(_preflight(service, path, method, service.ehr.origin), 200, 204)
        assert answer.headers.get("Access-Control-Allow-Origin") in (service.ehr.origin, "*"), path
        allowed = answer.headers.get("Access-Control-Allow-Headers", "").lower()
        assert "authorization" in allowed or allowed == "*", path
        assert method in answer.headers.get("Access-Control-Allow-Methods", ""), path


@rule(22, "an answer to a registered origin may be read there, refusals too")
def cors(service: Service) -> None:
    if not service.ehr.origin:
        raise NotApplicable("no origin was given to judge with")
    sent = {"Origin": service.ehr.origin}
    for token in (UNSET, None):
        answer = service.send("GET", "cds-services", token=token, headers=sent)
        assert answer.headers.get("Access-Control-Allow-Origin") in (service.ehr.origin, "*")


@rule(22, "an origin that is not registered is not allowed")
def other_origin(service: Service) -> None:
    for method, path, _ in _places(service):
        answer = _preflight(service, path, method, "https://evil.invalid")
        assert answer.headers.get("Access-Control-Allow-Origin") not in ("https://evil.invalid", "*"), path


def _preflight(service: Service, path: str, method: str, origin: str) -> httpx.Response:
    sent = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return service.send("OPTIONS", path, token=None, headers=sent)


@rule(23, "answers come in the order of 500 ms (p95 of fifty calls, one after the other)", timed=True)
def fast(service: Service) -> str:
    one = service.one_of("patient-view")
    if one is None:
        raise NotApplicable("no service is offered")
    took = []
    for _ in range(55):
        began = time.monotonic()
        status(service.call(one), 200)
        took.append((time.monotonic() - began) * 1000)
    took = sorted(took[5:])
    measured = f"median {statistics.median(took):.0f} ms, p95 {took[47]:.0f} ms, slowest {took[-1]:.0f} ms"
    assert took[47] <= 500, measured
    return measured


def _encoded(said: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()


@contextmanager
def listener(keys: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """A key set on loopback, and what asked for it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps(keys).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
