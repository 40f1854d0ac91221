"""Receiving DICOM: durable instances a second by C-STORE; beside a node that only writes and syncs."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import measuring, scratch

INSTANCES = 240
GOALS = {1: 120.0, 4: 200.0}  # associations → instances a second


def run() -> measuring.Table:
    """Measure."""
    table = measuring.Table(
        "Receiving DICOM by C-STORE", ("what", "associations", "instances/s", "MB/s", "goal", "met")
    )
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        folder = Path(name)
        for associations, goal in GOALS.items():
            for what, serve in (("limit: write and fsync only", _bare), ("ours: checked, in its row", _ours)):
                place = folder / f"{what[:4]}-{associations}"
                files = _write(place / "files", seed=associations)
                with serve(place) as port:
                    seconds = _send(files, associations, port)
                speed = len(files) / seconds
                size = sum(path.stat().st_size for path in files) / 1e6
                told = (f"{goal:g}", "yes" if speed >= goal else "**no**") if serve is _ours else ("", "")
                table.add(what, associations, speed, size / seconds, *told)
    table.notes.append(
        f"{INSTANCES} simulated 512 x 512 slices of 16 bits, 0.5 MB each; sent by pynetdicom from other "
        "processes on the same two cores; SQLite."
    )
    return table


@contextmanager
def _ours(folder: Path) -> Iterator[int]:
    unset = ("DATABASE_URL", "REDIS_URL", "STUDY_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"TESSERA_DATA_DIR": str(folder), "LOG_LEVEL": "WARNING"}
    manage, port = [sys.executable, "manage.py"], scratch.free_port()
    subprocess.run([*manage, "migrate", "-v", "0"], cwd=scratch.ROOT, env=environment, check=True)
    with _process([*manage, "receive_dicom", "--port", str(port), "--quiet", "3600"], environment):
        yield port


@contextmanager
def _bare(folder: Path) -> Iterator[int]:
    port = scratch.free_port()
    command = [sys.executable, "-m", "benchmarks.c_store", str(port), str(folder)]
    with _process(command, dict(os.environ)):
        yield port


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    started = subprocess.Popen(command, cwd=scratch.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        started.stdout.readline()  # "… listens"
        yield
    finally:
        started.terminate()
        started.wait(30)


def _write(folder: Path, *, seed: int) -> list[Path]:
    """Slices with other UIDs and other pixels each."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    study, series = generate_uid(), generate_uid()
    paths = []
    for number in range(INSTANCES):
        slice_ = Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.PatientID, slice_.Modality, slice_.BodyPartExamined = "SIM-1", "CT", "CHEST"
        slice_.StudyDate, slice_.StudyTime, slice_.InstanceNumber = "20260301", "110000", number
        slice_.Rows = slice_.Columns = 512
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.PixelData = rng.integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:04}.dcm"
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _send(files: list[Path], associations: int, port: int) -> float:
    """Seconds until every file was answered with success."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(associations + 1)
    senders = [
        spawn.Process(target=_sender, args=(files[place::associations], port, ready))
        for place in range(associations)
    ]
    for sender in senders:
        sender.start()
    ready.wait(60)
    began = time.perf_counter()
    for sender in senders:
        sender.join(120)
    seconds = time.perf_counter() - began
    if any(sender.exitcode != 0 for sender in senders):
        raise RuntimeError("not every file was answered with success")
    return seconds


def _sender(files: list[Path], port: int, ready: object) -> None:
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
    from pynetdicom import AE, _config

    _config.STORE_SEND_CHUNKED_DATASET = True
    node = AE("CT1")
    node.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    peer = node.associate("127.0.0.1", port, ae_title="TESSERA")
    wait: Callable[[int], int] = ready.wait  # type: ignore[attr-defined]
    wait(60)
    for path in files:
        if peer.send_c_store(path).Status != 0:
            raise SystemExit(1)
    peer.release()


def _serve_bare(port: int, folder: Path) -> None:
    """What has to be done anyway: the file, in its place and synced."""
    import ehr

    (folder / "kept").mkdir(parents=True, exist_ok=True)

    def take(path: Path, calling: str) -> ehr.Taken:
        kept = folder / "kept" / path.name
        with kept.open("wb") as file:
            file.write(path.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        return ehr.Taken()

    with ehr.StorageListener("TESSERA", port, take=take):
        print("listens", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    _serve_bare(int(sys.argv[1]), Path(sys.argv[2]))
