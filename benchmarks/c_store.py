"""Receiving DICOM: durable instances a second by C-STORE; beside the disk alone and another receiver.

Senders are dcmtk's storescu (pynetdicom where it is not installed, which brings programs of the same names).
The peer is dcmtk's storescp, which syncs nothing and looks into nothing, in a network of its own since it
would listen on every interface.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks import measuring, scratch
from benchmarks.dicom_pictures import write_slices

INSTANCES = 480
SLICES = 300
GOALS = {1: 120.0, 4: 200.0}  # associations → instances a second
QUERYABLE_S = 5.0
QUIET_S = 10.0


def run() -> measuring.Table:
    """Measure."""
    columns = ("what", "associations", "instances/s", "MB/s", "processor ms each", "goal", "met")
    table, load = measuring.Table("Receiving DICOM by C-STORE", columns), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as name:
        folder = Path(name)
        for associations in GOALS:
            _others(table, folder / f"others-{associations}", associations)
            for database, url in _databases().items():
                _receiver(table, folder / f"{database}-{associations}", associations, database, url)
        for database, url in _databases().items():
            seconds = _last_to_queryable(folder / f"ct-{database}", url, announced=True)
            met = "yes" if seconds <= QUERYABLE_S else "**no**"
            what = f"CT of {SLICES} slices, announced: last answer to queryable, {database}"
            table.add(what, 1, f"{seconds:.1f} s", "", "", f"{QUERYABLE_S:g} s", met)
        seconds = _last_to_queryable(folder / "unannounced", "", announced=False)
        what = f"the same, not announced: after {QUIET_S:g} s of quiet, SQLite"
        table.add(what, 1, f"{seconds:.1f} s", "", "", "", "")
    sender = "dcmtk's storescu" if _dcmtk("storescu") else "pynetdicom"
    table.notes += [
        f"{INSTANCES} simulated 512 x 512 slices of 16 bits, 0.5 MB each; sent by {sender} from other "
        "processes on the same two cores, after one to warm up. Set BENCHMARK_DATABASE_URL to measure on "
        "PostgreSQL as well.",
        "Processor time is of the receiver and its decoding process; that of senders and database comes on "
        "top. storescp runs with TCP_NODELAY=1: without, each of its answers waits 40 ms for an "
        "acknowledgement (21 a second). The CT is decoded to one volume in between.",
        f"Load of the machine when it began: {load:.1f}, of two cores.",
    ]
    return table


def _others(table: measuring.Table, folder: Path, associations: int) -> None:
    """The disk alone, dcmtk's receiver, and ours without looking into what comes."""
    folder.mkdir()
    files = write_slices(folder / "files", INSTANCES, seed=associations)
    seconds = _disk(folder / "disk", files[0].read_bytes(), associations)
    table.add("limit: the disk alone, write and fsync", associations, *_speed(files, seconds), "", "", "")
    if (told := _peer(folder, files, associations)) is not None:
        table.add("peer: dcmtk's storescp, nothing synced", associations, *_speed(files, told), "", "", "")
    with _bare(folder / "bare") as (port, receiver):
        before = _processor_s(receiver)
        seconds = send(files, associations, port)
        spent = f"{1000 * (_processor_s(receiver) - before) / len(files):.1f}"
    what = "ours, not looked into: only synced"
    table.add(what, associations, *_speed(files, seconds), spent, "", "")
    shutil.rmtree(folder)


def _receiver(table: measuring.Table, folder: Path, associations: int, database: str, url: str) -> None:
    """`receive_dicom`: until all were answered, and until all have their rows."""
    first, *files = write_slices(folder / "files", INSTANCES + 1, seed=associations)
    with _ours(folder, url) as (port, receiver):
        send([first], 1, port)
        _settle(folder)
        before, began = _processor_s(receiver), time.perf_counter()
        seconds = send(files, associations, port)
        _settle(folder)
        settled = time.perf_counter() - began
        spent = f"{1000 * (_processor_s(receiver) - before) / len(files):.1f}"
    goal = GOALS[associations]
    met = "yes" if len(files) / seconds >= goal else "**no**"
    what = f"**ours: checked and durable when answered**, {database}"
    table.add(what, associations, *_speed(files, seconds), spent, f"{goal:g}", met)
    what = f"ours, until the last row is written, {database}"
    table.add(what, associations, *_speed(files, settled), "", "", "")
    shutil.rmtree(folder / "files")


def _speed(files: list[Path], seconds: float) -> tuple[float, float]:
    """Instances and megabytes a second."""
    return len(files) / seconds, sum(path.stat().st_size for path in files) / 1e6 / seconds


def _processor_s(process: int) -> float:
    """Processor time of a process and of its children so far; 0 where the system does not tell."""
    ticks = 0
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if process in (int(place.parent.name), int(fields[1])):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _dcmtk(name: str) -> str | None:
    """A program of dcmtk; pynetdicom's of the same name are scripts, and another peer."""
    for folder in os.get_exec_path():
        path = Path(folder) / name
        if path.is_file() and os.access(path, os.X_OK) and path.open("rb").read(2) != b"#!":
            return str(path)
    return None


def _disk(folder: Path, content: bytes, threads: int) -> float:
    """Seconds to write as many files, synced with their names, from as many threads."""
    folder.mkdir()

    def keep(number: int) -> None:
        path = folder / f"{number}.dcm"
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(keep, range(INSTANCES)))
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def _settle(folder: Path) -> None:
    """Until no file waits in the inbox for its row."""
    inbox, until = folder / "studies" / ".inbox", time.monotonic() + 120
    while any(inbox.rglob("*.dcm")):
        if time.monotonic() > until:
            raise RuntimeError("files wait for their rows")
        time.sleep(0.02)


@contextmanager
def _ours(folder: Path, url: str, *, quiet_s: float = 3600) -> Iterator[tuple[int, int]]:
    """Port and process of a receiver."""
    environment = _environment(folder, url)
    manage, port = [sys.executable, "manage.py"], scratch.free_port()
    subprocess.run([*manage, "migrate", "-v", "0"], cwd=scratch.ROOT, env=environment, check=True)
    asked = [*manage, "receive_dicom", "--port", str(port), "--quiet", str(quiet_s)]
    with _process(asked, environment) as started:
        yield port, started.pid


def _databases() -> dict[str, str]:
    """What to measure on: name → DATABASE_URL."""
    url = os.environ.get("BENCHMARK_DATABASE_URL", "")
    return {"SQLite": ""} | ({"PostgreSQL": url} if url else {})


def _environment(folder: Path, url: str) -> dict[str, str]:
    unset = ("DATABASE_URL", "REDIS_URL", "STUDY_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    if url:
        environment["DATABASE_URL"] = url
    return environment | {"TESSERA_DATA_DIR": str(folder), "LOG_LEVEL": "WARNING"}


def _last_to_queryable(folder: Path, url: str, *, announced: bool) -> float:
    """Seconds from the last slice's answer until the volume can be asked for."""
    files = write_slices(folder / "files", SLICES, seed=9)
    with _ours(folder, url, quiet_s=3600 if announced else QUIET_S) as (port, _):
        tool = [sys.executable, "-m", "benchmarks.c_store"]
        environment = _environment(folder, url)
        if announced:
            subprocess.run([*tool, "announce", str(files[0])], cwd=scratch.ROOT, env=environment, check=True)
        with _process([*tool, "wait", str(files[0])], environment) as waiting:
            send(files, 1, port)
            began = time.perf_counter()
            assert waiting.stdout is not None
            if "queryable" not in waiting.stdout.readline():
                raise RuntimeError("the CT did not become queryable")
            return time.perf_counter() - began


def _study(path: str) -> str:
    import pydicom

    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def _announce(path: str) -> None:
    """What C-FIND or FHIR would have told before."""
    import pydicom
    from django.utils import timezone

    import ehr
    from cds.audit import recording
    from cds.patients import importing
    from cds.studies import receiving

    header = pydicom.dcmread(path, stop_before_pixels=True)
    now = timezone.now()
    record = ehr.ImagingStudyRecord(
        resource_type="ImagingStudy",
        resource_id="ct",
        available_at=None,
        study_uid=str(header.StudyInstanceUID),
        expected=((str(header.SeriesInstanceUID), SLICES),),
    )
    source = importing.get_source("dicom", now=now)
    receiving.announce(record, source=source, by=recording.system("benchmark"), now=now)


def _wait(path: str) -> None:
    """Says so when the CT's frames can be read."""
    from cds.studies.models import Series

    uid, until = _study(path), time.monotonic() + 120
    print("waits", flush=True)
    while time.monotonic() < until:
        if Series.objects.filter(study__study_uid=uid, study__state__in=["stored", "encoded"]).exists():
            print("queryable", flush=True)
            return
        time.sleep(0.05)


@contextmanager
def _bare(folder: Path) -> Iterator[tuple[int, int]]:
    port = scratch.free_port()
    command = [sys.executable, "-m", "benchmarks.c_store", "bare", str(port), str(folder)]
    with _process(command, dict(os.environ)) as started:
        yield port, started.pid


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(command, cwd=scratch.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        started.stdout.readline()  # "… listens"
        yield started
    finally:
        started.terminate()
        started.wait(60)


def _peer(folder: Path, files: list[Path], associations: int) -> float | None:
    """Seconds that dcmtk's storescp takes; None where it cannot be started apart from other networks."""
    if _dcmtk("storescp") is None or os.geteuid() != 0:
        return None
    kept = folder / f"peer-{associations}"
    kept.mkdir()
    inside = f"{sys.executable} -m benchmarks.c_store peer {kept} {associations} {files[0].parent}"
    script = f"ip link set lo up && exec {inside}"
    command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    ended = subprocess.run(command, cwd=scratch.ROOT, capture_output=True, text=True, check=False)
    shutil.rmtree(kept)
    return float(ended.stdout) if ended.returncode == 0 else None


def _serve_peer(kept: str, associations: str, files: str) -> None:
    """With TCP_NODELAY: without, its answers wait for acknowledgements and each costs 40 ms."""
    command = [str(_dcmtk("storescp")), "--fork", "-aet", "TESSERA", "-od", kept, "11112"]
    server = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"})
    time.sleep(0.5)
    print(send(sorted(Path(files).glob("*.dcm")), int(associations), 11112))
    server.kill()


def send(files: list[Path], associations: int, port: int) -> float:
    """Seconds until every file was answered with success."""
    began = time.perf_counter()
    senders, storescu = [], _dcmtk("storescu")
    for place in range(associations):
        mine = [str(path) for path in files[place::associations]]
        ours = [sys.executable, "-m", "benchmarks.c_store", "send", str(port), *mine]
        theirs = [storescu or "", "-aec", "TESSERA", "127.0.0.1", str(port), *mine]
        senders.append(subprocess.Popen(theirs if storescu else ours, cwd=scratch.ROOT))
    codes = [sender.wait(300) for sender in senders]
    seconds = time.perf_counter() - began
    if any(codes):
        raise RuntimeError("not every file was answered with success")
    return seconds


def _send(port: str, *files: str) -> None:
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
    from pynetdicom import AE, _config

    _config.STORE_SEND_CHUNKED_DATASET = True
    node = AE("CT1")
    node.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    peer = node.associate("127.0.0.1", int(port), ae_title="TESSERA")
    for path in files:
        if peer.send_c_store(path).Status != 0:
            raise SystemExit(1)
    peer.release()


def _serve_bare(port: str, folder: str) -> None:
    """What has to be done anyway: the file, in its place and synced."""
    import ehr

    kept = Path(folder) / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    names = os.open(kept, os.O_RDONLY)

    def take(path: Path, calling: str) -> ehr.Taken:
        place = kept / f"{path.stem}.kept"
        os.rename(path, place)
        with place.open("rb") as file:
            os.fsync(file.fileno())
        os.fsync(names)
        return ehr.Taken()

    with ehr.StorageListener("TESSERA", int(port), take=take, into=kept):
        print("listens", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    what = sys.argv[1]
    if what in ("announce", "wait"):
        import django

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
        django.setup()
    parts: dict[str, Callable[..., None]] = {
        "announce": _announce, "wait": _wait, "bare": _serve_bare, "peer": _serve_peer, "send": _send,
    }  # fmt: skip
    parts[what](*sys.argv[2:])
