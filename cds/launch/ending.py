"""Sessions that have run out are deleted, with what they held and what was granted to them.

A session holds the pending state of a launch or sign-in, and of who came from the hospital the id_token that
signs them out there. Django keeps such rows until somebody deletes them; beat asks for it every hour.
"""

from __future__ import annotations

from datetime import datetime

from django.contrib.sessions.models import Session

AT_ONCE = 1000


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
