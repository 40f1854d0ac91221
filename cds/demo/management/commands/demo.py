"""`manage.py demo`: a whole clinic with simulated patients, on this machine, in minutes."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from redis import RedisError
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cds.demo import accounts, environment, outlining, processes, running, writing
from cds.errors import ClinicError
from cds.jobs import Queue, beats
from cds.registry.models import ActiveModel
from cds.risk.models import RiskAssessment


class Command(BaseCommand):
    help = (
        "Simulate a cohort, take it in, train and promote a first model, score everyone, and serve it "
        "on 127.0.0.1 until Ctrl-C. Repeating it changes nothing that is there."
    )
    requires_system_checks = []  # the web server checks itself

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        environment.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        data_dir, port = settings.DATA_DIR, int(os.environ.get("TESSERA_DEMO_WEB_PORT", "0"))
        self._check(options, port)
        console = Console(stderr=False)
        console.print(f"[bold]Tessera demo[/bold] · simulated patients only · data in {data_dir}")
        now = datetime.now(UTC)
        seed, anchor = _settle_cohort(options["seed"], now)
        _stop_on_signals()
        supervisor = processes.Supervisor(
            logs=data_dir / "logs",
            environment=environment.child_environment(os.environ),
            on_restart=lambda name: console.print(
                f"[yellow]{name} had stopped and was started again[/yellow]"
            ),
        )
        started = time.monotonic()
        try:
            with _Steps(console) as steps:
                logins = _run_steps(
                    steps, supervisor, port=port, seed=seed, anchor=anchor, patients=options["patients"]
                )
            _print_result(console, logins, seconds=time.monotonic() - started)
            if not options["once"]:
                console.print("Press Ctrl-C to stop everything.")
                while True:
                    time.sleep(1)
        except KeyboardInterrupt:
            console.print("Stopping …")
        except (processes.ProcessError, running.DemoError, ClinicError) as error:
            raise CommandError(str(error)) from error
        finally:
            supervisor.stop()
            connections.close_all()

    def _check(self, options: dict[str, Any], port: int) -> None:
        if settings.PRODUCTION:
            raise CommandError(
                "The demo never runs with TESSERA_ENV=production: it has demo logins and open hooks."
            )
        if not port:
            raise CommandError(
                "Start the demo as `manage.py demo`, so that its data directory is known in time."
            )
        if options["patients"] < 1:
            raise CommandError("--patients must be at least 1")
        if not environment.is_free(port):
            raise CommandError(
                f"Port {port} on 127.0.0.1 is in use by another program. "
                f"Stop that program, or choose another port: manage.py demo --port {port + 1}"
            )


def _settle_cohort(seed: int | None, now: datetime) -> tuple[int, datetime]:
    """The cohort of this data directory: its seed and the "now" of its simulated hospital."""
    kept = environment.read_state(settings.DATA_DIR).get("seed")
    if kept is not None and seed is not None and seed != kept:
        raise CommandError(
            f"{settings.DATA_DIR} holds the cohort of seed {kept}. For seed {seed} name another --data-dir"
        )
    chosen = int(kept if kept is not None else seed if seed is not None else environment.DEFAULT_SEED)
    environment.write_state(settings.DATA_DIR, seed=chosen)
    return chosen, environment.first_start(settings.DATA_DIR, now)


def _run_steps(
    steps: _Steps, supervisor: processes.Supervisor, *, port: int, seed: int, anchor: datetime, patients: int
) -> list[accounts.Login]:
    """The whole demo in one screen."""
    log = settings.DATA_DIR / "logs" / "measuring.log"
    with outlining.taught(settings.SEGMENTER_STORE, log) as is_taught:
        return _set_up(steps, supervisor, is_taught, port=port, seed=seed, anchor=anchor, patients=patients)


def _set_up(
    steps: _Steps,
    supervisor: processes.Supervisor,
    is_taught: Callable[[], bool],
    *,
    port: int,
    seed: int,
    anchor: datetime,
    patients: int,
) -> list[accounts.Login]:
    data_dir, folder = settings.DATA_DIR, settings.DATA_DIR / "demo"
    with steps.step("Preparing the database"):
        call_command("migrate", verbosity=0, interactive=False)
        logins = accounts.settle_accounts(data_dir)
        source = running.get_source(datetime.now(UTC))
    for program in _programs(port):
        supervisor.start(program)
    with steps.step("Simulating patients") as report:
        writing.write_cohort(
            folder,
            seed=seed,
            patients=patients,
            anchor=anchor,
            progress=lambda done, of: report(done, of, "patients"),
        )
    with steps.step("Starting broker, workers and web") as report:
        supervisor.wait_until_ready(progress=lambda done, of: report(done, of, "processes"))
    with steps.step("Taking in FHIR records") as report:
        running.ingest(folder, "fhir", source=source, report=report)
        accounts.join_units(source)
    with steps.step("Teaching the measuring networks"):
        if not is_taught():
            raise running.DemoError("the measuring networks were not taught; see logs/measuring.log")
    with steps.step("Taking in DICOM pictures") as report:
        running.ingest(folder, "dicom", source=source, report=report)
    with steps.step("Encoding pictures and notes") as report:
        running.wait_for_encoding(source, report=report)
    with steps.step("Training a first model") as report:
        version = running.train(source, report=report)
    if version is not None:
        with steps.step("Promoting it (demo action)"):
            running.promote(version)
    with steps.step("Scoring everyone") as report:
        running.score_everyone(source, report=report)
    return logins


def _programs(port: int) -> list[processes.Program]:
    """What runs, in the order it is started."""
    broker_port = os.environ.get("TESSERA_DEMO_BROKER_PORT")
    programs = []
    if broker_port:  # else REDIS_URL names one that runs already
        programs.append(processes.broker(port=int(broker_port), folder=settings.DATA_DIR / "broker"))
    programs += [processes.worker(queue.value, is_ready=_Alive(queue)) for queue in Queue]
    return [*programs, processes.beat(data_dir=settings.DATA_DIR), processes.web(port=port)]


class _Alive:
    """Whether a worker says that it works on a queue; also while a long task keeps it from answering."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __call__(self) -> bool:
        try:
            return beats.alive(beats.connect())[self._queue]
        except (OSError, RedisError):
            return False  # the broker itself is not up yet


class _Steps:
    """One bar per step; without a terminal, one line per step when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description:34}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[what]}[/dim]"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> _Steps:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[running.Report]:
        """Show a step while it lasts; the report moves its bar."""
        began = time.monotonic()
        task: TaskID = self._bars.add_task(name, total=None, what="")

        def report(done: float, of: float, what: str) -> None:
            self._bars.update(task, completed=done, total=of or None, what=what)

        yield report
        self._bars.update(task, completed=1, total=1, what="")
        if not self._console.is_terminal:
            self._console.print(f"{name}: {time.monotonic() - began:.1f} s", highlight=False)


def _stop_on_signals() -> None:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def _print_result(console: Console, logins: list[accounts.Login], *, seconds: float) -> None:
    """Where to go, with whom, and what was made."""
    table = Table("role", "user name", "password", box=None, pad_edge=False)
    for login in logins:
        table.add_row(login.role.value, login.username, login.password)
    lines = [f"[bold]{settings.PUBLIC_URL}/[/bold]   ({seconds:.0f} s)"]
    for active in ActiveModel.objects.select_related("version").order_by("outcome"):
        said = active.version.report.get("outcomes", {}).get(active.outcome, {})
        area = said.get("auroc") or {}
        quality = f"AUROC {area['value']:.2f} ({area['low']:.2f} to {area['high']:.2f})" if area else ""
        cases = f"on {said.get('n', '?')} held-out cases"
        lines.append(f"{active.outcome}: {active.version.label}, {quality} {cases}")
    scores = RiskAssessment.objects.filter(status="final").count()
    lines.append(f"{scores} final scores; all patients are simulated")
    if settings.HOOKS_OPEN:
        lines.append(f"CDS Hooks, open to this machine only: {settings.PUBLIC_URL}/cds-services")
    console.print(Panel("\n".join(lines), title="Tessera is running", expand=False))
    console.print(table)
