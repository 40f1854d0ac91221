"""`manage.py retrain --outcome icu-admission --wait`: start a retraining run, and watch it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from django.utils import timezone
from redis import RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cds.audit import recording
from cds.errors import ClinicError
from cds.jobs import Queue, beats, leases
from cds.jobs.models import WorkState
from cds.registry import cohorts, runs
from cds.registry.models import TrainingRun

NOBODY_AFTER_S = 10.0  # a worker takes some seconds to start
COLUMNS = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
NO_WORKER = (
    "No worker answers on the train queue. The run stays queued. Start one with\n"
    "    celery -A cds worker --pool solo -Q train\n"
    "or train in this process with --here."
)


class Command(BaseCommand):
    help = (
        "Retrain on the patients of the record: freezes a cohort, trains, evaluates, registers a candidate."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--outcome", action="append", required=True, help="such as icu-admission; repeatable"
        )
        parser.add_argument(
            "--source", action="append", default=[], help="only patients of this source (slug)"
        )
        parser.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting"
        )
        parser.add_argument("--note", default="", help="a remark shown beside the run")
        parser.add_argument(
            "--wait", action="store_true", help="watch until it has ended; exit 1 if it failed"
        )
        parser.add_argument("--here", action="store_true", help="train in this process, without a worker")

    def handle(self, *args: Any, **options: Any) -> None:
        console = Console()
        now = timezone.now()
        try:
            config = dict(_pair(given) for given in options["set"])
            counted = cohorts.preview(outcomes=options["outcome"], sources=options["source"], now=now)
            console.print(_table(counted))
            if counted.mixture:
                console.print(f"[yellow]{counted.mixture}[/yellow]")
            run = runs.start(
                outcomes=options["outcome"],
                sources=options["source"],
                config=config,
                note=options["note"],
                by=recording.system("command"),
                user=None,
                now=now,
            )
        except ClinicError as fault:
            raise CommandError(str(fault)) from fault
        console.print(f"Run {run.pk} is queued.")
        if options["here"]:
            _train_here(run, console)
        elif not options["wait"]:
            return
        else:
            watch(run, console)
        _report(run, console)


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals:
        raise CommandError(f"--set takes FIELD=VALUE, not {given!r}")
    return name.strip(), value.strip()


def _train_here(run: TrainingRun, console: Console) -> None:
    """Train in this process, while a thread draws the progress that is stored anyway."""
    from cds.registry import training  # torch

    with Progress(*COLUMNS, console=console) as bar, ThreadPoolExecutor(1) as pool:
        task = bar.add_task("starting", total=1.0)
        work = pool.submit(_execute, training.execute, run.pk)
        while not work.done():
            run.refresh_from_db(fields=["step", "fraction"])
            bar.update(task, completed=run.fraction, description=run.step)
            wait([work], timeout=0.5)
    work.result()


def _execute(execute: Callable[[UUID], None], run_id: UUID) -> None:
    try:
        execute(run_id)
    finally:
        connection.close()


def watch(run: TrainingRun, console: Console) -> None:
    """Draw the progress stored by the worker until the run has ended, or nobody takes it."""
    started = time.monotonic()
    with Progress(*COLUMNS, console=console) as bar:
        task = bar.add_task("waiting for a worker", total=1.0)
        while True:
            run.refresh_from_db()
            bar.update(task, completed=run.fraction, description=run.step or run.work_state)
            if run.work_state not in (WorkState.QUEUED, WorkState.RUNNING):
                return
            leases.sweep(timezone.now())  # nobody else may be sweeping; twice is harmless
            waited = time.monotonic() - started
            if run.work_state == WorkState.QUEUED and waited > NOBODY_AFTER_S and not _is_served():
                raise CommandError(NO_WORKER)
            time.sleep(0.5)


def _is_served() -> bool:
    """Whether a worker beats for the train queue."""
    try:
        return beats.alive(beats.connect())[Queue.TRAIN]
    except RedisError:
        return False


def _report(run: TrainingRun, console: Console) -> None:
    run.refresh_from_db()
    if run.work_state != WorkState.DONE:
        raise CommandError(f"the run has {run.work_state}: {run.failure or run.step}")
    version = run.version
    table = Table(title=f"{version.label}: candidate {version.pk}")
    for heading in ("outcome", "held-out n", "events", "AUROC (95 %)", "Brier"):
        table.add_column(heading)
    for outcome, said in version.report.get("outcomes", {}).items():
        table.add_row(
            outcome,
            str(said.get("n")),
            str(said.get("events")),
            _interval(said.get("auroc")),
            _interval(said.get("brier")),
        )
    console.print(table)
    console.print(
        "Two people make it active: manage.py promote "
        f"{version.pk} --requested-by … --approved-by … --reason …"
    )


def _interval(said: dict[str, Any] | None) -> str:
    if not said or said.get("value") is None:
        return "not known"
    if said.get("low") is None:
        return f"{said['value']:.3f}"
    return f"{said['value']:.3f} ({said['low']:.3f} to {said['high']:.3f})"


def _table(counted: cohorts.Preview) -> Table:
    table = Table(title=f"{counted.patients} patients, {counted.moments} moments")
    for heading in ("outcome", "members", "events", "train", "tuning", "held-out", "left out"):
        table.add_column(heading)
    for counts in counted.outcomes:
        splits = (f"{held['events']}/{held['n']}" for held in counts.by_split.values())
        left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.excluded.items()))
        if counts.lost:
            left_out = f"{left_out or 'none'}; {counts.lost} learned from until lost from sight"
        table.add_row(counts.outcome, str(counts.members), str(counts.events), *splits, left_out or "none")
    return table
