"""The lock of passwords: five wrong ones for a name from an address (django-axes, AXES_… in the settings)."""

from __future__ import annotations

from axes.handlers.database import AxesDatabaseHandler
from django.conf import settings
from django.http import HttpRequest


class PasswordLock(AxesDatabaseHandler):
    """Counts in the database. Only a right password forgets the wrong ones.

    A launch, or the hospital's sign-in, says nothing of whoever guesses at that account's password meanwhile.
    """

    def reset_user_attempts(self, request: HttpRequest, credentials: dict[str, str] | None = None) -> int:
        """How many counts were forgotten."""
        if request.path != settings.LOGIN_URL:
            return 0
        return int(super().reset_user_attempts(request, credentials))
