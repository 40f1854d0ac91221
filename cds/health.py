"""`/livez`: the process answers. `/readyz`: it can do its work, or which part of it cannot (OPERATIONS 1).

    database   a query is answered within two seconds
    broker     Redis answers a ping
    workers    somebody works on the queues people wait for (interactive, batch); train and exchange are told,
               not required
    model      at least one model is active, and its bundle lies where it should

Nothing here loads torch, names a patient, or waits longer than a second or two.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from cds.jobs import Queue, beats
from cds.registry.models import ActiveModel

PROBE_S = 2.0
_prober = ThreadPoolExecutor(1, thread_name_prefix="readyz")
REQUIRED = (Queue.INTERACTIVE, Queue.BATCH)


@dataclass(frozen=True, slots=True)
class Check:
    """One part, whether it is well, and what is wrong with it."""

    ok: bool
    detail: str = ""


@require_safe
def livez(request: HttpRequest) -> HttpResponse:
    """The process lives; nothing else is asked."""
    return HttpResponse("ok\n", content_type="text/plain")


@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when every check is well, else 503; each check with its detail."""
    broker, workers = check_broker_and_workers()
    database = check_database()
    model = check_model() if database.ok else Check(False, "the database does not answer")
    checks = {"database": database, "broker": broker, "workers": workers, "model": model}
    is_ready = all(check.ok for check in checks.values())
    answer = {"ready": is_ready, "checks": {name: asdict(check) for name, check in checks.items()}}
    return JsonResponse(answer, status=200 if is_ready else 503)


def check_database() -> Check:
    """A query is answered in time. It is asked in a thread, for a database that hangs lets nobody go."""
    asked = _prober.submit(_ask_database)
    try:
        asked.result(PROBE_S)
    except TimeoutError:
        asked.cancel()  # the one before it may still hang
        return Check(False, f"the database did not answer within {PROBE_S:.0f} s")
    except DatabaseError as error:
        return Check(False, f"the database does not answer ({type(error).__name__})")
    return Check(True)


def _ask_database() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    finally:
        connection.close()  # of this thread


def check_broker_and_workers() -> tuple[Check, Check]:
    """Redis answers, and workers said lately that they live."""
    try:
        with beats.connect() as client:
            alive = beats.alive(client)
    except (redis.RedisError, OSError) as error:
        away = f"the broker does not answer ({type(error).__name__})"
        return Check(False, away), Check(False, "not known while the broker is away")
    missing = [queue.value for queue in Queue if not alive[queue]]
    detail = f"nobody works on: {', '.join(missing)}" if missing else ""
    return Check(True), Check(all(alive[queue] for queue in REQUIRED), detail)


def check_model() -> Check:
    """Some model is active, and every active one has its bundle."""
    try:
        active = list(ActiveModel.objects.select_related("version"))
    except DatabaseError as error:
        return Check(False, f"the database does not answer ({type(error).__name__})")
    if not active:
        return Check(False, "no model is active: promote one")
    lost = [
        one.outcome
        for one in active
        if not (settings.BUNDLE_STORE / one.version.path / "metadata.json").is_file()
    ]
    return Check(
        not lost, f"the bundle of the active model is gone: {', '.join(sorted(lost))}" if lost else ""
    )
