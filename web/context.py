"""What every template knows."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest


def page(request: HttpRequest) -> dict[str, Any]:
    """The regulatory label, the role, and the CSP nonce under the name django-htmx reads."""
    return {
        "regulatory_label": settings.REGULATORY_LABEL,
        "csp_nonce": getattr(request, "csp_nonce", ""),
    }
