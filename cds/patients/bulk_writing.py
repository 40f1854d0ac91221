"""Many new rows at once: COPY on PostgreSQL, one prepared statement on SQLite; neither builds model objects.

For the facts of a patient who was made in this very transaction, so that nothing can be there already. A
tenth of the time of `bulk_create`, which stays the way for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from django.db import connection, models

from cds.patients.models import Fact, Patient
from cds.patients.rows import Row


def insert_facts(model: type[Fact], facts: Iterable[tuple[Patient, Row]]) -> None:
    """Insert the facts of new patients, in the caller's transaction. Raises DataError, IntegrityError."""
    names = _columns(model)
    table = connection.ops.quote_name(model._meta.db_table)
    columns = ", ".join(connection.ops.quote_name(column) for column, _, _ in names)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for patient, row in facts:
                copy.write_row([*_values(row, names), patient.pk, *row.key, row.digest])
        return
    values = [
        [*map(_stored, _values(row, names)), patient.pk.hex, *row.key, row.digest] for patient, row in facts
    ]
    with connection.cursor() as cursor:
        marks = ", ".join(["%s"] * len(names))
        statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - our own names
        cursor.executemany(statement, values)


def _values(row: Row, names: Sequence[tuple[str, str, Any]]) -> list[Any]:
    found = [row.columns.get(name, default) for _, name, default in names[: -len(_OWN)]]
    return [json.dumps(value) if isinstance(value, list) else value for value in found]


def _stored(value: Any) -> Any:
    """A moment as SQLite keeps it."""
    return connection.ops.adapt_datetimefield_value(value) if isinstance(value, datetime) else value


_OWN = ("patient", "resource_type", "resource_id", "part", "digest")  # of the row, not of its columns


@cache
def _columns(model: type[Fact]) -> tuple[tuple[str, str, Any], ...]:
    """(column, name, default) of every field, `_OWN` last."""
    fields = {field.name: field for field in model._meta.concrete_fields if not field.primary_key}
    order = [*(name for name in fields if name not in _OWN), *_OWN]
    return tuple((fields[name].column or name, name, _default(fields[name])) for name in order)


def _default(field: models.Field[Any, Any]) -> Any:
    return field.get_default() if field.has_default() or not field.null else None
