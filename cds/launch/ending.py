"""Sessions that have run out, or whose owner or EHR is shut out, are deleted with what was granted to them.

A session holds the pending state of a launch or sign-in, and of who came from the hospital the id_token that
signs them out there. Django keeps such rows until somebody deletes them; beat asks for it every hour. One
that is deleted is over with its next request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session

from cds.launch.models import SmartIdentity, SmartServer

AT_ONCE = 1000
LAUNCH = "launch"  # what a session keeps of the launch that it belongs to (`web.launch.SessionLaunch`)


def end_sessions(now: datetime) -> int:
    """Delete every session that ran out before `now`, a thousand at a time; returns how many there were."""
    ended = 0
    while True:
        over = Session.objects.filter(expire_date__lt=now)
        keys = list(over.values_list("pk", flat=True)[:AT_ONCE])
        over.filter(pk__in=keys).delete()
        ended += len(keys)
        if len(keys) < AT_ONCE:
            return ended


def end_sessions_of(user: User) -> int:
    """Delete every session of a person, wherever they came from; returns how many there were."""
    return _end_where(lambda held: held.get(SESSION_KEY) == str(user.pk))


def end_launched_by(server: SmartServer) -> int:
    """Delete every session that an EHR launched; returns how many there were.

    A person of that EHR who signed in here themselves stays.
    """
    theirs = {
        str(one) for one in SmartIdentity.objects.filter(server=server).values_list("user_id", flat=True)
    }

    def is_launched(held: Mapping[str, Any]) -> bool:
        launch = held.get(LAUNCH)
        if not isinstance(launch, dict):
            return False
        named = launch.get("server")  # of a session from before this was kept, the person says it
        return named == str(server.pk) if named else held.get(SESSION_KEY) in theirs

    return _end_where(is_launched)


def _end_where(wanted: Callable[[Mapping[str, Any]], bool]) -> int:
    """What a session holds is signed text, so each is read."""
    keys = [one.pk for one in Session.objects.iterator(AT_ONCE) if wanted(one.get_decoded())]
    for start in range(0, len(keys), AT_ONCE):
        Session.objects.filter(pk__in=keys[start : start + AT_ONCE]).delete()
    return len(keys)
