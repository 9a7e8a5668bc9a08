"""Changes of rows whose SQL is worked out once, as `prepared/query.py` does it for reads.

Nothing here sends signals or follows relations: the database keeps the rules, and refuses what breaks them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from django.db import connection
from django.db.models import AutoField, Field, Model, QuerySet
from django.db.models.sql import DeleteQuery, UpdateQuery

from prepared.query import Value

M = TypeVar("M", bound=Model)
_Parts = tuple[str, tuple[Any, ...]]


class _Change:
    def __init__(self) -> None:
        self._compiled: dict[str, _Parts] = {}

    def _compile(self) -> _Parts:
        raise NotImplementedError

    def __call__(self, **values: Any) -> int:
        """-> how many rows the condition met."""
        sql, parameters = self._parts()
        with connection.cursor() as cursor:
            cursor.execute(sql, _filled(parameters, values))
            return int(cursor.rowcount)

    def each(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Once for each row of values."""
        sql, parameters = self._parts()
        filled = [_filled(parameters, values) for values in rows]
        if filled:
            with connection.cursor() as cursor:
                cursor.executemany(sql, filled)

    def _parts(self) -> _Parts:
        found = self._compiled.get(connection.vendor)
        if found is None:
            found = self._compiled[connection.vendor] = self._compile()
        return found


class Update(_Change):
    """`build` gives the queryset and what to set, with Slots for what comes later. One table, no joins."""

    def __init__(self, build: Callable[[], tuple[QuerySet[Any], Mapping[str, Any]]]) -> None:
        super().__init__()
        self._build = build

    def _compile(self) -> _Parts:
        rows, values = self._build()
        query: Any = rows.query.chain(UpdateQuery)
        query.add_update_values(dict(values))
        query.annotations = {}  # as QuerySet.update does
        sql, parameters = query.get_compiler(connection=connection).as_sql()
        return sql, tuple(parameters)


class Delete(_Change):
    """`build` gives the queryset. Deletes just these rows: what refers to them makes the database refuse."""

    def __init__(self, build: Callable[[], QuerySet[Any]]) -> None:
        super().__init__()
        self._build = build

    def _compile(self) -> _Parts:
        query: Any = self._build().query.chain(DeleteQuery)
        sql, parameters = query.get_compiler(connection=connection).as_sql()
        return sql, tuple(parameters)


def _filled(parameters: Iterable[Any], values: Mapping[str, Any]) -> list[Any]:
    return [
        p.field.get_db_prep_save(values[p.name], connection) if type(p) is Value else p for p in parameters
    ]


def insert(instance: M) -> M:
    """Insert a new row and give the instance its key, as `save(force_insert=True)` without signals. For models
    with one table. Raises IntegrityError."""
    sql, fields, returning = _insert(type(instance), connection.vendor)
    values = [f.get_db_prep_save(f.pre_save(instance, True), connection) for f in fields]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        if returning:
            instance.pk = cursor.fetchone()[0]
    instance._state.adding = False
    instance._state.db = connection.alias
    return instance


@functools.cache
def _insert(model: type[Model], _vendor: str) -> tuple[str, list[Field[Any, Any]], bool]:
    meta, quote = model._meta, connection.ops.quote_name
    fields: list[Field[Any, Any]] = [f for f in meta.local_concrete_fields if not isinstance(f, AutoField)]
    places = [
        f.get_placeholder(b"", None, connection) if hasattr(f, "get_placeholder") else "%s" for f in fields
    ]
    names = ", ".join(quote(str(f.column)) for f in fields)
    sql = f"INSERT INTO {quote(meta.db_table)} ({names}) VALUES ({', '.join(places)})"  # noqa: S608 - names of columns
    key = meta.pk
    returning = isinstance(key, AutoField)
    if returning:
        sql += f" RETURNING {quote(str(key.column))}"
    return sql, fields, returning
