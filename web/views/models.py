"""The registry of models: list, one version with its report, and how a version comes into use."""

from __future__ import annotations

from collections.abc import Sequence

from django.contrib import messages
from django.contrib.auth import authenticate
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST, require_safe

from cds.errors import Conflict, Invalid
from cds.patients import access
from cds.registry import fairness, model_card, promoting, queries
from cds.registry.models import ActiveModel, ModelVersion, Stage
from cds.risk import shifts
from web import beside, reports, words
from web.people import actor_of, user_of
from web.views import hospital


@require_safe
@login_required
def registry(request: HttpRequest) -> HttpResponse:
    """What is in use, what waits for a decision, all versions, the latest runs."""
    access.check_view_models(request.user)
    stage = request.GET.get("stage", "")
    stage = stage if stage in Stage.values else ""
    return render(
        request,
        "web/models/list.html",
        {
            "active": queries.list_active(),
            "waiting": queries.open_promotions(),
            "versions": [reports.summary(version) for version in queries.list_versions(stage=stage)],
            "runs": queries.list_runs(10),
            "stages": Stage.choices,
            "stage": stage,
            "can_start": access.can_start_runs(request.user),
        },
    )


@require_safe
@login_required
def model(request: HttpRequest, version_id: object) -> HttpResponse:
    """One version: what it is, how well it does, who decided what."""
    access.check_view_models(request.user)
    return _show(request, version_id)


@require_POST
@login_required
def request_promotion(request: HttpRequest, version_id: object) -> HttpResponse:
    """Ask for a version to be put to use; a second person decides."""
    access.check_request_promotion(request.user)
    version = queries.get_version(version_id)
    try:
        promoting.request(
            version,
            reason=request.POST.get("reason", ""),
            by=actor_of(request),
            user=user_of(request),
            now=timezone.now(),
        )
    except Invalid as fault:
        return _show(request, version_id, request_error=str(fault), status=400)
    except Conflict as fault:
        if not fairness.gaps_over(version):
            raise
        return _show(request, version_id, request_error=str(fault), status=409)
    messages.success(request, f"Promotion of {version.label} is requested. A second person decides.")
    return redirect("model", version_id=version.pk)


@sensitive_post_parameters("password")
@require_POST
@login_required
def decide(request: HttpRequest, promotion_id: object, answer: str) -> HttpResponse:
    """Approve or reject. Approving needs the password again; the person who asked may only withdraw."""
    if answer not in {"approve", "reject"}:
        raise Http404
    access.check_view_models(request.user)
    promotion = queries.get_promotion(promotion_id)
    by, now = actor_of(request), timezone.now()
    if answer == "reject":
        promoting.reject(promotion, by=by, user=user_of(request), now=now)
        messages.info(request, f"The promotion of {promotion.version.label} will not happen.")
        return redirect("model", version_id=promotion.version_id)
    may = access.can_approve_promotion(request.user) and promotion.requested_by_id != request.user.pk
    if may and not _knows_password(request):
        return _show(
            request,
            promotion.version_id,
            decide_error=f"{_not_shown(request)} Nothing was approved.",
            status=400,
        )
    version = promoting.approve(promotion, by=by, user=user_of(request), now=now)
    messages.success(request, f"{version.label} is now in use. All patients are being scored again.")
    return redirect("model", version_id=version.pk)


@sensitive_post_parameters("password")
@require_POST
@login_required
def rollback(request: HttpRequest) -> HttpResponse:
    """Back to the version before, at once. One approver, with reason and password."""
    access.check_approve_promotion(request.user)
    outcome = request.POST.get("outcome", "")
    held = queries.active_version(outcome)
    if held is None:
        raise Conflict("no model is in use for this outcome")
    if not _knows_password(request):
        return _show(
            request, held.pk, rollback_error=f"{_not_shown(request)} Nothing was rolled back.", status=400
        )
    try:
        version = promoting.rollback(
            outcome,
            reason=request.POST.get("reason", ""),
            by=actor_of(request),
            user=user_of(request),
            now=timezone.now(),
        )
    except Invalid as fault:
        return _show(request, held.pk, rollback_error=str(fault), status=400)
    messages.success(request, f"{words.outcome(outcome)} is answered by {version.label} again.")
    return redirect("model", version_id=version.pk)


def _show(request: HttpRequest, version_id: object, *, status: int = 200, **errors: str) -> HttpResponse:
    version = queries.get_version(version_id)
    promotions = queries.list_promotions(version)
    waiting = next((promotion for promotion in promotions if promotion.approved is None), None)
    asked_by_viewer = waiting is not None and waiting.requested_by_id == request.user.pk
    active = queries.list_active()
    answering = [held for held in active if held.version_id == version.pk]
    others = queries.same_outcomes(version)
    other = _beside_whom(request.GET.get("beside", ""), version, others, active)
    context = {
        "version": version,
        "card": model_card.get_card(version),
        "report": reports.read(version),
        "facts": reports.facts(version),
        "others": others,
        "other": other,
        "beside": beside.beside(version, other) if other else (),
        "shift": shifts.newest_shift(version),
        "promotions": promotions,
        "unfair": fairness.gaps_over(version) if Stage(version.stage) != Stage.ACTIVE else [],
        "waiting": waiting,
        "asked_by_viewer": asked_by_viewer,
        "can_request": access.can_request_promotion(request.user)
        and waiting is None
        and Stage.ACTIVE in promoting.TRANSITIONS[Stage(version.stage)],
        "can_decide": access.can_approve_promotion(request.user) and not asked_by_viewer,
        "answering": answering,
        "can_roll_back": access.can_approve_promotion(request.user)
        and any(held.previous_id for held in answering),
        "by_hospital": not user_of(request).has_usable_password(),
        "is_fresh": hospital.is_fresh(request),
        **errors,
    }
    return render(request, "web/models/model.html", context, status=status)


def _beside_whom(
    asked: str, version: ModelVersion, others: Sequence[ModelVersion], active: Sequence[ActiveModel]
) -> ModelVersion | None:
    """The version to compare with: the one asked for, else the one in use, else the one before it."""
    named = [other for other in others if str(other.pk) == asked]
    usual = {
        held.version_id if held.version_id != version.pk else held.previous_id
        for held in active
        if held.outcome in version.outcomes
    }
    return next(iter([*named, *(other for other in others if other.pk in usual)]), None)


def _knows_password(request: HttpRequest) -> bool:
    """Ask again who sits here; wrong tries count towards the lock of django-axes.

    A hospital account has no password here: it must have shown at the provider, just now, who it is.
    """
    if not user_of(request).has_usable_password():
        return hospital.is_fresh(request)
    user = authenticate(
        request, username=request.user.get_username(), password=request.POST.get("password", "")
    )
    return user is not None and user.pk == request.user.pk


def _not_shown(request: HttpRequest) -> str:
    if user_of(request).has_usable_password():
        return "The password is not right."
    return "Sign in at the hospital once more, then decide within five minutes."
