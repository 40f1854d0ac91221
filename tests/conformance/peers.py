"""What an EHR runs beside the calls: a FHIR server that completes a prefetch, and a key set that rotates.

Both are one small server of the suite's own: FHIR at `/fhir`, keys at `/keys`. It is told to the service
before the suite runs, as any EHR's would be; `python -m tests.conformance.peers PORT` runs it for that.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from joserfc.jwk import ECKey

TOKEN = "conformance-access-token"


class AllAtOnce(ThreadingHTTPServer):
    """For callers that ask for every key of a prefetch at the same moment: Python's own server would let a
    sixth connection wait for a second."""

    daemon_threads, request_queue_size = True, 128


class Peers:
    """The two servers: what they publish, and what they were asked.

    keys   private keys; their public halves are at `key_url`. A kid is of this run alone: a service that was
           registered with an earlier one holds another key by the same name otherwise
    asked  path with query and the Authorization header of each request for FHIR, in order
    reads  how often the key set was read
    """

    def __init__(self) -> None:
        self.url = ""
        self.keys = [ECKey.generate_key("P-384", {"kid": f"rotating-{uuid.uuid4().hex[:8]}"})]
        self.asked: list[tuple[str, str]] = []
        self.reads = 0

    @property
    def fhir(self) -> str:
        return f"{self.url}/fhir"

    @property
    def key_url(self) -> str:
        return f"{self.url}/keys"

    def asked_for(self, kind: str) -> list[str]:
        """Requests for a type of resource, or for an address that begins so."""
        return [path for path, _ in self.asked if path.removeprefix("/fhir/").startswith(kind)]

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """What stands at an address: everybody is a Patient, and a search finds nothing more."""
        parts = urlsplit(path)
        kind, _, identity = parts.path.removeprefix("/fhir/").partition("/")
        if kind == "Patient" and identity:
            patient = {
                "resourceType": "Patient",
                "id": identity,
                "gender": "female",
                "birthDate": "1950-06-01",
            }
            return 200, patient
        if identity:
            return 404, {
                "resourceType": "OperationOutcome",
                "issue": [{"severity": "error", "code": "not-found"}],
            }
        entry = []
        asked = parse_qs(parts.query)
        if "page" in asked and kind == "Observation":
            entry = [{"resource": _observation(asked["patient"][0])}]
        return 200, {"resourceType": "Bundle", "type": "searchset", "entry": entry}


def _observation(patient: str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"{patient}-second-page",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": "2026-03-01T08:10:00Z",
        "valueQuantity": {"value": 90, "system": "http://unitsofmeasure.org", "code": "/min"},
    }


@contextmanager
def serving(host: str = "127.0.0.1", port: int = 0) -> Iterator[Peers]:
    """They run, for as long as the block does."""
    peers = Peers()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/keys":
                peers.reads += 1
                status, said = 200, {"keys": [key.as_dict(private=False) for key in peers.keys]}
            elif self.path.startswith("/fhir/"):
                peers.asked.append((self.path, self.headers.get("Authorization", "")))
                status, said = peers.answer(self.path)
            else:
                status, said = 404, {}
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = AllAtOnce((host, port), Handler)
    peers.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield peers
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


if __name__ == "__main__":
    with serving(port=int(sys.argv[1])) as running:
        print(f"{running.fhir}, {running.key_url}; Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()
