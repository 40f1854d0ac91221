"""Migrations: complete, and free of circles between apps."""

from __future__ import annotations

from graphlib import TopologicalSorter
from io import StringIO

import pytest
from django.core.management import call_command
from django.db.migrations.loader import MigrationLoader

STOREYS = ["jobs", "audit", "patients", "studies", "registry", "risk", "hooks", "demo"]


@pytest.mark.django_db
def test_no_model_was_changed_without_a_migration() -> None:
    said = StringIO()
    call_command("makemigrations", check=True, dry_run=True, stdout=said)
    assert "No changes detected" in said.getvalue()


def test_no_circle_between_apps_and_none_points_up() -> None:
    loader = MigrationLoader(None, ignore_no_migrations=True)
    needs: dict[str, set[str]] = {}
    for (app, _), migration in loader.disk_migrations.items():
        needs.setdefault(app, set()).update(other for other, _ in migration.dependencies if other != app)
    list(TopologicalSorter(needs).static_order())  # CycleError names the circle
    for app in STOREYS:
        above = set(STOREYS[STOREYS.index(app) + 1 :])
        assert not needs.get(app, set()) & above
