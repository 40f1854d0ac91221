"""DICOMweb: asking an archive what it has (QIDO-RS) and fetching it (WADO-RS), PS3.18.

Every request carries an explicit Accept (INTEROP 39): archives disagree about defaults. Redirects are
refused, so that a token never travels to another host. Instances are streamed, one in memory at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, tzinfo
from typing import Any

import httpx

from ehr.bodies import why
from ehr.calling import ServerClient
from ehr.dicom.advice import REPAIR
from ehr.dicom.multipart import read_parts
from ehr.errors import BadResource, Refused, Retriable
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import retry_after
from ehr.records import OUR_SERIES, WITHOUT_PIXELS, ImagingStudyRecord

MIB = 1024 * 1024
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
WANTED = ("StudyInstanceUID", "StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "ModalitiesInStudy",
          "StudyDescription", "PatientID", "IssuerOfPatientID", "NumberOfStudyRelatedInstances")  # fmt: skip
NATIVE = "1.2.840.10008.1.2.1"  # Explicit VR Little Endian: of a frame, its bare values
MOST_FRAMES = 100  # of one request: their numbers stand in its address
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

HINTS = {
    401: "check the token or password",
    403: "allow our account to read",
    404: "check the address, the part before /studies",
}


class DicomWebClient(ServerClient):
    """A DICOMweb archive at `base_url` (the part before `/studies`). Close it, or use it in a `with`.

    token       sent as a bearer to this host only; `auth` for user and password instead
    transport   for tests, and for callers that want their own connection pool
    allow_http  plain http outside loopback, for a network that is trusted
    raises      Retriable (time-out, connection lost, 408, 429, 5xx with Retry-After), Refused (redirect,
                another 4xx, an answer that is not DICOMweb), TooLarge
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn = "",
        auth: tuple[str, str] | None = None,
        timeout_s: float = 30.0,
        page: int = 100,
        max_instance_bytes: int = 1024 * MIB,
        max_page_bytes: int = 64 * MIB,
        transport: httpx.BaseTransport | None = None,
        allow_http: bool = False,
    ) -> None:
        super().__init__(
            base_url,
            accept="application/dicom+json",
            token=token,
            auth=auth,
            timeout_s=timeout_s,
            transport=transport,
            allow_http=allow_http,
            headers={"Accept-Encoding": "identity"},
        )
        self._page, self._max_instance, self._max_page = page, max_instance_bytes, max_page_bytes

    def ask(self) -> str:
        """Ask for one Study: its UID, or "" when there is none. Raises Refused, Retriable, TooLarge."""
        return next((value_of(one, "0020000D") for one in self._get_json("studies", {"limit": 1})), "")

    def ask_instances(self, study_uid: str, most: int) -> list[dict[str, Any]]:
        """A few instances of a Study as DICOM JSON, by QIDO-RS. Raises Refused, Retriable, TooLarge."""
        return self._get_json(f"{_path(study_uid)}/instances", {"limit": most})

    def studies(self, since: date | None = None, patient_id: str | None = None) -> Iterator[dict[str, Any]]:
        """Studies the archive has, as DICOM JSON; all pages, each Study once. See `read_study`.

        since  only those with StudyDate on this day or later
        """
        query: dict[str, Any] = {"limit": self._page, "includefield": list(WANTED)}
        if since is not None:
            query["StudyDate"] = f"{since:%Y%m%d}-"
        if patient_id:
            query["PatientID"] = patient_id
        seen: set[str] = set()
        offset = 0
        while True:
            found = self._get_json("studies", {**query, "offset": offset})
            fresh = [study for study in found if (uid := value_of(study, "0020000D")) and uid not in seen]
            for study in fresh:
                seen.add(value_of(study, "0020000D"))
                yield study
            offset += len(found)
            # A server may give fewer than asked and still have more; one ignoring `offset` repeats itself.
            if not found or not fresh:
                return

    def metadata(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> list[dict[str, Any]]:
        """What a Study (or one Series, or one instance) holds, as DICOM JSON without pixels: `read_contents`.

        raises  TooLarge over `max_page_bytes`
        """
        return self._get_json(f"{_path(study_uid, series_uid, sop_uid)}/metadata", {})

    def instances(self, study_uid: str, series_uid: str = "", sop_uid: str = "") -> Iterator[bytes]:
        """The instances of a Study (or one Series, or one alone) as DICOM files, in the transfer syntax the
        archive keeps them in."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._get(_path(study_uid, series_uid, sop_uid), {}, accept) as answer:
            yield from read_parts(
                answer.headers.get("content-type", ""), answer.iter_bytes(MIB // 4), limit=self._max_instance
            )

    def frames(
        self, study_uid: str, series_uid: str, sop_uid: str, numbers: Sequence[int], *, syntax: str = NATIVE
    ) -> Iterator[bytes]:
        """Frames of one instance, by number from 1, in the order asked for.

        syntax  transfer syntax: NATIVE for bare values, little endian (not every archive can decode what it
                keeps: Orthanc answers 500 for JPEG 2000), or "*": as the archive keeps them
        raises  ValueError for no number, one below 1, or over MOST_FRAMES of them
        """
        if not 0 < len(numbers) <= MOST_FRAMES or min(numbers) < 1:
            raise ValueError(f"1 to {MOST_FRAMES} frames at once, numbered from 1")
        if not sop_uid:
            raise Refused("frames are of one instance: name its SOP Instance UID")
        path = f"{_path(study_uid, series_uid, sop_uid)}/frames/{','.join(map(str, numbers))}"
        accept = f'multipart/related; type="application/octet-stream"; transfer-syntax={syntax}'
        given = 0
        with self._get(path, {}, accept) as answer:
            kind, pieces = answer.headers.get("content-type", ""), answer.iter_bytes(MIB // 4)
            for frame in read_parts(
                kind, pieces, limit=self._max_instance, alone="application/octet-stream", what="a frame"
            ):
                given += 1
                yield frame
        if given != len(numbers):
            raise Refused(f"the archive gave {given} of {len(numbers)} frames: has the instance as many?")

    def _get_json(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        url = str(httpx.URL(path, params=dict(query)))
        answer, body = self._exchange("GET", url, said=f"GET {path} of the archive", limit=self._max_page)
        check_answer(answer)
        try:
            found = json.loads(body or b"[]")
        except ValueError:
            raise Refused(
                "the archive did not answer with DICOM JSON: is this its DICOMweb address?"
            ) from None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise Refused(
                "the archive did not answer with a list of DICOM JSON objects: is this its DICOMweb address?"
            )
        return found

    @contextmanager
    def _get(self, path: str, query: Mapping[str, Any], accept: str) -> Iterator[httpx.Response]:
        """A streamed GET whose faults are already sorted into retriable and permanent."""
        try:
            with self._http.stream("GET", path, params=dict(query), headers={"Accept": accept}) as answer:
                check_answer(answer, {404: "it does not give a study that it listed, or a wrong address"})
                yield answer
        except httpx.InvalidURL:
            raise Refused("the archive's address is not a URL") from None
        except httpx.DecodingError:
            raise Refused(
                "the archive's answer cannot be decoded: have it send without Content-Encoding"
            ) from None
        except httpx.TransportError as error:
            raise Retriable(f"the archive cannot be reached ({why(error)})") from None


def _path(study_uid: str, series_uid: str = "", sop_uid: str = "") -> str:
    """Where a Study, a Series or an instance is. Raises Refused for what is no UID."""
    named = [("studies", "Study", study_uid)]
    if series_uid or sop_uid:
        named.append(("series", "Series", series_uid))
    if sop_uid:
        named.append(("instances", "SOP", sop_uid))
    parts = []
    for place, name, uid in named:
        if len(uid) > 64 or not UID.fullmatch(uid):
            raise Refused(f"not a {name} Instance UID")
        parts += [place, uid]
    return "/".join(parts)


def check_answer(answer: httpx.Response, hints: Mapping[int, str] | None = None) -> None:
    """Raises Retriable or Refused, with what to change, when an archive's answer is none.

    hints  what to change by status, instead of HINTS
    """
    status = answer.status_code
    if 200 <= status < 300:
        return
    if status in BUSY:
        raise Retriable(f"the archive answered {status}", retry_after_s=retry_after(answer))
    if 300 <= status < 400:
        raise Refused(
            f"the archive answered {status} with a redirect, which is not followed: give the address it "
            "leads to",
            status=status,
        )
    hint = {**HINTS, **(hints or {})}.get(status, "")
    raise Refused(f"the archive answered {status}{': ' + hint if hint else ''}", status=status)


def value_of(study: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute of DICOM JSON (PS3.18 F.2), as text; "" when absent."""
    values = values_of(study, tag)
    return values[0] if values else ""


def values_of(study: Mapping[str, Any], tag: str) -> list[str]:
    """All values of an attribute of DICOM JSON, as text."""
    attribute = study.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return [str(one).strip() for one in values if one is not None] if isinstance(values, list) else []


def read_study(
    study: Mapping[str, Any], *, endpoint: str = "", default_tz: tzinfo = UTC
) -> ImagingStudyRecord:
    """A QIDO-RS result as the announcement of a Study; `values_of(study, "00100020")` is its PatientID.

    Without a StudyTime the end of that day is taken, so never earlier than the truth.
    raises  BadResource without a usable Study Instance UID
    """
    uid = value_of(study, "0020000D")
    if not uid or len(uid) > 64 or not UID.fullmatch(uid):
        raise BadResource(f"a Study without a usable StudyInstanceUID: {REPAIR}")
    day, clock = value_of(study, "00080020"), value_of(study, "00080030") or "235959"
    started_at = None
    try:
        started_at = datetime.strptime(day + clock[:6].ljust(6, "0"), "%Y%m%d%H%M%S").replace(
            tzinfo=default_tz
        )
        offset = value_of(study, "00080201")
        if offset:
            started_at = started_at.replace(tzinfo=datetime.strptime(offset, "%z").tzinfo)
    except ValueError:
        pass  # undated, or a zone that is none: what could be read stands
    return ImagingStudyRecord(
        resource_type="ImagingStudy",
        resource_id=uid,
        available_at=started_at,
        study_uid=uid,
        modalities=tuple(values_of(study, "00080061")),
        started_at=started_at,
        description=value_of(study, "00081030"),
        endpoint=endpoint,
        expected=(("", count),) if (count := _count(study, "00201208")) else (),
    )


def read_expected(series: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    """How many instances each Series with pixels has, where all of them say so; else nothing is expected.

    Series of our own results are not waited for.
    """
    counts = [
        (value_of(one, "0020000E"), _count(one, "00201209"))
        for one in series
        if (modality := value_of(one, "00080060")) not in WITHOUT_PIXELS
        and OUR_SERIES.get(modality) != value_of(one, "00200011")
    ]
    return tuple(counts) if counts and all(uid and count for uid, count in counts) else ()


def _count(of: Mapping[str, Any], tag: str) -> int:
    said = value_of(of, tag)
    return int(said) if said.isdigit() else 0
