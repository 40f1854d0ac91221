"""A hook call over HTTP: score cached, score recomputed; beside a bare Django view that reads the same body.

Signed calls (ES384) of a patient with a 200-observation prefetch, against gunicorn with two workers.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
from joserfc import jwt
from joserfc.jwk import ECKey

from benchmarks import measuring, scratch

CALLS, RECOMPUTED, THREADS, SECONDS = 150, 40, 8, 5.0
ISSUER = "https://benchmark.example"
BARE = """
import django, orjson
from django.conf import settings
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", MIDDLEWARE=[])
django.setup()
from django.http import HttpResponse
from django.urls import path
from django.core.asgi import get_asgi_application

def view(request):
    body = orjson.loads(request.body)
    return HttpResponse(orjson.dumps({"cards": [body["hookInstance"]]}), content_type="application/json")

urlpatterns = [path("bare", view)]
application = get_asgi_application()
"""


def run() -> measuring.Table:
    """Measure."""
    table = measuring.Table("Hook call", ("what", "p50 ms", "p95 ms", "worst ms", "calls/s, 8 callers"))
    with scratch.clinic() as clinic:
        key, service = _register(), _service()
        url = f"{clinic.url}/cds-services/{service}"
        body = _body(88.0, "2026-03-01T08:00:00Z")
        with httpx.Client(timeout=10) as http, _bare(clinic.folder) as bare:
            raw = orjson.dumps(body)
            post_bare = lambda: http.post(bare, content=raw).raise_for_status()  # noqa: E731
            measuring.timed(post_bare, 20)
            rate = measuring.per_second(post_bare, threads=THREADS, seconds=SECONDS)
            table.add("limit: bare Django view", *measuring.spread(measuring.timed(post_bare, CALLS)), rate)

            def call(changed: dict[str, Any] | None = None) -> str:
                headers = {"Authorization": f"Bearer {_token(key, url)}", "Content-Type": "application/json"}
                sent = raw if changed is None else orjson.dumps(changed)
                answer = http.post(url, content=sent, headers=headers).raise_for_status()
                return str(answer.json()["cards"][0]["summary"])

            _wait_for_a_number(call)
            seconds = measuring.timed(call, CALLS)
            rate = measuring.per_second(call, threads=THREADS, seconds=SECONDS)
            table.add("score cached, same prefetch", *measuring.spread(seconds), rate)

            values, said = itertools.count(60), []
            at = datetime.now(UTC) - timedelta(minutes=5)

            def recompute() -> None:
                said.append(call(_body(60 + next(values) / 10, at.isoformat())))

            seconds = measuring.timed(recompute, RECOMPUTED)
            table.add("score recomputed, a new value each call", *measuring.spread(seconds), "–")
    fresh = sum(not one.startswith("Stale") and "not yet known" not in one for one in said)
    table.notes.append(
        f"{fresh} of {RECOMPUTED} recomputed calls carried the fresh score, the rest the last one as stale."
    )
    table.notes.append(f"Body {len(raw) / 1000:.0f} kB; a call includes signing its token (about 1 ms here).")
    return table


def _body(value: float, at: str) -> dict[str, Any]:
    vitals = [
        _observation(f"hr{place}", 70 + place % 40, f"2026-02-{place % 27 + 1:02}T08:00:00Z")
        for place in range(199)
    ]
    vitals.append(_observation("newest", value, at))
    patient = {"resourceType": "Patient", "id": "benchmark-1", "gender": "female", "birthDate": "1950-06-01"}
    bundle = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": one} for one in vitals]}
    return {
        "hook": "patient-view",
        "hookInstance": str(uuid.uuid4()),
        "context": {"userId": "Practitioner/benchmark", "patientId": "benchmark-1"},
        "prefetch": {"patient": patient, "vitals": bundle},
    }


def _observation(resource_id: str, value: float, at: str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": resource_id,
        "status": "final",
        "category": [{"coding": [{"code": "vital-signs"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
        "subject": {"reference": "Patient/benchmark-1"},
        "effectiveDateTime": at,
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "/min"},
    }


def _register() -> ECKey:
    from django.utils import timezone

    from cds.audit import recording
    from cds.hooks import registering
    from cds.patients import importing

    key, now = ECKey.generate_key("P-384", parameters={"kid": "b1"}), timezone.now()
    source = importing.get_source("benchmark", simulated=True, now=now)
    keys = {"keys": [key.as_dict(private=False)]}
    by = recording.system("benchmark")
    registering.register("Benchmark", issuer=ISSUER, jwks=keys, source=source, by=by, now=now)
    return key


def _service() -> str:
    from cds.hooks import offering

    return offering.list_services()[0].id


def _token(key: ECKey, url: str) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": url, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())}
    return jwt.encode({"alg": "ES384", "typ": "JWT", "kid": "b1"}, claims, key, algorithms=["ES384"])


def _wait_for_a_number(call: Any) -> None:
    until = time.monotonic() + 30
    while "%" not in (said := call()) or said.startswith("Stale"):
        if time.monotonic() > until:
            raise RuntimeError(f"no fresh score within 30 s: {said}")
        time.sleep(0.2)


class _bare:  # noqa: N801 (reads as a verb where it is used)
    """The bare view, served the same way."""

    def __init__(self, folder: Any) -> None:
        (folder / "bare.py").write_text(BARE)
        self.port, self.folder = scratch.free_port(), folder

    def __enter__(self) -> str:
        command = [sys.executable, "-m", "gunicorn", "bare:application", "-k", "uvicorn_worker.UvicornWorker"]
        command += ["--bind", f"127.0.0.1:{self.port}", "--workers", "2", "--no-control-socket"]
        self.process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{self.port}/bare"
        for _ in range(100):
            try:
                httpx.post(url, content=b'{"hookInstance": 1}')
                return url
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError("the bare view did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=15)
