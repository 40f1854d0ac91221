"""Bulk Data export against a server that is slow, breaks off, loses files and errs."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ehr import BadResource, BulkClient, Refused, Retriable, TooLarge, read_fhir_folder
from tests.ehr.fhir.resources_for_tests import observation, patient

BASE = "https://ehr.example/fhir"
JOB = f"{BASE}/jobs/1"
MOMENT = "2026-11-01T12:00:00Z"


def ndjson(*resources: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in resources)


class Server:
    """Two files, one error, one deletion; `faults` path → answers given first, in turn."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []
        self.faults: dict[str, list[httpx.Response | Exception]] = {}
        self.files = {
            "/fhir/files/p": ndjson(patient()),
            "/fhir/files/o": ndjson(observation(), observation(id="o2", value=2.0)),
            "/fhir/files/e": ndjson(
                {
                    "resourceType": "OperationOutcome",
                    "issue": [{"code": "exception", "diagnostics": "lost one"}],
                }
            ),
            "/fhir/files/d": ndjson(
                {
                    "resourceType": "Bundle",
                    "type": "transaction",
                    "entry": [
                        {"request": {"method": "DELETE", "url": "Observation/gone"}},
                        {"request": {"method": "GET", "url": "Observation/here"}},
                    ],
                }
            ),
        }
        self.manifest: dict[str, Any] = {
            "transactionTime": MOMENT,
            "request": f"{BASE}/Patient/$export",
            "requiresAccessToken": True,
            "output": [
                {"type": "Patient", "url": f"{BASE}/files/p", "count": 1},
                {"type": "Observation", "url": f"{BASE}/files/o", "count": 2},
            ],
            "error": [{"type": "OperationOutcome", "url": f"{BASE}/files/e"}],
            "deleted": [{"type": "Bundle", "url": f"{BASE}/files/d"}],
        }

    def client(self, **kwargs: Any) -> BulkClient:
        return BulkClient(
            BASE,
            token="secret",
            transport=httpx.MockTransport(self.answer),
            sleep=self.slept.append,
            **kwargs,
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        self.requests.append(request)
        waiting = self.faults.get(request.url.path, [])
        if waiting:
            fault = waiting.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        if request.url.path.endswith("$export"):
            return httpx.Response(202, headers={"Content-Location": JOB})
        if request.url.path == "/fhir/jobs/1":
            return httpx.Response(202 if request.method == "DELETE" else 200, json=self.manifest)
        if request.url.path in self.files:
            body = gzip.compress(self.files[request.url.path])
            return httpx.Response(200, content=body, headers={"Content-Encoding": "gzip"})
        return httpx.Response(404)

    def times(self, path: str) -> int:
        return sum(asked == path for _, asked in self.asked)


class BreaksOff(httpx.SyncByteStream):
    def __iter__(self) -> Any:
        yield b'{"resourceType": "Pat'
        raise httpx.ReadError("connection lost")


def test_a_population_comes_as_files_that_can_be_read(tmp_path: Path) -> None:
    server = Server()
    with server.client() as client:
        export = client.export(tmp_path, since=datetime(2026, 10, 1, tzinfo=UTC))
    asked = server.requests[0]
    assert asked.headers["Prefer"] == "respond-async"
    assert asked.headers["Authorization"] == "Bearer secret"
    assert asked.url.params["_since"] == "2026-10-01T00:00:00.000+00:00"
    assert "Observation" in asked.url.params["_type"]
    assert export.transaction_time == datetime(2026, 11, 1, 12, tzinfo=UTC)
    (record,) = read_fhir_folder(export.folder)
    assert record.patient.resource_id == "p1"
    assert len(record.observations) == 2
    assert export.deleted == (("Observation", "gone"),)
    (problem,) = export.problems
    assert problem.reason == "the server says: exception lost one"


def test_it_waits_as_long_as_the_server_asks(tmp_path: Path) -> None:
    server = Server()
    progress: list[tuple[str, int, int | None]] = []
    server.faults["/fhir/jobs/1"] = [
        httpx.Response(202, headers={"Retry-After": "7", "X-Progress": "40% complete"}),
        httpx.Response(429, headers={"Retry-After": "11"}),
        httpx.Response(202),
    ]
    with server.client() as client:
        client.export(tmp_path, tell=lambda *said: progress.append(said))
    assert server.slept[:2] == [7, 11]
    assert ("Export is being made", 40, 100) in progress


def test_patience_ends_and_the_job_is_kept(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [httpx.Response(202, headers={"Retry-After": "60"}) for _ in range(4)]
    with server.client(longest_s=100) as client, pytest.raises(Retriable, match="run again"):
        client.export(tmp_path)
    with server.client() as client:
        client.export(tmp_path)
    assert server.times("/fhir/Patient/$export") == 1, "the same job is waited for"


def test_a_broken_download_is_fetched_again_and_a_finished_file_is_not(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/files/o"] = [httpx.Response(200, stream=BreaksOff()) for _ in range(5)]
    with server.client() as client:
        with pytest.raises(Retriable):
            client.export(tmp_path)
        assert not list(tmp_path.rglob("Observation*.ndjson")), "whole or not at all"
        server.faults["/fhir/files/o"] = [httpx.Response(200, stream=BreaksOff())]
        export = client.export(tmp_path)
    assert server.times("/fhir/files/p") == 1
    assert server.times("/fhir/Patient/$export") == 1
    assert len(list(export.folder.glob("*.ndjson"))) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_files_that_expired_end_the_job_and_the_next_run_asks_anew(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/files/o"] = [httpx.Response(410)]
    with server.client() as client:
        with pytest.raises(Refused, match="run again for a new export"):
            client.export(tmp_path)
        client.export(tmp_path)
    assert server.times("/fhir/Patient/$export") == 2
    assert ("DELETE", "/fhir/jobs/1") in server.asked


def test_fewer_lines_than_promised_are_told(tmp_path: Path) -> None:
    server = Server()
    server.manifest["output"][1]["count"] = 3
    with server.client() as client:
        export = client.export(tmp_path)
    assert any("holds 2 resources and the manifest promised 3" in p.reason for p in export.problems)


def test_another_question_is_another_export(tmp_path: Path) -> None:
    server = Server()
    with server.client() as client:
        client.export(tmp_path)
        client.export(tmp_path, of="Group/ward-7")
    assert server.times("/fhir/Group/ward-7/$export") == 1
    assert server.times("/fhir/files/p") == 2


def test_finishing_deletes_the_job_and_the_files(tmp_path: Path) -> None:
    server = Server()
    with server.client() as client:
        client.export(tmp_path)
        client.finish(tmp_path)
    assert server.asked[-1] == ("DELETE", "/fhir/jobs/1")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_token_goes_to_no_other_host(tmp_path: Path) -> None:
    server = Server()
    server.manifest["requiresAccessToken"] = False
    server.manifest["output"][0]["url"] = "https://store.example/fhir/files/p?signature=x"
    with server.client() as client, pytest.raises(Refused, match="--file-host"):
        client.export(tmp_path)
    with server.client(file_hosts=["store.example"]) as client:
        client.export(tmp_path)
    (fetched,) = [r for r in server.requests if r.url.host == "store.example"]
    assert "Authorization" not in fetched.headers


@pytest.mark.parametrize(
    "fault",
    [
        httpx.Response(200, json={"resourceType": "Bundle"}),
        httpx.Response(202),
        httpx.Response(202, headers={"Content-Location": "https://evil.example/jobs/1"}),
        httpx.Response(403, json={"resourceType": "OperationOutcome", "issue": [{"code": "forbidden"}]}),
    ],
)
def test_a_server_that_does_not_export_is_refused(tmp_path: Path, fault: httpx.Response) -> None:
    server = Server()
    server.faults["/fhir/Patient/$export"] = [fault]
    with server.client() as client, pytest.raises(Refused):
        client.export(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"{}",
        b'{"transactionTime": "2026-11-01T12:00:00Z", "output": [{"type": "../x", "url": "y"}]}',
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, body: bytes) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [httpx.Response(200, content=body)]
    with server.client() as client, pytest.raises(BadResource, match="manifest"):
        client.export(tmp_path)


@pytest.mark.parametrize("of", ["Group/../x", "Encounter", "Patient/1"])
def test_only_what_can_be_exported(tmp_path: Path, of: str) -> None:
    with Server().client() as client, pytest.raises(Refused, match="an export is of"):
        client.export(tmp_path, of=of)


def test_a_file_that_unpacks_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehr.fhir.bulk.MAX_FILE_BYTES", 1000)
    server = Server()
    server.files["/fhir/files/o"] = b"\n" * 100_000
    with server.client() as client, pytest.raises(TooLarge, match="unpacks to more than 1000 bytes"):
        client.export(tmp_path)
    assert not list(tmp_path.rglob("Observation*.ndjson"))
