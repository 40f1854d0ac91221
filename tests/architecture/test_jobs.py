"""Jobs, tasks, queues and the schedule name each other rightly."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from django.conf import settings

from cds.celery import app
from cds.jobs import QUEUES, Job, Queue
from cds.jobs.leases import work_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _tasks_loaded() -> None:
    """As a worker does at its start."""
    app.loader.import_default_modules()


@pytest.mark.parametrize("job", list(Job))
def test_every_job_has_a_task_on_its_queue(job: Job) -> None:
    task = app.tasks[job.value]
    assert task.queue == QUEUES[job].value
    assert task.acks_late


@pytest.mark.parametrize("name", list(settings.CELERY_BEAT_SCHEDULE))
def test_every_scheduled_task_exists(name: str) -> None:
    assert settings.CELERY_BEAT_SCHEDULE[name]["task"] in app.tasks


def test_every_task_of_ours_is_a_job_or_scheduled() -> None:
    ours = {name for name in app.tasks if name.startswith("cds.")}
    scheduled = {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}
    assert ours == {job.value for job in Job} | scheduled


def test_leased_work_names_a_job() -> None:
    assert {model.JOB for model in work_models()} <= set(Job)


def test_every_queue_has_a_worker_in_compose() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    served = set()
    for name, service in services.items():
        command = service.get("command", [])
        if name.startswith("worker-"):
            served |= set(command[command.index("-Q") + 1].split(","))
    assert served == {queue.value for queue in Queue}
