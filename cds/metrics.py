"""`/metrics` for Prometheus: requests of the web processes, and how the clinic's work stands.

Requests are counted by django_prometheus. The rest is asked for whenever Prometheus asks, the same whichever
process answers: what waits behind each queue, who works on it, what the broker has not taken. Where the
database or the broker is away, what is not known is left out, and `tessera_database_up` or
`tessera_broker_up` is 0. No label names a patient, a person or an EHR.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from django_prometheus.exports import ExportToDjangoView
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cds.jobs import Queue, queues

logger = logging.getLogger(__name__)
WITHIN_S = 2.0  # as /readyz waits
_asker = ThreadPoolExecutor(1, thread_name_prefix="metrics")
_Stand = tuple[list[queues.QueueState], queues.Unsent]


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Both as one page, in Prometheus' text format."""
    response: HttpResponse = ExportToDjangoView(request)
    registry = CollectorRegistry()
    registry.register(_Clinic())
    response.content += generate_latest(registry)
    return response


class _Clinic(Collector):
    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing beforehand: registering asks no database."""
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Each gauge, as it is now."""
        found = _stand()
        yield _gauge(
            "tessera_database_up", "1 while the database answers within two seconds.", found is not None
        )
        if found is None:
            return
        states, unsent = found
        knows = all(state.is_alive is not None for state in states)
        yield _gauge("tessera_broker_up", "1 while the broker answers.", knows)
        yield _of_queues(
            "tessera_queue_waiting", "Work that waits behind a queue.", {s.queue: s.waiting for s in states}
        )
        yield _of_queues(
            "tessera_queue_running",
            "Work of a queue that is under way.",
            {s.queue: s.running for s in states},
        )
        if knows:
            yield _of_queues(
                "tessera_queue_has_worker",
                "1 while a worker of the queue says that it lives.",
                {s.queue: bool(s.is_alive) for s in states},
            )
        yield _gauge("tessera_outbox_unsent", "Jobs that the broker has not taken yet.", unsent.count)
        waits_s = (timezone.now() - unsent.oldest).total_seconds() if unsent.oldest is not None else 0.0
        yield _gauge("tessera_outbox_oldest_seconds", "How long the oldest of them has waited.", waits_s)


def _stand() -> _Stand | None:
    """None where the database does not answer in time. Asked in a thread: one that hangs lets nobody go."""
    asked = _asker.submit(_ask)
    try:
        return asked.result(WITHIN_S)
    except TimeoutError:
        asked.cancel()  # the one before it may still hang
    except (DatabaseError, InterfaceError) as error:
        logger.warning("how the work stands is not known: the database does not answer (%s)", error)
    return None


def _ask() -> _Stand:
    try:
        return queues.list_states(), queues.unsent()
    finally:
        connection.close()  # of this thread


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=float(value))


def _of_queues(name: str, about: str, values: dict[Queue, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, about, labels=("queue",))
    for queue, value in values.items():
        gauge.add_metric([queue.value], float(value))
    return gauge
