"""The DICOMweb client against an archive in memory: paging, multipart as it comes, every kind of refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr import BadResource, DicomWebClient, Refused, Retriable, TooLarge, read_study, values_of
from ehr.dicom.multipart import read_parts

BASE = "https://archive.example/dicom-web"


def client(answer: Callable[[httpx.Request], httpx.Response], **more: Any) -> DicomWebClient:
    return DicomWebClient(BASE, transport=httpx.MockTransport(answer), **more)


def study(number: int) -> dict[str, Any]:
    return {"0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]}}


def test_all_pages_each_study_once() -> None:
    held = [study(number) for number in range(7)]
    asked: list[httpx.QueryParams] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params)
        assert request.headers["accept"] == "application/dicom+json"
        assert request.headers["authorization"] == "Bearer secret"
        start = int(request.url.params["offset"])
        page = held[max(0, start - 1) : start + 3]  # an archive that changed meanwhile: one comes twice
        return httpx.Response(200, json=page) if page else httpx.Response(204)

    with client(answer, token="secret", page=3) as archive:
        found = list(archive.studies(since=date(2026, 3, 1), patient_id="MRN-1"))
    assert [one["0020000D"]["Value"][0] for one in found] == [f"1.2.{number}" for number in range(7)]
    assert asked[0]["StudyDate"] == "20260301-"
    assert asked[0]["PatientID"] == "MRN-1"


def test_an_archive_that_ignores_offset_ends() -> None:
    with client(lambda _: httpx.Response(200, json=[study(1), study(2)])) as archive:
        assert len(list(archive.studies())) == 2


def multipart(parts: list[bytes], boundary: str = "xyz", *, lengths: bool = False) -> bytes:
    body = b""
    for part in parts:
        body += f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n".encode()
        body += (f"Content-Length: {len(part)}\r\n" if lengths else "").encode() + b"\r\n" + part
    return body + f"\r\n--{boundary}--\r\n".encode()


KIND = 'multipart/related; type="application/dicom"; boundary="xyz"'


@pytest.mark.parametrize("lengths", [True, False])
def test_instances_come_one_by_one(lengths: bool) -> None:
    parts = [b"DICM" + bytes(range(256)) * 40, b"\r\n--xy", b"\r\n\r\n" * 3]

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/dicom-web/studies/1.2.3"
        assert "transfer-syntax=*" in request.headers["accept"]
        return httpx.Response(200, content=multipart(parts, lengths=lengths), headers={"Content-Type": KIND})

    with client(answer) as archive:
        assert list(archive.instances("1.2.3")) == parts


@given(
    parts=st.lists(st.binary(max_size=60).filter(lambda part: b"--xyz" not in part), min_size=1, max_size=4),
    size=st.integers(1, 50),
    lengths=st.booleans(),
)
def test_parts_survive_any_slicing(parts: list[bytes], size: int, lengths: bool) -> None:
    body = multipart(parts, lengths=lengths)
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    assert list(read_parts(KIND, pieces, limit=1000)) == parts


def test_a_single_file_is_an_answer_too() -> None:
    headers = {"Content-Type": "application/dicom"}
    with client(lambda _: httpx.Response(200, content=b"one", headers=headers)) as archive:
        assert list(archive.instances("1.2.3")) == [b"one"]


@pytest.mark.parametrize("cut", [10, 100, 250])
def test_an_answer_that_breaks_off_is_retriable(cut: int) -> None:
    body = multipart([b"x" * 200])[:cut]
    with pytest.raises(Retriable):
        list(read_parts(KIND, iter([body]), limit=1000))


@pytest.mark.parametrize("lengths", [True, False])
def test_an_instance_over_the_limit(lengths: bool) -> None:
    body = multipart([b"x" * 300_000], lengths=lengths)
    pieces: Iterator[bytes] = (body[at : at + 1000] for at in range(0, len(body), 1000))
    with pytest.raises(TooLarge):
        list(read_parts(KIND, pieces, limit=50_000))


@pytest.mark.parametrize(
    ("status", "headers", "error", "words"),
    [
        (503, {"Retry-After": "7"}, Retriable, "503"),
        (429, {}, Retriable, "429"),
        (302, {"Location": "https://evil.example/"}, Refused, "redirect"),
        (401, {}, Refused, "401"),
        (404, {}, Refused, "404"),
    ],
)
def test_refusals(status: int, headers: dict[str, str], error: type[Exception], words: str) -> None:
    with client(lambda _: httpx.Response(status, headers=headers)) as archive:
        with pytest.raises(error, match=words) as raised:
            list(archive.studies())
        with pytest.raises(error, match=words):
            list(archive.instances("1.2.3"))
    if isinstance(raised.value, Retriable) and headers:
        assert raised.value.retry_after_s == 7


def test_lost_connection_is_retriable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with client(answer) as archive, pytest.raises(Retriable, match="ReadTimeout"):
        list(archive.studies())


@pytest.mark.parametrize("content", [b"<html>", b'{"a": 1}', b"[1, 2]"])
def test_answers_that_are_not_dicom_json(content: bytes) -> None:
    with client(lambda _: httpx.Response(200, content=content)) as archive, pytest.raises(Refused):
        list(archive.studies())


def test_a_page_over_the_limit() -> None:
    content = json.dumps([study(number) for number in range(2000)]).encode()
    small = client(lambda _: httpx.Response(200, content=content), max_page_bytes=1000)
    with small as archive, pytest.raises(TooLarge):
        list(archive.studies())


@pytest.mark.parametrize("url", ["ftp://archive", "archive/dicom-web", "https://user:secret@archive/"])
def test_addresses(url: str) -> None:
    with pytest.raises(Refused):
        DicomWebClient(url)


def test_uids_never_become_paths() -> None:
    with client(lambda _: httpx.Response(500)) as archive, pytest.raises(Refused, match="UID"):
        list(archive.instances("../instances"))


def test_read_study() -> None:
    found = read_study(
        {
            **study(5),
            "00080020": {"vr": "DA", "Value": ["20260301"]},
            "00080030": {"vr": "TM", "Value": ["101500.123"]},
            "00080201": {"vr": "SH", "Value": ["+0200"]},
            "00080061": {"vr": "CS", "Value": ["US", "SR"]},
            "00081030": {"vr": "LO", "Value": ["Echo"]},
            "00100020": {"vr": "LO", "Value": ["MRN-1"]},
        }
    )
    assert (found.study_uid, found.modalities, found.description) == ("1.2.5", ("US", "SR"), "Echo")
    assert found.started_at == datetime(2026, 3, 1, 10, 15, tzinfo=timezone(timedelta(hours=2)))
    assert found.available_at == found.started_at
    undated = read_study({**study(6), "00080020": {"vr": "DA"}})
    assert undated.started_at is None
    dated = read_study({**study(7), "00080020": {"vr": "DA", "Value": ["20260301"]}})
    assert dated.started_at == datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    assert values_of(study(5), "00100020") == []
    with pytest.raises(BadResource):
        read_study({"0020000D": {"vr": "UI", "Value": ["not a uid"]}})
