"""What both measurements of ours need: a registered client, a service to call, a stored score, memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from joserfc.jwk import ECKey

from benchmarks import scratch
from benchmarks.hooks import bodies

PATIENCE_S = 120


def register() -> ECKey:
    """A client of its own with a fresh key, which signs the calls."""
    from django.utils import timezone

    from cds.audit import recording
    from cds.hooks import registering
    from cds.hooks.models import HookClient
    from cds.patients import importing

    key, now = ECKey.generate_key("P-384", parameters={"kid": bodies.KID}), timezone.now()
    jwks = {"keys": [key.as_dict(private=False)]}
    if HookClient.objects.filter(issuer=bodies.ISSUER).update(jwks=jwks, is_active=True):
        return key  # of an earlier measurement in the same clinic
    registering.register(
        "Benchmark",
        issuer=bodies.ISSUER,
        jwks=jwks,
        source=importing.get_source("benchmark", simulated=True, now=now),
        by=recording.system("benchmark"),
        now=now,
    )
    return key


def service() -> str:
    """The id of a patient-view service."""
    from cds.hooks import offering

    return next(one.id for one in offering.list_services() if one.hook == "patient-view")


def patients(clinic: scratch.Clinic, key: ECKey, url: str) -> list[bodies.Sent]:
    """Patients of whom the model gives a number once it has read their whole record."""
    found = []
    for one in bodies.candidates(clinic.folder):
        if settle(key, url, [one.large()]):
            found.append(one)
        if len(found) == bodies.PATIENTS:
            return found
    raise RuntimeError(f"only {len(found)} of {bodies.CANDIDATES} patients get a score from this model")


def settle(key: ECKey, url: str, sent: Sequence[bytes]) -> bool:
    """Call until every body is answered by a stored, fresh score; False when one never will be."""
    until = time.monotonic() + PATIENCE_S
    with httpx.Client(timeout=10) as http:
        for body in sent:
            while "%" not in (said := _summary(http, key, url, body)) or said.startswith("Stale"):
                if "not scored" in said:
                    return False
                if time.monotonic() > until:
                    raise RuntimeError(f"no score within {PATIENCE_S} s: {said}")
                time.sleep(0.05)
    return True


def _summary(http: httpx.Client, key: ECKey, url: str, body: bytes) -> str:
    headers = {"Authorization": f"Bearer {bodies.token(key, url)}", "Content-Type": "application/json"}
    answer = http.post(url, content=body, headers=headers)
    said: Any = answer.json()
    return str(said["cards"][0]["summary"]) if answer.status_code == 200 else f"{answer.status_code} {said}"


def processor_ms(clinic: scratch.Clinic) -> dict[str, float]:
    """Processor time used so far by the web processes, the worker, Redis and PostgreSQL's connections."""
    ticks = dict.fromkeys(("web", "worker", "Redis", "PostgreSQL"), 0)
    database = urlsplit(os.environ["DATABASE_URL"])
    backend = f"postgres: {database.username} {database.path[1:]} ".encode()
    names = dict.fromkeys(_web(clinic), "web")
    names |= {clinic.pids["worker-interactive"]: "worker", clinic.pids["broker"]: "Redis"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = names.get(int(folder.name), "")
            if not name and (folder / "cmdline").read_bytes().startswith(backend):
                name = "PostgreSQL"
            if name:
                said = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks[name] += int(said[11]) + int(said[12])
        except OSError:
            continue  # it has just ended
    return {name: count * 1000 / os.sysconf("SC_CLK_TCK") for name, count in ticks.items()}


def per_call(before: Mapping[str, float], after: Mapping[str, float], calls: float) -> str:
    """Processor time of one call, in words."""
    spent = {name: (after[name] - before[name]) / calls for name in before}
    return ", ".join(f"{name} {ms:.2g} ms" for name, ms in spent.items() if ms >= 0.01)


def memory(clinic: scratch.Clinic) -> int:
    """Resident MiB of gunicorn and its workers."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _web(clinic))
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def _web(clinic: scratch.Clinic) -> list[int]:
    master = clinic.pids["web"]
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return [master, *map(int, children)]
