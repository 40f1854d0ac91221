"""Where the time of an ingest goes, what memory it takes, and how long features take afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measuring

FEATURES_OF = 100  # patients
EVERY_S = 0.1
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class PeakMemory:
    """The most that this process and those below it held together, in MB, looked at ten times a second."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, sum(_resident(pid) for pid in _family(os.getpid())))
            if self._ended.wait(EVERY_S):
                return


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = task.read_text().split()
        except OSError:  # it has ended
            continue
        for child in below:
            yield from _family(int(child))


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    except (OSError, IndexError):
        return 0.0


class _Stopwatch:
    """Seconds by stage: on the clock, of this process's own work, of the server's; the nested counts inside.

    server  seconds that the database's process for our connection has worked so far
    """

    def __init__(self, server: Callable[[], float]) -> None:
        self.spent: dict[str, list[float]] = {}
        self._open: list[list[float]] = []
        self._clocks = (time.perf_counter, time.process_time, server)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began, inner = [clock() for clock in self._clocks], [0.0] * len(self._clocks)
        self._open.append(inner)
        try:
            yield
        finally:
            self._open.pop()
            spent = self.spent.setdefault(name, [0.0] * len(self._clocks))
            for place, clock in enumerate(self._clocks):
                took = clock() - began[place]
                spent[place] += took - inner[place]
                if self._open:
                    self._open[-1][place] += took

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Time every call of `owner.attribute` as the stage `name`."""
        call: Callable[..., Any] = getattr(owner, attribute)

        def timed(*given: Any, **named: Any) -> Any:
            with self.stage(name):
                return call(*given, **named)

        setattr(owner, attribute, timed)


Stage = tuple[str, float, float, float]


def measure(folder: Path, known: dict[str, Any]) -> list[Stage]:
    """(stage, seconds a resource on the clock, of our work, of the server's) of taking `folder` twice.

    In one process, on a PostgreSQL on this machine.
    """
    from django.db import connection

    import ehr
    from cds import folders
    from cds.audit import recording
    from cds.patients import bulk_writing, importing_new, remembering

    connection.ensure_connection()
    pid, ticks = connection.connection.info.backend_pid, os.sysconf("SC_CLK_TCK")

    def server() -> float:
        spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, spent)) / ticks

    watch = _Stopwatch(server)
    watch.around(ehr, "sort_folder", "sort by patient on disk")
    watch.around(remembering, "find_known", "look up what was read before")
    watch.around(folders._Read, "__init__", "parse, check, convert units and codes")
    watch.around(importing_new, "_draft", "make rows and their digests")
    watch.around(bulk_writing, "insert_facts", "write the facts (COPY)")
    watch.around(recording, "record_many", "audit")
    watch.around(importing_new, "_write", "write patients, jobs and digests")
    watch.around(importing_new, "import_new", "commit, with the checks of foreign keys")
    found: list[Stage] = []
    resources = sum(1 for path in folder.glob("*.ndjson") for _ in path.open("rb"))
    for when in ("first", "again"):
        watch.spent = {}
        with watch.stage("all else"):
            folders.take_folder(folder, now=datetime.now(UTC), **known)
        for name, (clock, own, served) in watch.spent.items():
            found.append((f"{when}: {name}", clock / resources, own / resources, served / resources))
    return found


def table(stages: list[Stage]) -> measuring.Table:
    """The stages with their share of the first time's, or the repetition's, total."""
    columns = ("stage", "µs a resource", "our work", "the server's work", "share")
    made = measuring.Table("Ingest of FHIR: where the time goes", columns)
    for when in ("first", "again"):
        mine = [stage for stage in stages if stage[0].startswith(when)]
        total = sum(stage[1] for stage in mine) or 1.0
        for name, *times in sorted(mine, key=lambda stage: -stage[1]):
            made.add(name, *(f"{one * 1e6:.1f}" for one in times), f"{times[0] / total:.0%}")
        if mine:
            whole = (sum(stage[place] for stage in mine) * 1e6 for place in (1, 2, 3))
            made.add(f"{when}: all", *(f"{one:.1f}" for one in whole), "")
    made.notes.append(
        "PostgreSQL, one process; work is processor time (the server's in steps of 10 ms in all), "
        "the rest waiting."
    )
    return made


def _features() -> float:
    """Seconds that `build_inputs` takes for one patient, after a first one; mean of `FEATURES_OF`."""
    from benchmarks import scratch

    scratch.set_up()
    from cds.features.building import build_inputs
    from cds.patients.models import Patient

    patients = list(Patient.objects.select_related("source").order_by("pk")[: FEATURES_OF + 1])
    build_inputs(patients[0], as_of=datetime.now(UTC), encoders={})
    began = time.perf_counter()
    for patient in patients[1:]:
        build_inputs(patient, as_of=datetime.now(UTC), encoders={})
    return (time.perf_counter() - began) / max(1, len(patients) - 1)


if __name__ == "__main__":
    print(_features())
