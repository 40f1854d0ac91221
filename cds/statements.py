"""Queries of the ORM that are asked thousands of times a minute: compiled once, prepared by PostgreSQL.

The ORM takes longer to write such a query than PostgreSQL to answer it. A `Statement` has it written once in
each process, with a mark in place of every value, and from then on only the values change. On other databases
the ORM asks every time. A prepared statement belongs to its connection: between us and PostgreSQL there must
be no pooler that pools by transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, NotSupportedError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import AutoField, Model, QuerySet

Row = tuple[Any, ...]
_PREPARED_AFTER = 2  # times asked on one connection


class Statement:
    """A query with named values: `build(**values)` makes it, and ends in `values_list`.

    Values are UUIDs, texts, whole numbers or moments, each used for nothing but comparison with a column.
    """

    def __init__(self, build: Callable[..., QuerySet[Any, Any]]) -> None:
        self._build = build
        self._compiled: _Compiled | None = None

    def rows(self, **values: Any) -> list[Row]:
        """The same rows as the query itself gives."""
        connection = connections[DEFAULT_DB_ALIAS]
        if connection.vendor != "postgresql":
            return list(self._build(**values))
        if self._compiled is None:
            self._compiled = _Compiled(self._build, values, connection)
        return self._compiled.rows(values, connection)

    def row(self, **values: Any) -> Row | None:
        """The first of them, or None."""
        return next(iter(self.rows(**values)), None)


class _Compiled:
    """SQL, the order of its values, and what turns stored values into those of Python."""

    def __init__(
        self,
        build: Callable[..., QuerySet[Any, Any]],
        values: Mapping[str, Any],
        connection: BaseDatabaseWrapper,
    ) -> None:
        marks = {name: _mark(place, value) for place, (name, value) in enumerate(values.items())}
        compiler = build(**marks).query.get_compiler(connection=connection)
        self._sql, parameters = compiler.as_sql()
        names = {mark: name for name, mark in marks.items()}
        self._order = [(names.get(one), one) if _may_be(one) else (None, one) for one in parameters]
        lost = set(marks) - {name for name, _ in self._order}
        if lost:
            raise ValueError(f"the query does not compare a column with {', '.join(sorted(lost))}")
        fields = [expression for expression, _, _ in compiler.select[: compiler.col_count]]
        self._converters = list(compiler.get_converters(fields).items())

    def rows(self, values: Mapping[str, Any], connection: BaseDatabaseWrapper) -> list[Row]:
        given = [constant if name is None else values[name] for name, constant in self._order]
        try:
            found = self._fetched(given, connection)
        except NotSupportedError:  # a migration changed a column since this connection prepared it (0A000)
            if connection.in_atomic_block:
                raise  # rolling back forgets what was prepared
            connection.connection.close()  # the pool throws a closed one away
            connection.close()
            found = self._fetched(given, connection)
        return [self._converted(row, connection) for row in found] if self._converters else found

    def _fetched(self, given: list[Any], connection: BaseDatabaseWrapper) -> list[Row]:
        with _prepared(connection) as cursor:
            cursor.execute(self._sql, given)
            found: list[Row] = cursor.fetchall()
        return found

    def _converted(self, row: Row, connection: BaseDatabaseWrapper) -> Row:
        said = list(row)
        for place, (converters, expression) in self._converters:
            for convert in converters:
                said[place] = convert(said[place], expression, connection)
        return tuple(said)


def prepared_cursor() -> Any:
    """A cursor that leaves values to PostgreSQL and prepares what it asks often; elsewhere Django's own."""
    return _prepared(connections[DEFAULT_DB_ALIAS])


def _prepared(connection: BaseDatabaseWrapper) -> Any:
    if connection.vendor != "postgresql":
        return connection.cursor()
    connection.ensure_connection()
    raw: psycopg.Connection[Row] = connection.connection
    raw.prepare_threshold = _PREPARED_AFTER
    cursor: Any = psycopg.Cursor(raw)
    if connection.queries_logged:
        return connection.make_debug_cursor(cursor)
    return CursorWrapper(cursor, connection)


def _may_be(value: Any) -> bool:
    return isinstance(value, uuid.UUID | str | int | datetime) and not isinstance(value, bool)


def _mark(place: int, value: Any) -> Any:
    """A value of the same type that no query holds by itself."""
    match value:
        case uuid.UUID():
            return uuid.uuid4()
        case str():
            return f"mark {place} {uuid.uuid4().hex}"
        case datetime():
            return datetime(1901, 1, 1, tzinfo=UTC) + timedelta(days=place)
        case int():
            return 1_900_000_000 + place
    raise TypeError(f"a value of a statement is no {type(value).__name__}")


class Insertion:
    """INSERT of single rows of a model, written once; the database gives the key where it is its own."""

    def __init__(self, model: type[Model]) -> None:
        self._fields = [field for field in model._meta.concrete_fields if not isinstance(field, AutoField)]
        names = ", ".join(f'"{field.column}"' for field in self._fields)
        values = ", ".join(["%s"] * len(self._fields))
        self._sql = f'INSERT INTO "{model._meta.db_table}" ({names}) VALUES ({values})'  # noqa: S608 (our own names)

    def insert(self, row: Model) -> None:
        """Insert it as it is, in the caller's transaction."""
        connection = connections[DEFAULT_DB_ALIAS]
        values = [
            field.get_db_prep_save(getattr(row, field.attname), connection=connection)
            for field in self._fields
        ]
        with _prepared(connection) as cursor:
            cursor.execute(self._sql, values)
