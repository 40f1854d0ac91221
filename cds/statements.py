"""Queries of the ORM that are asked thousands of times a minute: compiled once, prepared by PostgreSQL.

The ORM takes longer to write such a query than PostgreSQL to answer it. A `Statement` has it written once in
each process, with a mark in place of every value, and from then on only the values change. On other databases
the ORM asks every time. A prepared statement belongs to its connection: between us and PostgreSQL there must
be no pooler that pools by transaction.
"""

from __future__ import annotations

import uuid
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, NotSupportedError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import AutoField, JSONField, Model, QuerySet

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


class Records(Statement):
    """A query without `values_list`, and the names of what is wanted of each row."""

    def __init__(self, build: Callable[..., QuerySet[Any, Any]], *names: str) -> None:
        super().__init__(lambda **values: build(**values).values_list(*names))
        record: Any = namedtuple("Record", names)  # type: ignore[misc]
        self._named = record._make

    def records(self, **values: Any) -> list[Any]:
        """The rows as named tuples."""
        return [self._named(row) for row in self.rows(**values)]


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
        with run(self._sql, given, connection) as cursor:
            found: list[Row] = cursor.fetchall()
        return found

    def _converted(self, row: Row, connection: BaseDatabaseWrapper) -> Row:
        said = list(row)
        for place, (converters, expression) in self._converters:
            for convert in converters:
                said[place] = convert(said[place], expression, connection)
        return tuple(said)


def run(sql: str, values: Sequence[Any], connection: BaseDatabaseWrapper | None = None) -> Any:
    """A cursor that has executed `sql`. PostgreSQL is given the values as they are, and prepares what it is
    asked often. Where somebody listens to statements (tests, a debugger), Django's own wrappers are told."""
    connection = connection or connections[DEFAULT_DB_ALIAS]
    if connection.vendor != "postgresql":
        cursor = connection.cursor()
        cursor.execute(sql, values)
        return cursor
    connection.ensure_connection()
    raw: psycopg.Connection[Row] = connection.connection
    raw.prepare_threshold = _PREPARED_AFTER
    bare: Any = psycopg.Cursor(raw)
    if connection.queries_logged or connection.execute_wrappers:
        logged = connection.queries_logged
        cursor = connection.make_debug_cursor(bare) if logged else CursorWrapper(bare, connection)
        cursor.execute(sql, values)
        return cursor
    connection.validate_no_broken_transaction()
    with connection.wrap_database_errors:
        bare.execute(sql, values)
    return bare


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
        fields = [field for field in model._meta.concrete_fields if not isinstance(field, AutoField)]
        self._fields = [(field, not isinstance(field, JSONField)) for field in fields]
        names = ", ".join(f'"{field.column}"' for field in fields)
        self._into = f'INSERT INTO "{model._meta.db_table}" ({names})'
        self._sql = f"{self._into} VALUES ({', '.join(['%s'] * len(fields))})"
        self._key = f'RETURNING "{model._meta.pk.column}"'

    def insert(self, row: Model, *, unless_there: bool = False) -> bool:
        """Insert it as it is, in the caller's transaction; whether it is there now by this.

        unless_there  do nothing when a row that must be unique is there already; without, IntegrityError
        """
        sql = (
            f"{self._sql} ON CONFLICT DO NOTHING {self._key}" if unless_there else f"{self._sql} {self._key}"
        )
        with run(sql, self.values(row)) as cursor:
            found = cursor.fetchone()
        if found is not None and row.pk is None:
            row.pk = found[0]
        row._state.adding = found is None
        return found is not None

    def values(self, row: Model) -> list[Any]:
        """The row's values as the database takes them, in the order of `sql_from`."""
        connection = connections[DEFAULT_DB_ALIAS]
        is_given = connection.vendor == "postgresql"  # psycopg takes plain values as they are
        return [
            getattr(row, field.attname)
            if is_plain and is_given
            else field.get_db_prep_save(getattr(row, field.attname), connection=connection)
            for field, is_plain in self._fields
        ]

    def sql_from(self, source: str) -> str:
        """To insert one row for each of `source`, a part of a larger statement."""
        connection = connections[DEFAULT_DB_ALIAS]
        marks = ", ".join(f"%s::{field.db_type(connection)}" for field, _ in self._fields)
        return f"{self._into} SELECT {marks} FROM {source}"  # noqa: S608 (our own names)
