"""Decoding DICOM: MB/s of decoded pixels per transfer syntax, in our child; beside the plug-in alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import dicom_pictures, measuring

TIMES = 20
MOST_S = 15
WITHIN = 1.1
DCMCJPEG = {"JPEG baseline, 8 bits": "+eb", "JPEG extended, 12 bits": "+ee", "JPEG lossless": "+e1"}


def run() -> measuring.Table:
    """Measure."""
    columns = (
        "transfer syntax",
        "plug-in alone MB/s",
        "decoded in the child MB/s",
        "as a Clip MB/s",
        "within 10 %",
        "processor ms: alone",
        "in the child",
    )
    table, load = measuring.Table("Decoding DICOM", columns), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        for syntax, path in _files(Path(name)).items():
            (alone, apart, clip), (spent_alone, spent_apart) = _measure(path)
            met = "yes" if apart * WITHIN >= alone else "**no**"
            spent = (f"{1000 * spent_alone:.1f}", f"{1000 * spent_apart:.1f}")
            table.add(syntax, alone, apart, clip, met, *spent)
    table.notes += [
        f"A simulated radiograph of {dicom_pictures.SIDE} x {dicom_pictures.SIDE}, 12 bits; best of {TIMES}, "
        f"at most {MOST_S} s in all. The plug-in alone: opened, decoded and hashed in one process. In the "
        "child, in turn with it: checked too, and asked for. As a Clip, by itself: windowed and handed "
        "over. Processor time is the mean, of both processes.",
        f"Load of the machine when it began: {load:.1f}, of {os.cpu_count()} cores.",
    ]
    return table


def _files(folder: Path) -> dict[str, Path]:
    files = {
        syntax: dicom_pictures.radiograph(folder / f"{syntax}.dcm", syntax)
        for syntax in dicom_pictures.SYNTAXES
    }
    if shutil.which("dcmcjpeg"):
        for syntax, option in DCMCJPEG.items():
            path = folder / f"{option}.dcm"
            command = ["dcmcjpeg", option, str(files["raw"]), str(path)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                files[syntax] = path
    return files


def _measure(path: Path) -> tuple[list[float], list[float]]:
    """MB/s at best, mean seconds of processor time: of the plug-in alone, in the child, as a Clip."""
    import hashlib

    import pydicom

    import ehr
    from ehr.dicom import pixels

    data = pydicom.dcmread(path)
    size = data.Rows * data.Columns * data.BitsAllocated / 8 / 1e6

    def alone() -> None:
        for values, _ in pixels.decode(pydicom.dcmread(path), [0]):
            pixels.hash_values(hashlib.sha256(), values)

    paired = _best([alone, lambda: ehr.value_digest(path)])
    clip = _best([lambda: ehr.read_clip([path], max_side=4096)])
    return [size / best for best, _ in paired + clip], [spent for _, spent in paired]


def _best(calls: Sequence[Callable[[], object]]) -> list[tuple[float, float]]:
    """Of each: the least seconds, and the mean of its processor time."""
    for call in calls:
        call()  # the child is there, and both have their memory
    best, total, rounds = [float("inf")] * len(calls), [0.0] * len(calls), 0
    until = time.perf_counter() + MOST_S
    for _ in range(TIMES):  # in turn, so that whatever else runs here is everybody's
        for place, call in enumerate(calls):
            spent, began = _processor_s(), time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - began)
            total[place] += _processor_s() - spent
        rounds += 1
        if time.perf_counter() > until:
            break
    return [(seconds, spent / rounds) for seconds, spent in zip(best, total, strict=True)]


def _processor_s() -> float:
    """Processor time of this process and of its decoding process with all its threads, in steps of 10 ms."""
    from ehr.dicom import child

    process = child.decoder()._process
    told = Path(f"/proc/{process.pid}/stat") if process is not None else None
    if told is None or not told.exists():
        return time.process_time()
    fields = told.read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
