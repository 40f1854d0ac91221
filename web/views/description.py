"""`/openapi.json`: what we answer as JSON, for machines and for those who program them."""

from __future__ import annotations

from importlib import metadata

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

from web import openapi

CACHED_S = 300


@require_safe
@cache_control(public=True, max_age=CACHED_S)
def description(request: HttpRequest) -> JsonResponse:
    """OpenAPI 3.1; no sign-in needed, as it says nothing that the guide does not."""
    return JsonResponse(openapi.describe(server=settings.PUBLIC_URL, version=_version()))


def _version() -> str:
    try:
        return metadata.version("tessera")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "0.0.0"
