"""A queryset whose SQL is worked out once, not at every use.

For the paths that every request takes: Django needs many times longer to turn a queryset into SQL than the database
needs to answer it. The queryset stays the only description; where a value comes later it holds a `Slot`:

    _BY_DIGEST = Query(lambda: Token.objects.filter(digest=Slot("digest", Token, "digest")).values_list("id", "name"))
    rows = _BY_DIGEST(digest="...")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection, models
from django.db.models import F, Field, Model, QuerySet
from django.db.models.expressions import Expression


@dataclass(frozen=True, slots=True)
class Value:
    """Stands among the parameters for a value that comes with each call."""

    name: str
    field: Field[Any, Any]


class Slot(Expression):
    """A value of the kind of `model.field`, given by name when the query is asked."""

    def __init__(self, name: str, model: type[Model], field: str) -> None:
        found = model._meta.get_field(field)
        assert isinstance(found, Field)  # noqa: S101
        super().__init__(output_field=found)
        self._value = Value(name, found)

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        return "%s", [self._value]


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    parameters: Sequence[Any]
    converters: Sequence[tuple[int, Sequence[Callable[..., Any]], Any]]


class Query:
    """`build` gives a `values_list` queryset; it is called at first use, once per kind of database."""

    def __init__(self, build: Callable[[], QuerySet[Any, tuple[Any, ...]]]) -> None:
        self._build = build
        self._compiled: dict[str, _Compiled] = {}

    def __call__(self, **values: Any) -> list[tuple[Any, ...]]:
        """All rows. Values are checked no further than the database does."""
        compiled = self._compiled.get(connection.vendor) or self._compile()
        parameters = [
            p.field.get_db_prep_value(values[p.name], connection) if type(p) is Value else p
            for p in compiled.parameters
        ]
        with connection.cursor() as cursor:
            cursor.execute(compiled.sql, parameters)
            rows = cursor.fetchall()
        return [self._converted(row, compiled) for row in rows] if compiled.converters else rows

    def _converted(self, row: Sequence[Any], compiled: _Compiled) -> tuple[Any, ...]:
        found = list(row)
        for position, converters, expression in compiled.converters:
            for convert in converters:
                found[position] = convert(found[position], expression, connection)
        return tuple(found)

    def _compile(self) -> _Compiled:
        compiler = self._build().query.get_compiler(connection=connection)
        sql, parameters = compiler.as_sql()
        found = compiler.get_converters([column[0] for column in compiler.select])
        converters = [
            (position, tuple(map(_unbound, some)), expression)
            for position, (some, expression) in found.items()
        ]
        compiled = _Compiled(sql, tuple(parameters), converters)
        self._compiled[connection.vendor] = compiled
        return compiled


def _unbound(convert: Callable[..., Any]) -> Callable[..., Any]:
    """A converter that belongs to the connection that it is used with, not to the one of the first use."""
    if getattr(convert, "__self__", None) is not connection.ops:
        return convert
    name = convert.__name__
    return lambda value, expression, at: getattr(at.ops, name)(value, expression, at)


def columns(model: type[Model], prefix: str = "") -> list[F]:
    """All columns of a model, for `values_list`; `prefix` is the way to it, as "user__"."""
    return [F(prefix + field.attname) for field in model._meta.concrete_fields]


def instances(row: Sequence[Any], *kinds: type[Model]) -> Iterator[Any]:
    """Instances from a row of `columns` of each model, one after the other; None for one that a left join did not
    find."""
    at = 0
    for model in kinds:
        names = [field.attname for field in model._meta.concrete_fields]
        values = row[at : at + len(names)]
        at += len(names)
        found = values[names.index(_key(model))] is not None
        yield model.from_db(connection.alias, names, values) if found else None


def _key(model: type[models.Model]) -> str:
    key = model._meta.pk
    assert key is not None  # noqa: S101
    return key.attname
