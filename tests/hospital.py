"""A hospital that errs: a FHIR R4 server over HTTP on loopback, with Bulk Data, Backend Services and faults.

with Hospital() as hospital:
    hospital.put(patient("p1"), pressure("o1"))
    hospital.fail("Observation", Fault.BUSY, times=2)
    hospital.base  # http://127.0.0.1:…/fhir

It pages, stalls, answers 429 and 503, cuts bodies, lets files of an export expire, and rotates keys. It is
ours: what real servers do is in tests/services.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

Json = dict[str, Any]
INCLUDES = {
    "MedicationRequest:medication": "medicationReference",
    "MedicationStatement:medication": "medicationReference",
    "MedicationAdministration:medication": "medicationReference",
    "Encounter:location": "location",
    "ImagingStudy:endpoint": "endpoint",
}


class Fault(StrEnum):
    """What goes wrong with an answer."""

    BUSY = "429, with Retry-After"
    DOWN = "503"
    CUT = "the body breaks off"
    STALL = "nothing comes until the client gives up"
    EXPIRED = "410"
    DENIED = "403, with an OperationOutcome"
    GARBAGE = "200, and no JSON"
    UNAUTHORISED = "401"
    FAILED = "500, with an OperationOutcome: what was to be done has failed"


@dataclass
class _Planned:
    where: str
    fault: Fault
    times: int
    after: int


@dataclass
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Hospital:
    """Resources by type and id, stamped with meta.lastUpdated from a clock that tests may move.

    keys   our public keys as the hospital reads them, asked for at every sign-in; None: nobody need sign in
    asked  "METHOD path?query" of every call, in order
    includes  False: `_include` is passed over
    packs     files of an export are served as the `.ndjson.gz` they are, without Content-Encoding
    loses     so many of the last lines of each file are not in it, though the manifest counts them
    """

    def __init__(
        self, *, page_size: int = 50, keys: Callable[[], Json] | None = None, longest_stall_s: float = 20
    ) -> None:
        self.resources: dict[tuple[str, str], Json] = {}
        self.gone: dict[tuple[str, str], datetime] = {}
        self.clock = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self.page_size, self.keys = page_size, keys
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, datetime | None] = {}  # export → its _since
        self.types: dict[str, list[str]] = {}  # export → its _type
        self.polls_until_ready = 0
        self.includes, self.packs, self.loses = True, False, 0
        self._planned: list[_Planned] = []
        self._lock, self._over, self._stall_s = threading.Lock(), threading.Event(), longest_stall_s
        hospital = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hospital._handle(self)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.http.server_port}"
        self.base = f"{self.root}/fhir"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.http.shutdown()
        self.http.server_close()

    # -- what the hospital does by itself ---------------------------------------------------------
    def put(self, *resources: Json) -> None:
        """Write resources; each write is a second later than the one before."""
        for resource in resources:
            self.clock += timedelta(seconds=1)
            key = resource["resourceType"], resource["id"]
            self.resources[key] = {**resource, "meta": {"lastUpdated": self.clock.isoformat()}}
            self.gone.pop(key, None)

    def delete(self, kind: str, identity: str) -> None:
        self.clock += timedelta(seconds=1)
        self.resources.pop((kind, identity), None)
        self.gone[kind, identity] = self.clock

    def fail(self, where: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """The next calls whose path holds `where` go wrong, `after` that many that go well."""
        self._planned.append(_Planned(where, fault, times, after))

    def sign_everybody_out(self) -> None:
        """Tokens given so far are no longer good."""
        self.tokens.clear()

    def times(self, where: str) -> int:
        """How often something was asked for."""
        return sum(where in asked for asked in self.asked)

    # -- HTTP ---------------------------------------------------------------------------------------
    def _handle(self, call: BaseHTTPRequestHandler) -> None:
        body = call.rfile.read(int(call.headers.get("Content-Length") or 0))
        with self._lock:
            self.asked.append(f"{call.command} {call.path}")
            fault = self._next_fault(urlsplit(call.path).path)
        if fault is Fault.STALL:
            self._over.wait(self._stall_s)
            call.close_connection = True
            return
        with self._lock:
            answer = self._answer(call, body) if fault in (None, Fault.CUT) else _faulty(fault)
        if self.packs and "/files/" in call.path and fault is None:
            answer.body = gzip.compress(answer.body)
        elif "gzip" in (call.headers.get("Accept-Encoding") or "") and "/files/" in call.path:
            answer.body = gzip.compress(answer.body)
            answer.headers["Content-Encoding"] = "gzip"
        call.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            call.send_header(name, value)
        call.end_headers()
        call.wfile.write(answer.body[: len(answer.body) // 2] if fault is Fault.CUT else answer.body)
        call.close_connection = fault is Fault.CUT

    def _next_fault(self, path: str) -> Fault | None:
        for planned in self._planned:
            if planned.where in path and planned.times:
                if planned.after:
                    planned.after -= 1
                    return None
                planned.times -= 1
                return planned.fault
        return None

    def _answer(self, call: BaseHTTPRequestHandler, body: bytes) -> _Answer:
        parts = urlsplit(call.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix("/fhir").strip("/")
        if path == ".well-known/smart-configuration":
            return _json({"token_endpoint": f"{self.root}/token"})
        if path == "token":
            return self._give_token(parse_qs(body.decode()))
        if self.keys is not None and call.headers.get("Authorization", "")[7:] not in self.tokens:
            return _Answer(401)
        if path.startswith(("jobs/", "files/")) or path.endswith("$export"):
            return self._bulk(call.command, path, query)
        kind, _, identity = path.partition("/")
        if call.command == "POST":
            made = json.loads(body) | {"id": uuid.uuid4().hex}
            self.put(made)
            return _json(made, 201, Location=f"{self.base}/{kind}/{made['id']}/_history/1")
        if call.command == "DELETE":
            self.delete(kind, identity)
            return _Answer(204)
        if identity:
            found = self.resources.get((kind, identity))
            return _json(found) if found else _refused(410 if (kind, identity) in self.gone else 404)
        return self._search(kind, query)

    def _search(self, kind: str, query: dict[str, str]) -> _Answer:
        since = query.get("_lastUpdated", "").removeprefix("ge")
        matches = [
            resource
            for (its_kind, _), resource in sorted(self.resources.items())
            if its_kind == kind
            and _is_about(resource, query.get("patient", ""))
            and (not since or _updated(resource) >= datetime.fromisoformat(since))
        ]
        start, size = (
            int(query.get("_page", 0)),
            min(self.page_size, int(query.get("_count", self.page_size))),
        )
        page = matches[start : start + size]
        entries = [{"resource": one, "search": {"mode": "match"}} for one in page]
        for one in page:
            entries += [
                {"resource": other, "search": {"mode": "include"}} for other in self._included(one, query)
            ]
        bundle: Json = {"resourceType": "Bundle", "type": "searchset", "entry": entries}
        if start + size < len(matches):
            rest = "&".join(
                f"{name}={value.replace('+', '%2B')}" for name, value in query.items() if name != "_page"
            )
            bundle["link"] = [{"relation": "next", "url": f"{self.base}/{kind}?{rest}&_page={start + size}"}]
        return _json(bundle)

    def _included(self, resource: Json, query: dict[str, str]) -> list[Json]:
        element = INCLUDES.get(query.get("_include", ""), "") if self.includes else ""
        values = resource.get(element) or []
        found = []
        for value in values if isinstance(values, list) else [values]:
            reference = (value.get("location") or value)["reference"]
            kind, _, identity = reference.partition("/")
            found += [self.resources[kind, identity]] if (kind, identity) in self.resources else []
        return found

    def _give_token(self, form: dict[str, list[str]]) -> _Answer:
        assert self.keys is not None
        try:
            keys: Any = self.keys()
            claims = jwt.decode(
                form["client_assertion"][0], KeySet.import_key_set(keys), algorithms=["ES384", "RS384"]
            ).claims
        except (JoseError, ValueError):
            return _json({"error": "invalid_client"}, 401)
        if claims["aud"] != f"{self.root}/token" or claims["exp"] < time.time():
            return _json({"error": "invalid_client"}, 401)
        token = uuid.uuid4().hex
        self.tokens.add(token)
        return _json({"access_token": token, "token_type": "Bearer", "expires_in": 300})

    # -- Bulk Data --------------------------------------------------------------------------------
    def _bulk(self, method: str, path: str, query: dict[str, str]) -> _Answer:
        if path.endswith("$export"):
            job = uuid.uuid4().hex[:8]
            since = query.get("_since", "")
            self.jobs[job] = datetime.fromisoformat(since.replace(" ", "+")) if since else None
            self.types[job] = query.get("_type", "").split(",")
            return _Answer(202, headers={"Content-Location": f"{self.base}/jobs/{job}"})
        name = path.partition("/")[2]
        if path.startswith("files/"):
            return _Answer(body=self.files[name]) if name in self.files else _refused(404)
        if name not in self.jobs:
            return _refused(404)
        if method == "DELETE":
            del self.jobs[name]
            return _Answer(202)
        if self.polls_until_ready:
            self.polls_until_ready -= 1
            return _Answer(202, headers={"Retry-After": "0", "X-Progress": "50%"})
        return _json(self._manifest(name))

    def _manifest(self, job: str) -> Json:
        since = self.jobs[job]
        kinds: dict[str, list[Json]] = {}
        for (kind, _), resource in self.resources.items():
            if kind in self.types[job] and (since is None or _updated(resource) >= since):
                kinds.setdefault(kind, []).append(resource)
        output = []
        for kind, resources in kinds.items():
            lines = [json.dumps(one).encode() + b"\n" for one in resources]
            self.files[f"{job}-{kind}"] = b"".join(lines[: len(lines) - self.loses])
            url = f"{self.base}/files/{job}-{kind}"
            output.append({"type": kind, "url": url, "count": len(resources)})
        gone = [
            {"request": {"method": "DELETE", "url": f"{kind}/{identity}"}} for kind, identity in self.gone
        ]
        self.files[f"{job}-deleted"] = json.dumps(
            {"resourceType": "Bundle", "type": "transaction", "entry": gone}
        ).encode()
        return {
            "transactionTime": self.clock.isoformat(),
            "requiresAccessToken": True,
            "output": output,
            "error": [],
            "deleted": [{"type": "Bundle", "url": f"{self.base}/files/{job}-deleted"}]
            if gone and since
            else [],
        }


def _faulty(fault: Fault) -> _Answer:
    return {
        Fault.BUSY: _refused(429, **{"Retry-After": "0"}),
        Fault.DOWN: _refused(503, **{"Retry-After": "0"}),
        Fault.EXPIRED: _refused(410),
        Fault.DENIED: _refused(403),
        Fault.GARBAGE: _Answer(200, b"<html>Welcome to the guest network</html>"),
        Fault.UNAUTHORISED: _refused(401),
        Fault.FAILED: _refused(500, **{"Retry-After": "0"}),
    }[fault]


def _json(values: Json, status: int = 200, **headers: str) -> _Answer:
    return _Answer(status, json.dumps(values).encode(), {"Content-Type": "application/fhir+json", **headers})


def _refused(status: int, **headers: str) -> _Answer:
    issue = {"severity": "error", "code": "processing", "diagnostics": f"planned fault {status}"}
    return _json({"resourceType": "OperationOutcome", "issue": [issue]}, status, **headers)


def _updated(resource: Json) -> datetime:
    return datetime.fromisoformat(resource["meta"]["lastUpdated"])


def _is_about(resource: Json, patient: str) -> bool:
    subject = resource.get("subject") or resource.get("patient") or {}
    return not patient or subject.get("reference") == f"Patient/{patient}"


def a_patient(identity: str = "p1", **changes: Any) -> Json:
    return {
        "resourceType": "Patient",
        "id": identity,
        "gender": "female",
        "birthDate": "1950-06-01",
    } | changes


def a_pressure(identity: str, value: float = 120, patient: str = "p1", **changes: Any) -> Json:
    return {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": "2026-03-01T08:00:00Z",
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
    } | changes
