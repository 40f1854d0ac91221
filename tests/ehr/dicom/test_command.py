"""`python -m ehr.dicom`: DICOM to the archive that a small machine reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ehr.dicom.__main__ import main
from fusion.edge_inputs import read_inputs
from tests.ehr.dicom.making import make_file


def test_a_clip_becomes_an_archive_that_the_edge_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.arange(5 * 8 * 6, dtype=np.uint8).reshape(5, 8, 6)
    path = make_file(tmp_path, pixels, Modality="US", FrameTime=40, PixelSpacing=[0.5, 0.5])
    out = tmp_path / "clip.npz"
    assert main([str(path), str(out)]) == 0
    assert "5 frame(s) of 8 x 6" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as kept:
        assert kept["times_ms"].tolist() == [0, 40, 80, 120, 160]
        assert kept["spacing_mm"].tolist() == [0.5, 0.5]
        values = kept["values"]
    (clip,) = read_inputs([out]).cines
    np.testing.assert_array_equal(clip.read().values, values)
    still = make_file(tmp_path, pixels[0], "still.dcm")
    assert main([str(still), str(out)]) == 0
    assert len(read_inputs([out]).images) == 1


def test_what_is_no_dicom_is_refused_in_words_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no image at all" * 20)
    out = tmp_path / "clip.npz"
    assert main([str(tmp_path / "a.dcm"), str(out)]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a.dcm"), str(tmp_path / "b.png")])
