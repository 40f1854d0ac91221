"""The simulated pictures: readable DICOM, labelled, and showing what they should."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest

from cds.demo.echo import EchoFindings, draw_echo, draw_masks, measure_ejection_fraction
from cds.demo.pictures import write_echo, write_radiograph
from cds.demo.radiograph import ChestFindings, draw_chest
from cds.demo.simulating import simulate, simulate_cohort

ANCHOR = datetime(2026, 11, 23, 14, tzinfo=UTC)


@pytest.mark.parametrize("fraction", [0.2, 0.35, 0.5, 0.65])
@pytest.mark.parametrize(("heart_rate", "depth"), [(60.0, 150.0), (95.0, 180.0)])
def test_ejection_fraction_measured_from_the_drawing_is_the_one_asked_for(fraction, heart_rate, depth):
    findings = EchoFindings(ejection_fraction=fraction, heart_rate=heart_rate, depth_mm=depth)
    measured = measure_ejection_fraction(draw_masks(findings), findings.mm_per_pixel)
    assert measured == pytest.approx(fraction, abs=0.04)


def test_cavity_is_darker_than_muscle_and_beats():
    findings = EchoFindings(ejection_fraction=0.6)
    clip = draw_echo(findings, np.random.default_rng(1)).astype(float)
    masks = draw_masks(findings)
    assert clip.shape == (32, 160, 160)
    inside = clip[0][masks[0]].mean()
    around = clip[0][60:100, 40:50].mean()
    assert inside < around
    sizes = masks.sum(axis=(1, 2))
    assert sizes.min() < 0.75 * sizes.max()
    systole = int(sizes.argmin())
    emptied = masks[0] & ~masks[systole]
    assert clip[systole][emptied].mean() > clip[0][emptied].mean() + 20  # muscle where blood was


def test_heart_size_and_opacity_can_be_seen():
    plain = ChestFindings(cardiothoracic_ratio=0.45, opacity=0.05)
    chest, big, white = (
        draw_chest(findings, np.random.default_rng(5))
        for findings in (plain, replace(plain, cardiothoracic_ratio=0.65), replace(plain, opacity=0.9))
    )
    beside_heart = np.s_[330:370, 340:375]
    right_lung = np.s_[260:350, 90:170]
    assert big[beside_heart].mean() > chest[beside_heart].mean() + 0.1
    assert white[right_lung].mean() > chest[right_lung].mean() + 0.15
    assert chest.min() >= 0
    assert chest.max() <= 1


def test_radiographs_are_labelled_dicom(tmp_path):
    kinds = set()
    for patient in simulate_cohort(seed=2, patients=14, anchor=ANCHOR):
        write_radiograph(patient, tmp_path / "r.dcm")
        read = pydicom.dcmread(tmp_path / "r.dcm")
        kinds.add(read.PhotometricInterpretation)
        assert (read.Modality, read.BodyPartExamined, read.BurnedInAnnotation) == ("CR", "CHEST", "YES")
        assert read.SeriesDescription.startswith("SIMULATED")
        assert read.PatientID == patient.record_number
        assert read.pixel_array.shape == (512, 512)
        assert read.pixel_array.max() < 4096
        assert read.StudyDate + read.StudyTime == patient.imaged_at.strftime("%Y%m%d%H%M%S")
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}


def test_echoes_are_labelled_multi_frame_dicom(tmp_path):
    syntaxes = set()
    for number in range(3, 22, 3):
        patient = simulate(seed=2, number=number, anchor=ANCHOR)
        assert patient.has_echo
        write_echo(patient, tmp_path / "e.dcm")
        read = pydicom.dcmread(tmp_path / "e.dcm")
        syntaxes.add(read.file_meta.TransferSyntaxUID.name)
        assert read.pixel_array.shape == (32, 160, 160)
        assert 20 < float(read.FrameTime) < 50
        assert read.SequenceOfUltrasoundRegions[0].PhysicalDeltaX > 0
    assert len(syntaxes) == 2


def test_files_are_the_same_every_time(tmp_path):
    patient = simulate(seed=2, number=3, anchor=ANCHOR)
    for write in (write_radiograph, write_echo):
        write(patient, tmp_path / "a.dcm")
        write(patient, tmp_path / "b.dcm")
        assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
