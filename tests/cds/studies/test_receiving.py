"""A study arrives: once, durably, for the right patient; what contradicts it is set aside with its reason."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from django.db import connection
from pydicom import dcmread
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    RawDataStorage,
    RLELossless,
    RTDoseStorage,
    RTPhysicianIntentStorage,
    SegmentationStorage,
    XRayRadiationDoseSRStorage,
    generate_uid,
)

import ehr
from cds.audit.models import AuditEvent
from cds.errors import Conflict, Invalid, NotFound
from cds.jobs import Job, leases
from cds.jobs.models import LiveEvent, OutboxMessage, WorkState
from cds.patients.models import NOT_READ, Patient, PatientIdentifier, SetAside, Source
from cds.studies import clips, matching, queries, receiving
from cds.studies.models import Encoding, Instance, Series, Study, StudyState
from tests.cds.studies.conftest import Make
from tests.ehr.dicom.making import make_dataset, save
from tests.factories import NOW, TESTS, make_source

pytestmark = pytest.mark.django_db


def make_patient(
    resource_id: str = "p1", *, mrn: str = "", system: str = "urn:mrn", source: Source | None = None
) -> Patient:
    patient = Patient.objects.create(source=source or make_source(), resource_id=resource_id, changed_at=NOW)
    PatientIdentifier.objects.create(patient=patient, system=system, value=mrn or f"MRN-{resource_id}")
    return patient


def receive(path: Path, **changes: object) -> receiving.Received:
    arguments = {"source": make_source(), "by": TESTS, "now": NOW, **changes}
    return receiving.receive_file(path, **arguments)  # type: ignore[arg-type]


def complete(study: Study | None) -> receiving.Completed:
    assert study is not None
    return receiving.complete(study, by=TESTS, now=NOW)


def test_from_file_to_clip(make: Make, store: Path) -> None:
    patient = make_patient()
    path = make(
        ViewPosition="PA", BodyPartExamined="CHEST", PixelSpacing=[0.2, 0.2], StudyDescription="Chest"
    )
    received = receive(path)
    assert received.outcome == "new"
    assert received.study is not None
    assert received.instance is not None
    assert received.study.patient == patient
    assert received.study.state == StudyState.ANNOUNCED
    stored = store / received.instance.path
    assert stored.read_bytes() == path.read_bytes()
    assert stored.name == f"{received.instance.sha256}.dcm"
    assert (stored.parent.name, stored.parent.parent.name) == (
        str(received.instance.series_id), str(received.study.pk)
    )  # fmt: skip

    done = complete(received.study)
    assert (done.decoded, done.failed, done.study.state) == (1, 0, StudyState.STORED)
    series = Series.objects.get()
    assert (series.imaging_modality, series.view, series.body_part) == ("CR", "PA", "CHEST")
    assert (series.frames, series.rows, series.columns, series.frame_ms) == (1, 8, 8, None)
    assert (series.spacing_row_mm, series.spacing_column_mm) == (0.2, 0.2)
    assert len(series.pixels_digest) == 64
    assert series.failure == ""
    frame = receiving.frame(series, 0)
    assert frame.dtype == np.uint8
    assert (frame == 100).all()
    clip, original = receiving.load_clip(series), ehr.read_clip([path])
    np.testing.assert_array_equal(clip.frames, original.frames)
    assert clip.spacing_mm == (0.2, 0.2)
    assert receiving.png(series, 0).startswith(b"\x89PNG")

    patient.refresh_from_db()
    assert patient.revision == 1
    encoding = Encoding.objects.get()
    assert done.encoding == encoding
    assert (encoding.backbones, encoding.work_state) == ("active", WorkState.QUEUED)
    assert OutboxMessage.objects.get().kwargs["encoding_id"] == str(encoding.pk)
    assert OutboxMessage.objects.get().job == Job.ENCODE
    assert LiveEvent.objects.filter(kind="study", patient_id=patient.pk).exists()
    actions = list(
        AuditEvent.objects.filter(patient_id=patient.pk).order_by("pk").values_list("action", flat=True)
    )
    assert actions == ["study.announce", "instance.receive", "study.store"]


def test_the_same_again_changes_nothing(make: Make) -> None:
    patient = make_patient()
    path = make()
    study = receive(path).study
    complete(study)
    events = AuditEvent.objects.count()
    again = receive(path)
    assert (again.outcome, again.study) == ("duplicate", study)
    done = complete(again.study)
    assert (done.decoded, done.encoding, done.study.state) == (0, None, StudyState.STORED)
    patient.refresh_from_db()
    assert (patient.revision, AuditEvent.objects.count()) == (1, events)
    assert (Study.objects.count(), Series.objects.count(), Instance.objects.count()) == (1, 1, 1)
    assert Encoding.objects.count() == 1


def test_same_uid_with_other_pixels_is_set_aside(make: Make) -> None:
    uid = generate_uid()
    first = receive(make(100, SOPInstanceUID=uid))
    second = receive(make(120, SOPInstanceUID=uid), where="disk 2")
    assert (second.outcome, second.instance) == ("set-aside", None)
    assert "other pixels" in second.reason
    kept = SetAside.objects.get()
    assert (kept.where, kept.kind, kept.identity) == ("disk 2", "DICOM", uid)
    assert Instance.objects.get() == first.instance


def test_same_image_in_another_transfer_syntax_is_a_duplicate(make: Make, tmp_path: Path) -> None:
    path = make()
    receive(path)
    import pydicom

    data = pydicom.dcmread(path)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    again = receive(tmp_path / "rle.dcm")
    assert (again.outcome, again.reason) == ("duplicate", "same pixels in another transfer syntax")


def test_uids_that_contradict_each_other(make: Make) -> None:
    sop, series = generate_uid(), generate_uid()
    receive(make(SOPInstanceUID=sop, SeriesInstanceUID=series))
    assert "another Series" in receive(make(SOPInstanceUID=sop)).reason
    assert "another Study" in receive(make(SeriesInstanceUID=series, StudyInstanceUID=generate_uid())).reason
    assert "PatientID differs" in receive(make(PatientID="MRN-p2")).reason
    assert SetAside.objects.count() == 3


@pytest.mark.parametrize(
    ("content", "words"), [(b"not dicom at all" * 50, "not a DICOM file"), (b"", "empty")]
)
def test_bad_files_are_set_aside_once(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    for _ in range(2):
        received = receive(path)
        assert received.outcome == "set-aside"
        assert words in received.reason
    assert (SetAside.objects.count(), SetAside.objects.get().times) == (1, 2)
    assert not Study.objects.exists()


def test_truncated_and_pixelless_files_leave_no_rows(make: Make, tmp_path: Path) -> None:
    path = make()
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated" in receive(path).reason
    report = save(make_dataset(None, Modality="SR"), tmp_path / "sr.dcm")
    received = receive(report)
    assert received.outcome == "not-read"
    assert "holds no picture (Modality SR)" in received.reason
    assert SetAside.objects.get(kind=NOT_READ).identity == str(dcmread(report).SOPInstanceUID)
    lost = make_dataset(None, Modality="CT", Rows=512, Columns=512)
    received = receive(save(lost, tmp_path / "lost.dcm"))
    assert received.outcome == "set-aside", "a picture that lost its pixels is no report"
    assert "send the whole instance" in received.reason
    assert not Study.objects.exists()


@pytest.mark.parametrize(
    ("modality", "kind", "outcome"),
    [
        ("CT", CTImageStorage, "set-aside"),
        ("", CTImageStorage, "set-aside"),
        ("SEG", SegmentationStorage, "set-aside"),
        ("CT", "1.2.3.4", "set-aside"),
        ("RTDOSE", RTDoseStorage, "set-aside"),
        ("OT", EncapsulatedPDFStorage, "not-read"),
        ("MR", RawDataStorage, "not-read"),
        ("OT", RTPhysicianIntentStorage, "not-read"),
        ("CT", XRayRadiationDoseSRStorage, "not-read"),
    ],
)
def test_a_picture_cut_off_before_its_rows_is_no_report(
    tmp_path: Path, modality: str, kind: str, outcome: str
) -> None:
    path = save(make_dataset(None, Modality=modality, SOPClassUID=kind), tmp_path / "cut.dcm")
    received = receive(path)
    assert received.outcome == outcome
    if outcome == "set-aside":
        assert "Modality and SOP Class speak of a picture" in received.reason
        assert not SetAside.objects.filter(kind=NOT_READ).exists()


def test_new_files_open_the_study_again(make: Make, store: Path) -> None:
    patient = make_patient()
    study = receive(make(10, Modality="MR", InstanceNumber=1)).study
    complete(study)
    first = Series.objects.get()
    receiving.mark_encoded(Study.objects.get(), failures=[], now=NOW)
    assert Study.objects.get().state == StudyState.ENCODED
    receive(make(20, Modality="MR", InstanceNumber=2))
    assert Study.objects.get().state == StudyState.ANNOUNCED
    # the encoders finish late: a study with new files is not encoded
    assert receiving.mark_encoded(Study.objects.get(), failures=[], now=NOW).state == StudyState.ANNOUNCED
    complete(study)
    second = Series.objects.get()
    assert (second.frames, second.pixels_digest != first.pixels_digest) == (2, True)
    assert Encoding.objects.count() == 2
    assert not (store / first.clip_path).exists()  # the outdated frames are gone
    assert len(list(store.rglob("*.npy"))) == 2
    patient.refresh_from_db()
    assert patient.revision == 2


def test_a_run_that_died_after_decoding_is_finished_by_the_next(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = receive(make()).study

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cds.studies.decoding.recording.record", die)
    with pytest.raises(KeyboardInterrupt):
        complete(study)
    monkeypatch.undo()
    assert Study.objects.get().state == StudyState.ANNOUNCED
    assert not Encoding.objects.exists()
    assert complete(study).study.state == StudyState.STORED


def test_a_series_that_cannot_be_decoded_says_why_and_the_others_go_on(make: Make) -> None:
    make_patient()
    good = receive(make())
    bad = receive(make(SeriesInstanceUID=generate_uid(), Rows=9))  # promises more pixels than there are
    assert bad.outcome == "new"
    done = complete(good.study)
    assert (done.decoded, done.failed, done.study.state) == (1, 1, StudyState.STORED)
    failed = Series.objects.get(clip_path="")
    assert "not as long as" in failed.failure
    with pytest.raises(NotFound):
        receiving.frame(failed, 0)
    assert complete(good.study).decoded == 0


def test_a_study_without_a_readable_series_fails_in_words(make: Make) -> None:
    study = receive(make(Rows=9)).study
    done = complete(study)
    assert done.study.state == StudyState.FAILED
    assert "no Series can be decoded" in done.study.failure
    assert done.encoding is None
    assert not Encoding.objects.exists()


def test_the_same_pixels_inverted_are_another_picture_to_an_encoder(make: Make) -> None:
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        complete(receive(make(StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(),
                              PhotometricInterpretation=kind)).study)  # fmt: skip
    instances = set(Instance.objects.values_list("pixel_digest", flat=True))
    series = set(Series.objects.values_list("pixels_digest", flat=True))
    assert (len(instances), len(series)) == (1, 2)


def test_cine(make: Make) -> None:
    moving = np.stack([np.full((8, 8), 10 * place, np.uint8) for place in range(5)])
    complete(receive(make(pixels=moving, Modality="US", FrameTimeVector=[0, 30, 50, 30, 50])).study)
    series = Series.objects.get()
    assert series.is_cine
    assert (series.frames, series.frame_ms) == (5, 40)
    assert receiving.times_ms(series).tolist() == [0, 30, 80, 110, 160]
    assert [int(receiving.frame(series, place)[0, 0]) for place in range(5)] == [0, 10, 20, 30, 40]
    for index in (-1, 5):
        with pytest.raises(Invalid):
            receiving.frame(series, index)


@pytest.mark.parametrize(
    ("elements", "found"),
    [
        ({"PatientID": "MRN-p1"}, True),
        ({"PatientID": "p1"}, True),  # the id within the source
        ({"PatientID": "MRN-p1", "IssuerOfPatientID": "urn:mrn"}, True),
        ({"PatientID": "MRN-p1", "IssuerOfPatientID": "another hospital"}, False),
        ({"PatientID": "p1", "IssuerOfPatientID": "urn:mrn"}, False),
        ({"PatientID": "MRN-p9"}, False),
        ({"PatientID": ""}, False),
    ],
)
def test_whose_study_it_is(make: Make, elements: dict[str, str], found: bool) -> None:
    patient = make_patient()
    study = receive(make(**elements)).study
    assert study is not None
    assert study.patient == (patient if found else None)


def test_an_ambiguous_identifier_links_nobody(make: Make) -> None:
    make_patient("p1", mrn="17", system="urn:a")
    make_patient("p2", mrn="17", system="urn:b")
    study = receive(make(PatientID="17")).study
    assert study is not None
    assert study.patient is None


def test_another_source_is_another_hospital(make: Make) -> None:
    make_patient(source=make_source("elsewhere"))
    study = receive(make(PatientID="MRN-p1")).study
    assert study is not None
    assert study.patient is None


def test_a_merged_patient_leads_to_the_survivor() -> None:
    old, new = make_patient("p1"), make_patient("p2")
    Patient.objects.filter(pk=old.pk).update(replaced_by="p2", merged_into=new)
    assert matching.find_patient(make_source(), "MRN-p1") == new


def test_a_study_finds_its_patient_later(make: Make) -> None:
    study = receive(make(PatientID="MRN-p1")).study
    complete(study)
    other = receive(
        make(PatientID="MRN-p2", StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
    )
    patient = make_patient()
    assert receiving.link_patient(patient, now=NOW) == 1
    assert receiving.link_patient(patient, now=NOW) == 0
    assert Study.objects.get(patient=patient) == study
    assert other.study is not None
    assert Study.objects.get(patient=None) == other.study
    patient.refresh_from_db()
    assert patient.revision == 1
    assert AuditEvent.objects.filter(action="study.link", patient_id=patient.pk).count() == 1


def announcement(uid: str) -> ehr.ImagingStudyRecord:
    return ehr.ImagingStudyRecord(
        resource_type="ImagingStudy",
        resource_id="i1",
        available_at=NOW,
        study_uid=uid,
        started_at=NOW,
        description="Echo",
    )


def test_announced_then_received(make: Make) -> None:
    patient = make_patient()
    uid = generate_uid()
    first = receiving.announce(announcement(uid), source=make_source(), patient=patient, by=TESTS, now=NOW)
    again = receiving.announce(announcement(uid), source=make_source(), patient=patient, by=TESTS, now=NOW)
    assert first == again
    assert (first.state, first.description) == (StudyState.ANNOUNCED, "Echo")
    received = receive(make(StudyInstanceUID=uid, PatientID="only the archive knows"))
    assert received.study == first
    assert received.study.patient == patient
    assert complete(first).study.state == StudyState.STORED
    stranger = make_patient("p2")
    with pytest.raises(Conflict):
        receiving.announce(announcement(uid), source=make_source(), patient=stranger, by=TESTS, now=NOW)
    assert (
        complete(
            receiving.announce(announcement(generate_uid()), source=make_source(), by=TESTS, now=NOW)
        ).decoded
        == 0
    )


def test_a_file_that_leads_to_another_patient_than_announced(make: Make) -> None:
    make_patient("p2")
    uid = generate_uid()
    receiving.announce(announcement(uid), source=make_source(), patient=make_patient(), by=TESTS, now=NOW)
    refused = receive(make(StudyInstanceUID=uid, PatientID="MRN-p2"))
    assert "leads to another patient than its Study: correct PatientID" in refused.reason
    assert not Instance.objects.exists()


def test_undated_study_is_kept_without_a_date(make: Make) -> None:
    study = receive(make(StudyDate="", StudyTime="")).study
    assert study is not None
    assert study.started_at is None


def test_encoding_that_failed_is_told_and_may_start_anew(make: Make) -> None:
    patient = make_patient()
    done = complete(receive(make()).study)
    assert done.encoding is not None
    Encoding.objects.update(starts=Encoding.MAX_STARTS, work_state=WorkState.RUNNING, lease_until=NOW)
    leases.sweep(NOW + timedelta(days=1))
    study = Study.objects.get()
    assert (study.state, "encoding" in study.failure) == (StudyState.FAILED, True)
    patient.refresh_from_db()
    assert patient.revision == 2
    again = receiving.request_encoding(study, now=NOW)
    assert (again.pk, again.work_state, again.starts) == (done.encoding.pk, WorkState.QUEUED, 0)


def test_queries(make: Make) -> None:
    patient = make_patient()
    when = datetime(2026, 3, 1, 10, 15, tzinfo=UTC)
    complete(receive(make()).study)
    (shown,) = queries.list_studies(patient)
    assert (shown.started_at, shown.state, shown.is_ready) == (when, StudyState.STORED, False)
    (series,) = shown.series
    assert (series.frames, series.is_cine) == (1, False)
    assert queries.list_studies(patient, as_of=when - timedelta(seconds=1)) == []
    assert queries.latest_studies(patient, as_of=when) == {"CR": shown}
    assert queries.find_series(patient.pk, series.id) is not None
    assert queries.find_series(make_patient("p2").pk, series.id) is None
    assert queries.find_series("nonsense", "nonsense") is None


def test_embeddings_are_kept_once() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert queries.put_embedding("subject", "encoder:1", values, now=NOW)
    assert not queries.put_embedding("subject", "encoder:1", values + 1, now=NOW)
    found = queries.embeddings(["subject", "unknown", ""], "encoder:1")
    assert list(found) == ["subject"]
    np.testing.assert_array_equal(found["subject"], values)
    assert queries.embeddings(["subject"], "encoder:2") == {}
    for wrong in (np.zeros(3, np.float32), np.full((1, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match="embedding"):
            queries.put_embedding("other", "encoder:1", wrong, now=NOW)


def test_a_file_that_vanished_is_said(make: Make, store: Path) -> None:
    complete(receive(make()).study)
    series = Series.objects.get()
    (store / series.clip_path).unlink()
    with pytest.raises(NotFound, match="not in the store"):
        receiving.load_clip(series)


@pytest.mark.django_db(transaction=True)
def test_many_at_once_store_one_copy(make: Make, store: Path) -> None:
    """Eight receivers of one file, and of one UID with two contents: one Instance, nothing left over."""
    make_patient()
    source = make_source()
    uid = generate_uid()
    paths = [make(100, SOPInstanceUID=uid), make(120, SOPInstanceUID=uid)] * 4
    outcomes: list[str] = []
    start = threading.Barrier(len(paths))

    def run(path: Path) -> None:
        try:
            start.wait()
            outcomes.append(receiving.receive_file(path, source=source, by=TESTS, now=NOW).outcome)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["duplicate"] * 3 + ["new"] + ["set-aside"] * 4
    assert (Study.objects.count(), Series.objects.count(), Instance.objects.count()) == (1, 1, 1)
    assert [path.name for path in store.rglob("*.dcm")] == [f"{Instance.objects.get().sha256}.dcm"]
    assert not list(store.rglob(".part-*"))


def test_a_half_written_file_is_never_seen(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "one.bin"
    source.write_bytes(b"x" * 10)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cds.studies.clips.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        clips.keep_file(source, "a/b")
    assert [path for path in store.rglob("*") if path.is_file()] == []
