"""A model's card: the 31 source attributes, for whoever sees its scores; admins write what people must."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from cds.errors import Conflict, Invalid
from cds.patients import access
from cds.registry import describing, model_card, queries
from web import launch, presenters
from web.forms import whole_number
from web.people import actor_of, user_of


@require_safe
@login_required
def card(request: HttpRequest, version_id: object) -> HttpResponse:
    """Everything that is known about a version, to read and to print."""
    access.check_view_cards(request.user)
    version = queries.get_version(version_id)
    is_launched = launch.of_session(request) is not None  # the pages of models are not open there
    return render(
        request,
        "web/models/card.html",
        {
            "version": version,
            "card": model_card.get_card(version),
            "privacy": describing.privacy(version),
            "policies": [presenters.site_policy(outcome) for outcome in version.outcomes],
            "can_edit": not is_launched and access.can_edit_cards(request.user),
            "can_view_models": not is_launched and access.can_view_models(request.user),
        },
    )


@require_safe
@login_required
def as_json(request: HttpRequest, version_id: object) -> HttpResponse:
    """The same for other systems."""
    access.check_view_cards(request.user)
    version = queries.get_version(version_id)
    answer = JsonResponse(
        model_card.to_json(model_card.get_card(version)),
        json_dumps_params={"indent": 1, "ensure_ascii": False},
    )
    name = version.label.replace("+", "-").replace(" ", "-")
    answer["Content-Disposition"] = f'attachment; filename="{name}-card.json"'
    return answer


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def attribute(request: HttpRequest, version_id: object, key: str) -> HttpResponse:
    """One attribute with everything that was ever written for it; admins write the next text."""
    access.check_view_cards(request.user)
    version, asked = queries.get_version(version_id), model_card.get_attribute(key)
    line = next(one for one in model_card.get_card(version).lines if one.attribute == asked)
    text, error, status = line.text, "", 200
    if request.method == "POST":
        access.check_edit_cards(request.user)
        text, number = request.POST.get("text", ""), whole_number(request.POST.get("number", ""))
        try:
            if number is None:
                raise Invalid("the form was not complete: open it again")
            model_card.edit(
                version,
                key,
                text,
                number=number,
                by=actor_of(request),
                user=user_of(request),
                now=timezone.now(),
            )
        except (Invalid, Conflict) as fault:
            error, status = str(fault), 409 if isinstance(fault, Conflict) else 400
        else:
            messages.success(request, f"{asked.title}: saved.")
            return redirect("model-card", version_id=version.pk)
    context = {
        "version": version,
        "line": line,
        "text": text,
        "error": error,
        "longest": model_card.LONGEST,
        "entries": model_card.list_entries(version, key),
        "can_edit": access.can_edit_cards(request.user),
    }
    return render(request, "web/models/card_attribute.html", context, status=status)
