"""A row for every run that takes something in, so that people see how far it is and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.utils import timezone

from cds.patients import sources
from cds.patients.models import RunKind, RunState
from cds.taking import Progress, Tally, silent

KEPT = ("new", "duplicate")  # outcomes of a DICOM file that we hold
EVERY_S = 2.0  # a row is written, and screens are told, no more often
Take = Callable[..., Tally]  # (where, *, source, by, progress, …); recorded, it takes `how` as well


def recorded(kind: RunKind, *, with_how: bool = False) -> Callable[[Take], Take]:
    """Note the run of an ingesting function: (where, *, source, by, progress, …) -> Tally.

    A paused source is refused (Conflict) before anything is fetched. `how` (see `cds.reaching`) is kept with
    the run, and handed on to a function that takes it: `with_how`.
    """

    def decorate(take: Take) -> Take:
        @wraps(take)
        def run_it(where: object, **known: Any) -> Tally:
            source, by = known["source"], known["by"]
            tell: Progress = known.get("progress") or silent
            run = sources.begin(
                source,
                kind=_kind(kind, str(where)),
                where=str(where),
                how=known.get("how") if with_how else known.pop("how", None),
                by=by,
                now=timezone.now(),
            )
            beaten = time.monotonic()

            def progress(what: str, done: int, total: int | None) -> None:
                nonlocal beaten
                tell(what, done, total)
                if time.monotonic() - beaten >= EVERY_S:
                    beaten = time.monotonic()
                    sources.beat(run, stage=what, done=done, total=total, now=timezone.now())

            known["progress"] = progress
            try:
                tally = take(where, **known)
            except Exception as error:  # whatever it was: its run is noted as failed, and it goes on up
                said = _in_words(error)
                sources.end(run, RunState.FAILED, by=by, now=timezone.now(), counts={}, error=said)
                raise
            state = RunState.BROKEN_OFF if tally.interrupted else RunState.DONE
            sources.end(run, state, by=by, now=timezone.now(), counts=_counts(tally), error=tally.interrupted)
            return tally

        return run_it

    return decorate


def _kind(kind: RunKind, where: str) -> RunKind:
    is_folder = kind == RunKind.SERVER and "://" not in where
    return RunKind.FOLDER if is_folder else kind


def _in_words(error: Exception) -> str:
    """Our own errors are written for people; of others only the kind is told: they may quote a patient."""
    ours = type(error).__module__.split(".")[0] in ("cds", "ehr")
    return str(error) if ours else f"{type(error).__name__}: see the log of the run"


def _counts(tally: Tally) -> dict[str, int]:
    taken = sum(sum(states.values()) - states["set_aside"] for states in tally.resources.values())
    files = sum(count for outcome, count in tally.instances.items() if outcome in KEPT)
    return {"patients": tally.patients, "taken": taken + files, "set_aside": tally.all_refused}
