"""Queries compiled once give what the ORM gives, on every database."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.patients.models import Patient
from cds.statements import Insertion, Statement
from tests import factories

pytestmark = pytest.mark.django_db


def _of_source(source: Any, since: Any, name: Any) -> Any:
    rows = Patient.objects.filter(
        source=source, changed_at__gt=since, resource_id=name, revision=F("revision")
    )
    return rows.order_by("-changed_at").values_list("pk", "changed_at", "replaces", "source__slug")[:3]


def test_the_rows_are_those_of_the_orm_whatever_the_values() -> None:
    query, since = Statement(_of_source), factories.NOW - timedelta(days=1)
    for patient in (factories.make_patient("p1"), factories.make_patient("p2")):
        values = {"source": patient.source_id, "since": since, "name": patient.resource_id}
        assert query.rows(**values) == list(_of_source(**values)) != []
        assert query.row(**{**values, "name": "nobody"}) is None


def test_a_value_that_compares_nothing_is_refused_where_it_is_compiled() -> None:
    query = Statement(lambda name, unused: Patient.objects.filter(resource_id=name).values_list("pk"))
    if connection.vendor == "postgresql":
        with pytest.raises(ValueError, match="unused"):
            query.rows(name="a", unused="b")
    with CaptureQueriesContext(connection) as captured:
        Statement(lambda name: Patient.objects.filter(resource_id=name).values_list("pk")).rows(name="a")
    assert len(captured) == 1  # seen by whoever counts queries


def test_a_row_inserted_is_the_row_saved() -> None:
    like = factories.make_patient()
    fresh = Patient(
        source=like.source, resource_id="inserted", replaces=["a", 'b"'], changed_at=timezone.now()
    )
    Insertion(Patient).insert(fresh)
    held = Patient.objects.get(resource_id="inserted")
    assert (held.pk, held.replaces, held.changed_at) == (fresh.pk, fresh.replaces, fresh.changed_at)
    with pytest.raises(IntegrityError), transaction.atomic():
        Insertion(Patient).insert(fresh)


def test_an_event_appended_is_the_event_in_the_chain() -> None:
    patient = uuid.uuid4()
    with transaction.atomic():
        for number in range(3):
            said = recording.record(
                by=recording.Actor("client:é", address="127.0.0.1"),
                action="hook.call",
                object_type="Patient",
                object_id=patient,
                patient_id=patient,
                now=timezone.now(),
                kinds=[{"id": '"sequence":9', "number": number}],
            )
    held = AuditEvent.objects.get(pk=said.pk)
    assert (held.sequence, held.previous_hash, held.hash) == (said.sequence, said.previous_hash, said.hash)
    assert held.hash == recording.hash_of(held)
    assert not [problem for chain in recording.verify() for problem in chain.problems]


def _keep(row: Patient, within_s: float = 60) -> bool:
    return recording.record_with(
        Insertion(Patient),
        row,
        within_s=within_s,
        by=recording.Actor("client:1"),
        action="hook.call",
        object_type="Patient",
        object_id=row.resource_id,
        now=timezone.now(),
        cards=[{"id": "ü"}],
    )


def test_a_row_and_its_event_are_kept_together_or_not_at_all() -> None:
    like = factories.make_patient()
    name = "together"
    fresh = Patient(source=like.source, resource_id=name, changed_at=timezone.now())
    _keep(fresh)
    second = Patient(source=like.source, resource_id=name, changed_at=timezone.now())  # the same again
    with CaptureQueriesContext(connection) as captured, pytest.raises(IntegrityError), transaction.atomic():
        _keep(second)
    assert Patient.objects.get(resource_id=name).pk == fresh.pk
    (event,) = AuditEvent.objects.filter(object_id=name)
    assert event.detail == {"cards": [{"id": "ü"}]}
    assert not [problem for chain in recording.verify() for problem in chain.problems]
    if connection.vendor == "postgresql":
        assert len([one for one in captured.captured_queries if "INSERT" in one["sql"]]) == 1


def test_too_late_neither_a_row_nor_its_event_is_kept() -> None:
    late = Patient(source=factories.make_patient().source, resource_id="late", changed_at=timezone.now())
    assert not _keep(late, within_s=0)
    assert not Patient.objects.filter(resource_id="late").exists()
    assert not AuditEvent.objects.filter(object_id="late").exists()
    assert _keep(late)
    assert AuditEvent.objects.filter(object_id="late").count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL keeps prepared statements")
def test_a_migration_meanwhile_breaks_no_statement_that_was_prepared_before() -> None:
    query = Statement(lambda name: Patient.objects.filter(resource_id=name).values_list("family"))
    Patient.objects.filter(pk=factories.make_patient("p1").pk).update(family="Before")
    for _ in range(8):  # often enough to be prepared
        assert query.row(name="p1") == ("Before",)
    _elsewhere("ALTER TABLE patients_patient ALTER COLUMN family TYPE text")
    try:
        assert query.row(name="p1") == ("Before",)
    finally:
        connection.close()
        _elsewhere("ALTER TABLE patients_patient ALTER COLUMN family TYPE varchar(200)")


def _elsewhere(sql: str) -> None:
    """On a connection of its own, as a migration is."""
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute(sql)
