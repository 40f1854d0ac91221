"""Retraining: what a run would be made of, starting it, watching it, stopping it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from cds.errors import Invalid
from cds.jobs.models import WorkState
from cds.patients import access
from cds.patients.models import Source
from cds.registry import cohorts, fairness, outcomes, queries, runs
from cds.registry.models import TrainingRun
from web import charts, words
from web.people import actor_of, user_of

# besides modalities; the rest is set from the command line
OFTEN = ("fusion", "finetune", "augment", "epochs")
SELDOM = ("seed", "accumulate", "dp_noise", "dp_clip", "dp_delta")  # folded away, unless one is set
OFFERED = (*OFTEN, *SELDOM)


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a run that learned something. points: (epoch, training loss, tuning loss)."""

    name: str
    points: tuple[tuple[float, float | None, float | None], ...]

    @property
    def has_tuning(self) -> bool:
        return any(tuning is not None for _, _, tuning in self.points)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it is shown. `left` is a guess from the time used so far."""

    run: TrainingRun
    percent: int
    text: str
    is_open: bool
    curve: charts.Chart | None  # of the newest step that learns
    steps: tuple[Step, ...]
    config: tuple[tuple[str, str], ...]

    @property
    def has_tuning(self) -> bool:
        return bool(self.steps) and self.steps[-1].has_tuning


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def new(request: HttpRequest) -> HttpResponse:
    """Choose; look at the counts ("Check"); start. The counts change nothing."""
    access.check_start_runs(request.user)
    asked = request.POST if request.method == "POST" else request.GET
    form: dict[str, Any] = {
        "outcomes": asked.getlist("outcomes"),
        "sources": asked.getlist("sources"),
        "modalities": asked.getlist("modalities"),
        "note": asked.get("note", "")[:300],
        **{name: asked.get(name, "").strip() for name in OFFERED},
    }
    error, preview, now = "", None, timezone.now()
    try:
        config = _config(form)
        if request.method == "POST":
            run = runs.start(
                outcomes=form["outcomes"],
                sources=form["sources"],
                config=config,
                note=form["note"],
                by=actor_of(request),
                user=user_of(request),
                now=now,
            )
            return redirect("run", run_id=run.pk)
        if form["outcomes"]:
            preview = cohorts.preview(
                outcomes=form["outcomes"], sources=form["sources"], now=now, seed=int(config.get("seed", 0))
            )
        elif "check" in asked:
            error = "Choose at least one outcome."
    except Invalid as fault:
        error = str(fault)
    return render(
        request,
        "web/models/new_run.html",
        {
            "form": form,
            "outcomes": outcomes.OUTCOMES.values(),
            "sources": Source.objects.order_by("title"),
            "modalities": [(name, words.modality(name)) for name in runs.OVERRIDES["modalities"].choices],
            "often": [(runs.OVERRIDES[name], form[name]) for name in OFTEN],
            "seldom": [(runs.OVERRIDES[name], form[name]) for name in SELDOM],
            "is_seldom_set": any(form[name] for name in SELDOM),
            "offered": [(name, form[name]) for name in OFFERED],
            "error": error,
            "preview": preview,
            "busy": queries.running_run(),
        },
        status=400 if error and request.method == "POST" else 200,
    )


@require_safe
@login_required
def run(request: HttpRequest, run_id: object) -> HttpResponse:
    """One run; its progress is replaced as it goes."""
    access.check_view_models(request.user)
    return render(request, "web/models/run.html", _context(request, run_id))


@require_safe
@login_required
def progress(request: HttpRequest, run_id: object) -> HttpResponse:
    """The part of the run's page that moves."""
    access.check_view_models(request.user)
    return render(request, "web/models/run_progress.html", _context(request, run_id))


@require_POST
@login_required
def cancel(request: HttpRequest, run_id: object) -> HttpResponse:
    """Stop a run. No model comes of it."""
    access.check_start_runs(request.user)
    found = queries.get_run(run_id)
    runs.cancel(found, by=actor_of(request), user=user_of(request), now=timezone.now())
    messages.info(request, "The run is being stopped. No model will come of it.")
    return redirect("run", run_id=found.pk)


def _config(form: dict[str, Any]) -> dict[str, Any]:
    given = {name: form[name] for name in (*OFFERED, "modalities") if form[name]}
    return runs.check_overrides(given)


def _context(request: HttpRequest, run_id: object) -> dict[str, Any]:
    found = queries.get_run(run_id)
    version = getattr(found, "version", None)
    return {
        "view": _view(found),
        "run": found,
        "can_cancel": access.can_start_runs(request.user),
        "unfair": fairness.gaps_over(version) if version else [],
        "verdicts": [
            (outcome, said.get("verdict", "")) for outcome, said in fairness.fairness_of(version).items()
        ]
        if version
        else [],
    }


def _view(found: TrainingRun) -> RunView:
    is_open = found.work_state in {WorkState.QUEUED, WorkState.RUNNING}
    steps = _steps(found)
    curve = None
    if steps and len(steps[-1].points) > 1:
        at = steps[-1]
        curve = charts.losses(at.points, title=f"Loss of {at.name} over {len(at.points)} epochs")
    config = tuple(
        (runs.OVERRIDES[name].label if name in runs.OVERRIDES else name, _as_text(value))
        for name, value in sorted(found.config.items())
    )
    return RunView(found, round(found.fraction * 100), _text(found), is_open, curve, steps, config)


def _steps(found: TrainingRun) -> tuple[Step, ...]:
    """The history, part by part: losses of different parts are not one curve."""
    parts: list[tuple[str, list[tuple[float, float | None, float | None]]]] = []
    for row in found.history:
        train, tuning = row.get("train_loss"), row.get("tuning_loss")
        if row.get("epoch") is None or (train is None and tuning is None):
            continue
        name = str(row.get("step", ""))
        if not parts or parts[-1][0] != name:
            parts.append((name, []))
        parts[-1][1].append((float(row["epoch"]), train, tuning))
    return tuple(Step(name, tuple(points)) for name, points in parts)


def _text(found: TrainingRun) -> str:
    if found.work_state == WorkState.QUEUED:
        return "Waiting for a worker" + (" (another run is at work)" if queries.running_run() else "")
    if found.work_state != WorkState.RUNNING:
        return {"done": "Done", "failed": "Failed", "cancelled": "Cancelled"}[found.work_state]
    if found.cancel_requested:
        return "Stopping"
    if found.started_at is None or found.fraction < 0.05:
        return "Starting"
    used = timezone.now() - found.started_at
    left = used * ((1 - found.fraction) / found.fraction)
    return f"about {words.span(left)} left" if left > timedelta(seconds=45) else "less than a minute left"


def _as_text(value: object) -> str:
    return ", ".join(words.modality(str(item)) for item in value) if isinstance(value, list) else str(value)
