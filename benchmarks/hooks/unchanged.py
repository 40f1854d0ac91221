"""The same prefetches again and again, as fast as wrk can: the limit, another service, and ours."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey

from benchmarks import measuring, scratch
from benchmarks.hooks import bodies, calling, load, peers

CONNECTIONS = (1, 8, 32)
GOAL_RATE, GOAL_P95 = 450, 60.0
LIMIT = "limit: bare Django view that parses"
REST_S = 5
GOAL_RUNS = 9  # for the rate of one run of some seconds differs from the next by a tenth
YARDSTICKS = 500
SIGNED_PER_S = 1500  # tokens signed beforehand for each second of a run: more than are used
COLUMNS = ("what", "body", "connections", "calls/s", "p50 ms", "p95 ms", "p99 ms", "worst ms", "goal", "met")
Kinds = Mapping[str, Sequence[bytes]]


def kinds(sent: Sequence[bodies.Sent]) -> Kinds:
    """The bodies by what the table calls them."""
    small, large = [one.small() for one in sent], [one.large() for one in sent]
    return {f"{len(small[0])} B": small, f"{len(large[0]) // 1000} KB": large}


def table() -> measuring.Table:
    """An empty one."""
    return measuring.Table("Hook calls, unchanged prefetch", COLUMNS)


def measure(
    calls: measuring.Table,
    found: Kinds,
    clinic: scratch.Clinic,
    key: ECKey,
    url: str,
    *,
    folder: Path,
    asked: Namespace,
) -> None:
    """The limit, the other service and ours, one after the other for each kind of call.

    Every run begins after a rest: a machine that was just busy may be slower than it was a minute before, and
    no column is to have that to itself. Of ours, every patient has a stored score before the first call.
    """
    others = peers.healthchain(folder, next(iter(found.values()))[0], asked.peer)
    with peers.bare(folder) as limit, nullcontext() if asked.no_peer else others as peer:
        if peer is None and not asked.no_peer:
            calls.notes.append(f"{peers.PEER} could not be installed or started here.")
        held, used, spent, rates, speeds = [], [], "", "", list[float]()
        for kind, sent, connections in _runs(found):
            to_others = ((LIMIT, limit), (f"{peers.PEER}: one static card", peer))
            for what, where in ((what, where) for what, where in to_others if where is not None):
                run = _post(where, sent, [], connections, folder / "others", asked.seconds)
                _row(calls, what, kind, connections, run)
            calling.settle(key, url, sent)
            is_goal = connections == 8 and len(sent[0]) > 1000
            runs = []
            for _ in range(GOAL_RUNS if is_goal else 1):
                tokens = [bodies.token(key, url) for _ in range(asked.seconds * SIGNED_PER_S)]
                speeds.append(_yardstick_ms())
                before = calling.processor_ms(clinic)
                run = _post(url, sent, tokens, connections, folder / "ours", asked.seconds)
                calls_made = run.per_second * asked.seconds
                cost = calling.per_call(before, calling.processor_ms(clinic), calls_made)
                runs.append((run, f"{cost}, wrk {run.cores * asked.seconds * 1000 / calls_made:.2g} ms"))
            runs.sort(key=lambda one: one[0].per_second)
            run, cost = runs[len(runs) // 2]
            if is_goal:
                spent, rates = cost, ", ".join(f"{one.per_second:.0f}" for one, _ in runs)
            _row(calls, "ours: score stored", kind, connections, run, is_goal=is_goal)
            held.append(calling.memory(clinic))
            used.append(run.cores)
    calls.notes += [
        "Ours: ES384 verified, jti used up in Redis, cards kept, audited in its hash chain, PostgreSQL; "
        f"gunicorn, {peers.WORKERS} processes, their log written; {bodies.PATIENTS} simulated patients.",
        f"The row with the goal is the median of {GOAL_RUNS} runs: {rates} calls/s.",
        "This machine's speed meanwhile, by one ES384 signature verified by OpenSSL on an idle core before "
        f"each run of ours: {min(speeds):.2f} to {max(speeds):.2f} ms, median {np.median(speeds):.2f}.",
        f"Processor time of a call in it: {spent}.",
        f"Resident memory of the web processes after each of these runs: {', '.join(map(str, held))} MiB.",
        "Load from wrk on the same cores, tokens signed before; it used "
        f"{min(used):.2f} to {max(used):.2f} of a core beside ours. {REST_S} s of rest before each run.",
    ]


def _yardstick_ms() -> float:
    """A piece of work that is always the same: so that tables of different hours can be compared."""
    key = ec.generate_private_key(ec.SECP384R1())
    how = ec.ECDSA(hashes.SHA384())
    signature, public = key.sign(b"", how), key.public_key()
    began = time.perf_counter()
    for _ in range(YARDSTICKS):
        public.verify(signature, b"", how)
    return (time.perf_counter() - began) / YARDSTICKS * 1000


def _post(
    url: str, sent: Sequence[bytes], tokens: Sequence[str], connections: int, folder: Path, seconds: int
) -> load.Run:
    time.sleep(REST_S)
    return load.post(url, sent, tokens, connections=connections, seconds=seconds, folder=folder)


def _runs(found: Kinds) -> list[tuple[str, Sequence[bytes], int]]:
    return [(kind, sent, connections) for kind, sent in found.items() for connections in CONNECTIONS]


def _row(
    calls: measuring.Table, what: str, kind: str, connections: int, run: load.Run, *, is_goal: bool = False
) -> None:
    goal = f"≥ {GOAL_RATE}/s, p95 ≤ {GOAL_P95:g}" if is_goal else ""
    met = ("yes" if run.per_second >= GOAL_RATE and run.p["95"] <= GOAL_P95 else "**no**") if is_goal else ""
    spread = (run.p["50"], run.p["95"], run.p["99"], run.worst)
    calls.add(what, kind, connections, f"{run.per_second:.0f}", *spread, goal, met)
    print(" | ".join(calls.rows[-1]), flush=True)
    if run.refused or run.errors:
        calls.notes.append(
            f"{what}, {kind}, {connections}: {run.refused} refused, {run.errors} errors. {run.said[:300]}"
        )
