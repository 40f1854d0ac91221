"""Decoding DICOM: MB/s of decoded pixels per transfer syntax, in our child; beside the plug-in alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import dicom_pictures, measuring

TIMES = 5
WITHIN = 1.1
OURS = ("raw", "RLE", "JPEG-LS", "JPEG 2000")  # what pydicom can write
DCMCJPEG = {"JPEG baseline, 8 bits": "+eb", "JPEG extended, 12 bits": "+ee", "JPEG lossless": "+e1"}


def run() -> measuring.Table:
    """Measure."""
    columns = (
        "transfer syntax",
        "plug-in alone MB/s",
        "decoded in the child MB/s",
        "as a Clip MB/s",
        "within 10 %",
    )
    table = measuring.Table("Decoding DICOM", columns)
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        for syntax, path in _files(Path(name)).items():
            alone, apart, clip = _measure(path)
            met = "yes" if apart * WITHIN >= alone else "**no**"
            table.add(syntax, alone, apart, clip, met)
    table.notes.append(
        f"A simulated radiograph of {dicom_pictures.SIDE} x {dicom_pictures.SIDE}, 12 bits; best of {TIMES}. "
        "In the child: opened, checked, decoded and hashed; as a Clip: windowed and handed over as well."
    )
    return table


def _files(folder: Path) -> dict[str, Path]:
    files = {syntax: dicom_pictures.radiograph(folder / f"{syntax}.dcm", syntax) for syntax in OURS}
    if shutil.which("dcmcjpeg"):
        for syntax, option in DCMCJPEG.items():
            path = folder / f"{option}.dcm"
            command = ["dcmcjpeg", option, str(files["raw"]), str(path)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                files[syntax] = path
    return files


def _measure(path: Path) -> tuple[float, float, float]:
    import hashlib

    import pydicom

    import ehr
    from ehr.dicom import pixels

    data = pydicom.dcmread(path)
    size = data.Rows * data.Columns * data.BitsAllocated / 8 / 1e6

    def alone() -> None:
        for values, _ in pixels.decode(pydicom.dcmread(path), [0]):
            hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()

    def best(call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(TIMES):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return size / min(seconds)

    ehr.read_header(path)  # the child is there
    return (
        best(alone),
        best(lambda: ehr.value_digest(path)),
        best(lambda: ehr.read_clip([path], max_side=4096)),
    )
