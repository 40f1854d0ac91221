"""Messages that point up: `jobs.enqueue(Job.ASSESS, assessment_id=…)`, by name and with ids only.

The database is the truth. A job's row (`LeasedWork`) says what is left to do; the broker only wakes a
worker. So a lost message costs seconds (the sweeper sends it again) and a doubled one costs nothing (the
claim fails).
"""

from __future__ import annotations

from enum import StrEnum


class Queue(StrEnum):
    """One worker group each. What waits for another system waits on `exchange`, and holds up no score."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    EXCHANGE = "exchange"
    TRAIN = "train"


class Job(StrEnum):
    """The name of a Celery task; `QUEUES` says where it runs."""

    ENCODE = "cds.risk.tasks.encode"  # encoding_id
    ENCODE_NOTES = "cds.risk.tasks.encode_notes"  # patient_id
    SCORE = "cds.risk.tasks.score"  # assessment_id
    EXPLAIN = "cds.risk.tasks.explain"  # assessment_id: heat maps, after the score
    ASSESS = "cds.risk.tasks.assess"  # patient_id: the record changed; ask for fresh scores
    ASSESS_ALL = (
        "cds.risk.tasks.assess_all"  # outcome: another model answers for it; ask for everybody's scores
    )
    RUN_ERRAND = "cds.subscriptions.tasks.run_errand"  # errand_id: a FHIR server told of changes
    CHECK_SOURCE = "cds.studies.tasks.check_source"  # source_id: does it answer?
    TRAIN = "cds.registry.tasks.train"  # run_id
    SEND = "cds.sending.tasks.send"  # document_id
    CHECK_DESTINATION = "cds.sending.tasks.check_destination"  # destination_id: would it take what we send?


QUEUES: dict[Job, Queue] = {
    Job.SCORE: Queue.INTERACTIVE,
    Job.ENCODE: Queue.BATCH,
    Job.ENCODE_NOTES: Queue.BATCH,
    Job.EXPLAIN: Queue.BATCH,
    Job.ASSESS: Queue.BATCH,
    Job.ASSESS_ALL: Queue.BATCH,
    Job.RUN_ERRAND: Queue.EXCHANGE,
    Job.CHECK_SOURCE: Queue.EXCHANGE,
    Job.CHECK_DESTINATION: Queue.EXCHANGE,
    Job.SEND: Queue.EXCHANGE,
    Job.TRAIN: Queue.TRAIN,
}
# Taken from its queue only when nothing else waits there: a score stands without its heat maps, and hundreds
# of them, seconds each, must hold up no fresh score and no new picture.
LAST = frozenset({Job.EXPLAIN})
FIRST_PRIORITY, LAST_PRIORITY = 0, 9  # as Redis counts them
