"""Who sends a request, typed: for views behind `login_required`."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.http import HttpRequest

from cds.audit import recording


def user_of(request: HttpRequest) -> User:
    """The signed-in person."""
    user = request.user
    assert isinstance(user, User), "this view needs login_required"
    return user


def actor_of(request: HttpRequest) -> recording.Actor:
    """The same as an actor of the audit trail, with role and address."""
    return recording.person(request.user, request)
