"""`manage.py ingest --bulk`: a population by Bulk Data, signed in with our own key; then what changed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from joserfc import jwt
from joserfc.jwk import KeySet

from cds import signing
from cds.patients.models import Observation, Patient, SetAside, Source
from ehr import public_keys

pytestmark = pytest.mark.django_db


def pressure(identity: str, value: float = 120) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2026-03-01T08:00:00Z",
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
    }


PATIENT = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1950-06-01"}


class Hospital:
    """A FHIR server with Bulk Data and an authorisation server that knows our key set."""

    def __init__(self) -> None:
        self.files: dict[str, list[dict[str, Any]]] = {
            "Patient": [PATIENT],
            "Observation": [pressure("o1"), pressure("o2", 130)],
        }
        self.deleted: list[str] = []
        self.fails: list[str] = []  # types whose file is answered 500, once each
        self.asked: list[str] = []
        self.since: list[str] = []
        served: Any = public_keys(signing.private_keys())
        self.keys = KeySet.import_key_set(served)
        hospital = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hospital.answer(self)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        path, query = urlsplit(call.path).path, parse_qs(urlsplit(call.path).query)
        self.asked.append(f"{call.command} {path}")
        status, headers, body = 200, {}, b""
        if path == "/fhir/.well-known/smart-configuration":
            body = json.dumps({"token_endpoint": f"{self.base}/token"}).encode()
        elif path == "/token":
            form = parse_qs(call.rfile.read(int(call.headers["Content-Length"])).decode())
            claims = jwt.decode(form["client_assertion"][0], self.keys, algorithms=["ES384"]).claims
            assert claims["iss"] == "tessera"
            assert claims["exp"] > time.time()
            body = b'{"access_token": "let-me-in", "token_type": "Bearer", "expires_in": 300}'
        elif call.headers.get("Authorization") != "Bearer let-me-in":
            status = 401
        elif path.endswith("$export"):
            self.since.append(query.get("_since", [""])[0])
            status, headers = 202, {"Content-Location": f"{self.base}/fhir/jobs/7"}
        elif path == "/fhir/jobs/7" and call.command == "DELETE":
            status = 202
        elif path == "/fhir/jobs/7":
            body = json.dumps(self.manifest()).encode()
        elif (kind := path.rsplit("/", 1)[-1]) in self.fails:
            self.fails.remove(kind)
            status = 404
        elif kind == "deleted":
            entries = [{"request": {"method": "DELETE", "url": url}} for url in self.deleted]
            body = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}).encode()
        else:
            body = b"\n".join(json.dumps(one).encode() for one in self.files[kind])
        call.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            call.send_header(name, value)
        call.end_headers()
        call.wfile.write(body)

    def manifest(self) -> dict[str, Any]:
        files = f"{self.base}/fhir/files"
        return {
            "transactionTime": "2026-11-01T12:00:00Z",
            "requiresAccessToken": True,
            "output": [{"type": kind, "url": f"{files}/{kind}"} for kind in self.files],
            "error": [],
            "deleted": [{"type": "Bundle", "url": f"{files}/deleted"}] if self.deleted else [],
        }


@pytest.fixture
def hospital(settings: Any, tmp_path: Path) -> Iterator[Hospital]:
    settings.FHIR_KEYS, settings.DATA_DIR = tmp_path / "keys.json", tmp_path
    signing.add_key("EC")
    found = Hospital()
    thread = Thread(target=found.http.serve_forever, daemon=True)
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()
    thread.join(5)


def ingest(hospital: Hospital, *more: str) -> None:
    call_command(
        "ingest", "--bulk", f"{hospital.base}/fhir", "--client-id", "tessera", "--source", "north", *more
    )


def test_a_population_then_what_has_changed_then_what_is_gone(hospital: Hospital, tmp_path: Path) -> None:
    ingest(hospital)
    patient = Patient.objects.get()
    assert (patient.resource_id, patient.revision) == ("p1", 1)
    assert Observation.objects.count() == 2
    assert hospital.since == [""]
    assert hospital.asked[-1] == "DELETE /fhir/jobs/7"
    assert not [path for path in (tmp_path / "exports").rglob("*") if path.is_file()]

    hospital.files = {"Observation": [pressure("o2", 131)]}
    hospital.deleted = ["Observation/o1", "Patient/p1", "Observation/unknown"]
    ingest(hospital)
    assert hospital.since[1] == "2026-11-01T12:00:00.000+00:00"
    assert [(o.resource_id, o.value) for o in Observation.objects.all()] == [("o2", 131)]
    patient.refresh_from_db()
    assert patient.revision == 3, "once for what changed, once for what is gone"
    assert "kept here" in SetAside.objects.get(kind="Patient").reason

    ingest(hospital, "--everything")
    assert hospital.since[2] == ""


def test_a_group_is_another_export_than_everybody(hospital: Hospital) -> None:
    ingest(hospital, "--bulk-of", "Group/ward")
    ingest(hospital)
    assert "GET /fhir/Group/ward/$export" in hospital.asked
    assert hospital.since == ["", ""]


def test_an_export_that_failed_counts_for_nothing(hospital: Hospital) -> None:
    hospital.fails = ["Observation"]
    with pytest.raises(CommandError, match="run again for a new export"):
        ingest(hospital)
    assert Source.objects.get(slug="north").exports == {}
    assert not Patient.objects.exists()
    ingest(hospital)
    assert Observation.objects.count() == 2


def test_our_public_keys_are_served(hospital: Hospital, client: Client) -> None:
    answer = client.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert "max-age=300" in answer["Cache-Control"]
    (key,) = answer.json()["keys"]
    assert "d" not in key
    assert (key["alg"], key["crv"]) == ("ES384", "P-384")


def test_keys_rotate(
    hospital: Hospital, client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = [key["kid"] for key in signing.private_keys()]
    call_command("fhir_key", "add", "--kind", "RSA")
    new = signing.private_keys()[0]["kid"]
    served = [key["kid"] for key in client.get("/.well-known/jwks.json").json()["keys"]]
    assert served == [new, old], "the old one is served until it is dropped"
    told = capsys.readouterr().out
    assert f"{new} RSA served; signs from " in told
    assert f"{old} EC signs" in told
    with pytest.raises(CommandError, match="this key signs"):
        call_command("fhir_key", "drop", old)
    later = timezone.now() + timedelta(seconds=signing.SETTLED_S)
    monkeypatch.setattr("cds.signing.timezone.now", lambda: later)
    with pytest.raises(CommandError, match="this key signs"):
        call_command("fhir_key", "drop", new)
    call_command("fhir_key", "drop", old)
    assert [key["kid"] for key in signing.private_keys()] == [new]
    assert f"{new} RSA signs" in capsys.readouterr().out


def test_of_keys_that_servers_may_not_have_read_the_oldest_signs(hospital: Hospital) -> None:
    (old,) = [key["kid"] for key in signing.private_keys()]
    for _ in range(2):
        signing.add_key("EC")
        assert signing.signing_key() == signing.private_keys()[-1]
    assert signing.private_keys()[-1]["kid"] == old


def test_a_key_of_an_earlier_version_signs(hospital: Hospital, settings: Any) -> None:
    held = json.loads(settings.FHIR_KEYS.read_text())
    del held["keys"][0]["made_at"]
    settings.FHIR_KEYS.write_text(json.dumps(held))
    signing.add_key("EC")
    assert signing.signing_key() == held["keys"][0]


def test_only_the_owner_reads_the_keys(hospital: Hospital, settings: Any) -> None:
    assert settings.FHIR_KEYS.stat().st_mode & 0o077 == 0


def test_a_spoilt_key_file_says_what_to_do(hospital: Hospital, settings: Any) -> None:
    settings.FHIR_KEYS.write_text("{}")
    with pytest.raises(CommandError, match="restore it, or move it away"):
        ingest(hospital)


def test_without_a_key_it_says_how_to_make_one(hospital: Hospital, settings: Any) -> None:
    settings.FHIR_KEYS.unlink()
    with pytest.raises(CommandError, match="fhir_key add"):
        ingest(hospital)
