"""Bulk Data export against a server that is slow, breaks off, loses files and errs."""

from __future__ import annotations

import base64
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ehr import (
    BackendServices,
    BadResource,
    BulkClient,
    Refused,
    Retriable,
    SignInRefused,
    TooLarge,
    new_key,
    read_fhir_folder,
)
from ehr.fhir import export_files
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

    def client(self, *, token: Any = "secret", **kwargs: Any) -> BulkClient:
        return BulkClient(
            BASE,
            token=token,
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


class Trickles(httpx.SyncByteStream):
    """A body that comes in small pieces, undecoded."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __iter__(self) -> Any:
        for start in range(0, len(self.body), 1 if len(self.body) < 1000 else 1000):
            yield self.body[start : start + (1 if len(self.body) < 1000 else 1000)]


class Endless(httpx.SyncByteStream):
    """A body that does not end."""

    given = 0

    def __iter__(self) -> Any:
        while True:
            self.given += 2**16
            yield b" " * 2**16


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


def test_fewer_lines_than_promised_are_fetched_again_and_told(tmp_path: Path) -> None:
    server = Server()
    server.manifest["output"][1]["count"] = 3
    with server.client() as client:
        export = client.export(tmp_path)
    (missing,) = export.missing
    assert "holds 2 resources and the manifest promised 3, twice" in missing.reason
    assert server.times("/fhir/files/o") == 2
    assert len(next(read_fhir_folder(export.folder)).observations) == 2, "what there is, is taken"


@pytest.mark.parametrize(("count", "told"), [(1, False), (2, False), (3, True)])
def test_a_count_of_deletions_or_errors_is_told_and_holds_nothing_up(
    tmp_path: Path, count: int, told: bool
) -> None:
    server = Server()
    server.manifest["deleted"][0]["count"] = count  # one line, of two entries
    server.manifest["error"][0]["count"] = 4
    with server.client() as client:
        export = client.export(tmp_path)
    assert export.missing == (), "the next export goes on from this one's moment"
    assert export.deleted == (("Observation", "gone"),)
    assert [server.times(f"/fhir/files/{one}") for one in "ed"] == [1, 1]
    reasons = [one.reason for one in export.problems if "manifest counts" in one.reason]
    assert reasons == [
        f"the file holds {held} of the {of} that the manifest counts: taken as it is"
        for held, of in [(1, 4), (2, count)][: 1 + told]
    ]


def test_a_file_that_is_whole_the_second_time_is_whole(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/files/o"] = [httpx.Response(200, content=ndjson(observation()))]
    with server.client() as client:
        export = client.export(tmp_path)
    assert export.missing == ()
    assert len(next(read_fhir_folder(export.folder)).observations) == 2
    assert not list(tmp_path.rglob("*.short"))


def test_more_lines_than_promised_lose_nothing(tmp_path: Path) -> None:
    server = Server()
    server.manifest["output"][1]["count"] = 1
    with server.client() as client:
        assert client.export(tmp_path).missing == ()


@pytest.mark.parametrize("members", [1, 2])
def test_a_packed_file_without_its_header_is_unpacked(tmp_path: Path, members: int) -> None:
    lines = server_lines = Server().files["/fhir/files/o"].splitlines(keepends=True)
    packed = b"".join(
        gzip.compress(b"".join(part)) for part in ([lines] if members == 1 else [lines[:1], lines[1:]])
    )
    server = Server()
    server.manifest["output"][1]["url"] += ".ndjson.gz"
    server.faults["/fhir/files/o.ndjson.gz"] = [httpx.Response(200, stream=Trickles(packed))]
    with server.client() as client:
        export = client.export(tmp_path)
    assert (export.folder / "Observation-00001.ndjson").read_bytes() == b"".join(server_lines)
    assert export.missing == ()


def test_a_packed_file_that_breaks_off_is_fetched_again(tmp_path: Path) -> None:
    server = Server()
    packed = gzip.compress(server.files["/fhir/files/o"])
    server.faults["/fhir/files/o"] = [
        httpx.Response(200, stream=Trickles(packed[:-12])),
        httpx.Response(200, stream=Trickles(packed[:40] + b"spoilt" + packed[46:])),
    ]
    with server.client() as client:
        export = client.export(tmp_path)
    assert server.times("/fhir/files/o") == 3
    assert (export.folder / "Observation-00001.ndjson").read_bytes() == server.files["/fhir/files/o"]


def test_a_packed_file_unpacks_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehr.fhir.bulk.MAX_FILE_BYTES", 1000)
    server = Server()
    bomb = gzip.compress(b"\n" * 10_000_000)
    server.faults["/fhir/files/o"] = [httpx.Response(200, stream=Trickles(bomb))]
    with server.client() as client, pytest.raises(TooLarge, match="more and smaller files"):
        client.export(tmp_path)


def test_a_page_of_a_portal_is_not_taken_for_a_file(tmp_path: Path) -> None:
    server = Server()
    page = b"<html>Welcome to the guest network</html>"
    server.faults["/fhir/files/o"] = [httpx.Response(200, content=page) for _ in range(2)]
    with server.client() as client:
        assert client.export(tmp_path).missing == ()
        client.finish(tmp_path)
        server.files["/fhir/files/o"] = page
        export = client.export(tmp_path)
    (missing,) = export.missing
    assert "is not NDJSON: a proxy or portal" in missing.reason
    assert [path.name for path in export.folder.iterdir()] == ["Patient-00000.ndjson"]


def test_a_deletion_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    server = Server()
    server.files["/fhir/files/d"] += b'{"resourceType": "Bundle", "entry": [\n'
    with server.client() as client:
        export = client.export(tmp_path)
    assert export.deleted == (("Observation", "gone"),)
    assert "line 2 of Bundle-00003.ndjson" in export.missing[0].reason


def failed(status: int, code: str = "processing") -> httpx.Response:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"code": code, "diagnostics": "out of disk"}]}
    return httpx.Response(status, json=outcome)


def test_a_job_that_failed_is_forgotten(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [failed(500) for _ in range(5)]
    with server.client() as client:
        with pytest.raises(Refused, match=r"could not make the export.*out of disk.*Run again for a new"):
            client.export(tmp_path)
        client.export(tmp_path)
    assert server.times("/fhir/Patient/$export") == 2
    assert ("DELETE", "/fhir/jobs/1") in server.asked


@pytest.mark.parametrize("fault", [failed(500, "transient"), failed(503), failed(401)])
def test_a_job_that_may_still_be_there_is_kept(tmp_path: Path, fault: httpx.Response) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [fault] * 5
    with server.client() as client:
        with pytest.raises((Retriable, Refused)):
            client.export(tmp_path)
        server.faults.clear()
        client.export(tmp_path)
    assert server.times("/fhir/Patient/$export") == 1


def test_a_job_whose_status_stays_out_of_order_is_given_up(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [failed(503) for _ in range(5 * 5)]
    with server.client() as client:
        for _ in range(4):
            with pytest.raises(Retriable):
                client.export(tmp_path)
        with pytest.raises(Refused, match="new export"):
            client.export(tmp_path)
        client.export(tmp_path)
    assert server.times("/fhir/Patient/$export") == 2


@pytest.mark.parametrize(
    "fault",
    [
        httpx.Response(400, json={"error": "invalid_client"}),
        httpx.Response(403),
        httpx.Response(404),
        httpx.Response(200, content=b"<html>"),
    ],
    ids=["400", "403", "404", "no token"],
)
@pytest.mark.parametrize("asked", ["jobs/1", "files/o", "Binary/b1"])
def test_a_sign_in_that_is_refused_costs_nothing_of_an_export(
    tmp_path: Path, asked: str, fault: httpx.Response
) -> None:
    server = noted(note("n1", "Binary/b1"))
    server.faults["/fhir/Binary/b1"] = [binary("b1", "Better.")]

    def authority(_: httpx.Request) -> httpx.Response:
        """Tokens that end at once; none for what is asked after `before`."""
        if is_out_of_order and server.asked and server.asked[-1][1] == before:
            return fault
        return httpx.Response(200, json={"access_token": "t", "token_type": "bearer", "expires_in": 0})

    before = {"jobs/1": "/fhir/Patient/$export", "files/o": "/fhir/files/p", "Binary/b1": "/fhir/files/d"}[
        asked
    ]
    key, there = new_key(), httpx.MockTransport(authority)
    with server.client(token=BackendServices(f"{BASE}/token", "us", key, transport=there)) as client:
        for is_out_of_order in (True, True, False):  # the second finds what the first left
            if is_out_of_order:
                with pytest.raises(SignInRefused):
                    client.export(tmp_path)
            else:
                export = client.export(tmp_path)
    assert export.missing == ()
    assert [server.times(f"/fhir/{one}") for one in ("Patient/$export", "files/p", asked)] == [1, 1, 1]
    assert [one.text for one in next(read_fhir_folder(export.folder)).notes] == ["Better."]


@pytest.mark.parametrize("status", [404, 410])
def test_a_job_that_expired_between_runs_is_asked_for_anew(tmp_path: Path, status: int) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [httpx.ReadError("lost") for _ in range(5)]
    with server.client() as client:
        with pytest.raises(Retriable):
            client.export(tmp_path)
        server.faults["/fhir/jobs/1"] = [failed(status)]
        export = client.export(tmp_path)
    assert export.missing == ()
    assert server.times("/fhir/Patient/$export") == 2


def test_a_manifest_that_is_none_costs_its_job_only(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [httpx.Response(200, content=b"<html>")]
    with server.client() as client:
        with pytest.raises(BadResource, match=r"manifest.*it is not JSON.*Run again"):
            client.export(tmp_path)
        client.export(tmp_path)
    assert server.times("/fhir/Patient/$export") == 2


def test_a_long_retry_after_is_honoured_within_an_hour(tmp_path: Path) -> None:
    server = Server()
    server.faults["/fhir/jobs/1"] = [
        httpx.Response(202, headers={"Retry-After": "150"}),
        httpx.Response(429, headers={"Retry-After": "86400"}),
    ]
    told: list[str] = []
    with server.client() as client:
        client.export(tmp_path, tell=lambda what, done, total: told.append(what))
    assert server.slept[:3] == [60, 60, 30]
    assert sum(server.slept[3:]) == 3600
    assert server.times("/fhir/jobs/1") == 3
    assert len(told) > 60, "whoever looks sees that it is alive"


def test_the_whole_system_can_be_exported(tmp_path: Path) -> None:
    server = Server()
    with server.client() as client:
        client.export(tmp_path, of="")
    assert server.asked[0] == ("GET", "/fhir/$export")


def test_what_a_server_says_when_it_refuses_is_read_to_a_limit(tmp_path: Path) -> None:
    server = Server()
    endless = Endless()
    server.faults["/fhir/files/o"] = [httpx.Response(400, stream=endless)]
    with server.client() as client, pytest.raises(Refused, match="file o: 400"):
        client.export(tmp_path)
    assert endless.given < 2**21


def test_a_status_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehr.fhir.export_job.MAX_MANIFEST_BYTES", 2**20)
    server = Server()
    endless = Endless()
    server.faults["/fhir/jobs/1"] = [httpx.Response(200, stream=endless)]
    with server.client() as client, pytest.raises(Refused, match="larger than 1048576 bytes"):
        client.export(tmp_path)
    assert endless.given < 2**22


def test_of_many_errors_the_first_are_listed_and_the_others_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehr.fhir.export_files.MOST_PROBLEMS", 3)
    server = Server()
    server.files["/fhir/files/e"] *= 10
    with server.client() as client:
        export = client.export(tmp_path)
    assert len(export.problems) == 4
    assert "7 more" in export.problems[-1].reason


def test_a_line_of_any_length_is_counted_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ndjson"
    monkeypatch.setattr(export_files, "PIECE", 1000)
    path.write_bytes(b"\n  \n" + b"x" * 5000 + b"\ny\n" + b" " * 3000 + b"\nz")
    assert export_files.count_lines(path) == 3
    monkeypatch.setattr(export_files, "MAX_LINE_BYTES", 100)
    path.write_bytes(b"[" + b"1," * 200 + b"1]\n[2]\n")
    assert list(export_files.rows(path)) == [(1, None), (2, [2])]


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


def note(identity: str, url: str) -> dict[str, Any]:
    attachment = {"contentType": "text/plain", "url": url}
    subject = {"reference": "Patient/p1"}
    return {
        "resourceType": "DocumentReference",
        "id": identity,
        "status": "current",
        "subject": subject,
        "date": "2026-03-01T08:00:00Z",
        "content": [{"attachment": attachment}],
    }


def binary(identity: str, words: str) -> httpx.Response:
    data = base64.b64encode(words.encode()).decode()
    held = {"resourceType": "Binary", "id": identity, "contentType": "text/plain", "data": data}
    return httpx.Response(200, json=held)


def noted(*notes: dict[str, Any]) -> Server:
    server = Server()
    server.manifest["output"].append({"type": "DocumentReference", "url": f"{BASE}/files/n"})
    server.files["/fhir/files/n"] = ndjson(*notes)
    return server


def test_texts_that_notes_point_to_are_fetched_from_the_same_server_only(tmp_path: Path) -> None:
    elsewhere = "https://store.example/Binary/b3"
    server = noted(
        note("n1", "Binary/b1"),
        note("n2", f"{BASE}/Binary/b2"),
        note("n3", elsewhere),
        note("n4", "Binary/b4"),
    )
    server.faults = {
        "/fhir/Binary/b1": [httpx.Response(503), binary("b1", "Short of breath.")],
        "/fhir/Binary/b2": [binary("b2", "Better.")],
    }
    with server.client() as client:
        export = client.export(tmp_path)
    (record,) = read_fhir_folder(export.folder)
    assert [one.text for one in record.notes] == ["Short of breath.", "Better."]
    assert not any(request.url.host == "store.example" for request in server.requests)
    (fetched, *_) = [r for r in server.requests if r.url.path == "/fhir/Binary/b1"]
    assert fetched.headers["Authorization"] == "Bearer secret"
    (lost,) = [one for one in export.problems if one.kind == "Binary"]
    assert (lost.identity, "404" in lost.reason) == ("b4", True)


def test_texts_go_on_where_a_run_broke_off(tmp_path: Path) -> None:
    server = noted(*(note(f"n{n}", f"Binary/b{n}") for n in range(4)))
    for n in range(4):
        server.faults[f"/fhir/Binary/b{n}"] = [binary(f"b{n}", f"text {n}")]
    server.faults["/fhir/Binary/b1"] = [httpx.Response(404)]
    server.faults["/fhir/Binary/b2"] = [*(httpx.Response(503) for _ in range(5)), binary("b2", "text 2")]
    with server.client() as client:
        with pytest.raises(Retriable):
            client.export(tmp_path)
        part = tmp_path / "output" / "Binary-texts.part"
        part.write_bytes(part.read_bytes() + b'{"resourceType": "Bin')  # a kill cut this line
        export = client.export(tmp_path)
    (record,) = read_fhir_folder(export.folder)
    assert [one.text for one in record.notes] == ["text 0", "text 2", "text 3"]
    assert [server.times(f"/fhir/Binary/b{n}") for n in range(4)] == [1, 1, 6, 1]
    assert [one.identity for one in export.problems if one.kind == "Binary"] == ["b1"]


@pytest.mark.parametrize("busy", [5, 0], ids=["broke off among the texts", "broke off after them"])
def test_texts_of_a_file_that_came_late_are_read(tmp_path: Path, busy: int) -> None:
    server = noted(note("n0", "Binary/b0"))
    server.manifest["output"].append({"type": "DocumentReference", "url": f"{BASE}/files/later"})
    server.files["/fhir/files/later"] = ndjson(note("n1", "Binary/b1"), note("n2", "Binary/b2"))
    for n in range(3):
        server.faults[f"/fhir/Binary/b{n}"] = [binary(f"b{n}", f"text {n}")]
    server.faults["/fhir/Binary/b2"][:0] = [httpx.Response(503) for _ in range(busy)]
    server.faults["/fhir/files/n"] = [httpx.Response(200, content=b"<html>") for _ in range(5)]
    with server.client() as client:
        if busy:
            with pytest.raises(Retriable):
                client.export(tmp_path)
        else:
            assert client.export(tmp_path).missing, "and a kill before it was taken"
        export = client.export(tmp_path)
    assert export.missing == ()
    (record,) = read_fhir_folder(export.folder)
    assert [one.text for one in record.notes] == ["text 0", "text 1", "text 2"]
    assert [server.times(f"/fhir/Binary/b{n}") for n in range(3)] == [1, 1, busy + 1]


def test_texts_that_are_denied_are_not_asked_for_without_end(tmp_path: Path) -> None:
    server = noted(*(note(f"n{n}", f"Binary/b{n}") for n in range(40)))
    for n in range(40):
        server.faults[f"/fhir/Binary/b{n}"] = [httpx.Response(403)]
    with server.client() as client:
        export = client.export(tmp_path)
    lost = [one for one in export.problems if one.kind == "Binary"]
    assert len(lost) == 20
    assert "the others are not asked for: allow it, and run with --everything" in lost[-1].reason


def test_a_text_is_read_to_a_limit_and_one_that_is_exported_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehr.fhir.bulk.MAX_TEXT_BYTES", 1000)
    server = noted(note("n1", "Binary/b1"), note("n2", "Binary/b2"))
    server.manifest["output"].append({"type": "Binary", "url": f"{BASE}/files/b"})
    server.files["/fhir/files/b"] = binary("b2", "here").content + b"\n"
    server.faults["/fhir/Binary/b1"] = [binary("b1", "x" * 2000)]
    with server.client() as client:
        export = client.export(tmp_path)
    (record,) = read_fhir_folder(export.folder)
    assert [one.text for one in record.notes] == ["here"]
    assert any("larger than 1000 bytes" in one.reason for one in export.problems)
    assert server.times("/fhir/Binary/b2") == 0
