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

import ehr
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
    with client(lambda _: httpx.Response(500)) as archive:
        for uids in (("../instances",), ("1.2", "../x"), ("1.2", "", "1.4"), ("1.2", "1.3", "../x")):
            with pytest.raises(Refused, match="UID"):
                list(archive.instances(*uids))
            with pytest.raises(Refused, match="UID"):
                archive.metadata(*uids)
        for series, sop in (("", ""), ("", "1.4"), ("1.3", ""), ("../x", "1.4")):
            with pytest.raises(Refused, match="UID"):
                list(archive.frames("1.2", series, sop, [1]))


def test_metadata_of_a_study_a_series_an_instance() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path.removeprefix("/dicom-web/"))
        assert request.headers["accept"] == "application/dicom+json"
        return httpx.Response(200, json=[{"00080018": {"vr": "UI", "Value": ["1.4"]}}])

    with client(answer) as archive:
        for uids in (("1.2",), ("1.2", "1.3"), ("1.2", "1.3", "1.4")):
            assert ehr.value_of(archive.metadata(*uids)[0], "00080018") == "1.4"
    assert asked == [
        "studies/1.2/metadata",
        "studies/1.2/series/1.3/metadata",
        "studies/1.2/series/1.3/instances/1.4/metadata",
    ]
    small = client(lambda _: httpx.Response(200, json=[study(n) for n in range(99)]), max_page_bytes=1000)
    with small as archive, pytest.raises(TooLarge):
        archive.metadata("1.2")


FRAMES = 'multipart/related; type="application/octet-stream"; boundary="xyz"'


def test_frames_come_as_asked_for() -> None:
    syntaxes = ["1.2.840.10008.1.2.1"]

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path.endswith("/studies/1.2/series/1.3/instances/1.4/frames/3,1")
        assert request.headers["accept"] == (
            f'multipart/related; type="application/octet-stream"; transfer-syntax={syntaxes[0]}'
        )
        return httpx.Response(200, content=multipart([b"ccc", b"aaa"]), headers={"Content-Type": FRAMES})

    with client(answer) as archive:
        assert list(archive.frames("1.2", "1.3", "1.4", [3, 1])) == [b"ccc", b"aaa"]
        syntaxes[0] = "*"
        assert list(archive.frames("1.2", "1.3", "1.4", [3, 1], syntax="*")) == [b"ccc", b"aaa"]
        for numbers in ([], [0], range(1, 102)):
            with pytest.raises(ValueError, match="1 to 100 frames"):
                list(archive.frames("1.2", "1.3", "1.4", numbers))


@pytest.mark.parametrize(
    ("kind", "content", "error", "words"),
    [
        (FRAMES, multipart([b"aaa"]), Refused, "1 of 2 frames"),
        (FRAMES, multipart([b"a" * 9000, b"b"]), TooLarge, "a frame of the archive is over 5,000 bytes"),
        (FRAMES, multipart([b"a" * 4000, b"b"])[:2000], Retriable, "in the middle of a frame"),
        ("image/jpeg", b"jpeg", Refused, "'image/jpeg' instead of multipart/related"),
    ],
    ids=["too few", "too large", "cut", "another type"],
)
def test_frames_that_do_not_come(kind: str, content: bytes, error: type[Exception], words: str) -> None:
    headers = {"Content-Type": kind}
    answering = client(
        lambda _: httpx.Response(200, content=content, headers=headers), max_instance_bytes=5000
    )
    with answering as archive, pytest.raises(error, match=words):
        list(archive.frames("1.2", "1.3", "1.4", [1, 2]))


def test_one_frame_alone_needs_no_multipart() -> None:
    headers = {"Content-Type": "application/octet-stream"}
    with client(lambda _: httpx.Response(200, content=b"aaa", headers=headers)) as archive:
        assert list(archive.frames("1.2", "1.3", "1.4", [1])) == [b"aaa"]


def listed(sop: str, modality: str, **more: Any) -> dict[str, Any]:
    said = {"0020000E": "1.3", "00080018": sop, "00080060": modality, **more}
    return {tag: {"vr": "LO", "Value": [value]} for tag, value in said.items() if value}


def test_what_a_study_holds_before_its_files_are_fetched() -> None:
    found = ehr.read_contents(
        [
            listed("1.1", "CT", **{"00280010": 512}),
            listed("1.2", "SR"),
            listed("1.3", "SR", **{"00080070": "Tessera"}),
            {**listed("1.4", "PR"), "7FE00010": {"vr": "OW", "BulkDataURI": "https://archive.example/x"}},
            listed("1.5", "XX"),
            listed("", "CT"),
        ]
    )
    assert [one.sop_uid for one in found] == ["1.1", "1.2", "1.3", "1.4", "1.5"]
    assert [one.sop_uid for one in found if not one.is_picture] == ["1.2", "1.3"]
    assert [one.sop_uid for one in found if one.is_ours] == ["1.3"]
    told = {("CT",): False, ("CT", "SR"): True, ("DX", "SEG"): True, (): True}
    assert {modalities: ehr.may_hold_others(modalities) for modalities in told} == told


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
