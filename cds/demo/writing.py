"""Writing the simulated cohort to a folder of FHIR bundles and a folder of DICOM files, on all cores."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path

from cds.demo.pictures import write_echo, write_radiograph
from cds.demo.record import build_bundle
from cds.demo.simulating import simulate


def write_cohort(
    folder: Path, *, seed: int, patients: int, anchor: datetime, progress: Callable[[int, int], None]
) -> int:
    """Write patients 1 to `patients` that are not there yet; returns how many were written.

    folder/fhir/<number>.json comes last, so a patient whose bundle is there is complete.
    """
    for part in ("fhir", "dicom"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(1, patients + 1) if not _bundle_path(folder, number).exists()]
    done = patients - len(missing)
    progress(done, patients)
    if not missing:
        return 0
    # fresh interpreters: our own process may hold database connections, which must not be shared
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1), mp_context=spawn) as pool:
        jobs = [pool.submit(write_patient, folder, seed, number, anchor) for number in missing]
        for job in as_completed(jobs):
            job.result()
            done += 1
            progress(done, patients)
    return len(missing)


def write_patient(folder: Path, seed: int, number: int, anchor: datetime) -> None:
    """One patient's pictures and bundle."""
    patient = simulate(seed=seed, number=number, anchor=anchor)
    if patient.has_image:
        write_radiograph(patient, folder / "dicom" / f"{number:04d}-radiograph.dcm")
    if patient.has_echo:
        write_echo(patient, folder / "dicom" / f"{number:04d}-echo.dcm")
    path = _bundle_path(folder, number)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(build_bundle(patient)))
    half.replace(path)


def _bundle_path(folder: Path, number: int) -> Path:
    return folder / "fhir" / f"{number:04d}.json"
