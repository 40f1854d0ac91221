"""Decoding DICOM: MB/s of decoded pixels per transfer syntax, in our child; beside the plug-in alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import dicom_pictures, measuring

TIMES = 12
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
        "The plug-in alone: opened, decoded and hashed in one process. In the child: checked too, and asked "
        "for; as a Clip: windowed and handed over too."
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
            pixels.hash_values(hashlib.sha256(), values)

    calls: list[Callable[[], object]] = [
        alone,
        lambda: ehr.value_digest(path),
        lambda: ehr.read_clip([path], max_side=4096),
    ]
    for call in calls:
        call()  # the child is there, and both have their memory
    best = [float("inf")] * len(calls)
    for _ in range(TIMES):  # in turn, so that whatever else runs here is everybody's
        for place, call in enumerate(calls):
            began = time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - began)
    return size / best[0], size / best[1], size / best[2]
