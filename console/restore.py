"""Putting the rows of a snapshot into an empty database, in one transaction."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import IO, Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.core.management.color import no_style
from django.db import connection, models, transaction

from brokers.failpoint import reach
from brokers.keyring import keyring
from console.snapshot import FORMAT, VERSION
from console.tables import TABLES
from replication import epoch
from replication.models import Epoch
from replication.vault import Manifest, SnapshotDamaged

BATCH = 500
# Empty in a database in which nobody has done anything yet.
MUST_BE_EMPTY = ("accounts.User", "brokers.Broker", "replication.Content", "vfs.Node")
REBUILT = "this database was rebuilt from"


class NotEmpty(Exception):
    """The database holds something; nothing was changed."""


def check_empty() -> None:
    """Raises NotEmpty unless nobody has done anything with the database."""
    there = [label for label in MUST_BE_EMPTY if apps.get_model(label)._base_manager.exists()]
    if there:
        raise NotEmpty(
            f"the database is not empty ({', '.join(there)}); nothing was changed. Give an empty one: an unused "
            "PostgreSQL database, or move the SQLite file away"
        )


def restore(file: IO[bytes], manifest: Manifest) -> dict[str, int]:
    """Put the rows of a snapshot (its plain bytes, verified) into the empty database: -> how many of each table.
    All or nothing. Deletion is then locked: the brokers hold what is newer. Raises NotEmpty, SnapshotDamaged,
    WrongMasterKey."""
    tables = [apps.get_model(label) for label in TABLES]
    with transaction.atomic():
        check_empty()
        # What migrations made (plans, permissions) is in the snapshot as it was then.
        for model in reversed(tables):
            rows = model._base_manager.all()
            rows._raw_delete(rows.db)
        counts = _insert(file, manifest)
        _set_sequences(tables)
        keyring()  # is each master key the one that this drive was sealed with?
        current = epoch.current()
        Epoch.objects.filter(pk=current.pk).update(number=manifest.number)
        epoch.lock_now(
            manifest.number,
            f"{REBUILT} snapshot {manifest.number} of {manifest.created_at[:19]}, and brokers may hold newer files",
        )
        reach("restore.inserted")
    _analyze()
    return counts


def _insert(file: IO[bytes], manifest: Manifest) -> dict[str, int]:
    counts: dict[str, int] = {}
    label, make, ended = "", None, False
    batch: list[models.Model] = []
    model: type[models.Model] | None = None

    def flush() -> None:
        if model is not None and batch:
            model._base_manager.bulk_create(batch)
            counts[label] += len(batch)
            batch.clear()

    for number, line in enumerate(_lines(file)):
        if number == 0:
            _check_head(line, manifest)
        elif isinstance(line, dict):
            flush()
            ended = "end" in line
            if ended:
                break
            label = line["table"]
            model, make = _maker(label, line["fields"])
            counts[label] = 0
        elif make is not None:
            batch.append(make(line))
            if len(batch) == BATCH:
                flush()
    if not ended or counts != dict(manifest.rows):
        raise SnapshotDamaged(f"snapshot {manifest.id}: it does not hold the rows that its manifest counts")
    return counts


def _lines(file: IO[bytes]) -> Iterator[Any]:
    with gzip.open(file, "rb") as unpacked:
        for line in unpacked:
            yield json.loads(line)


def _check_head(line: Any, manifest: Manifest) -> None:
    if (line.get("format"), line.get("version")) != (FORMAT, VERSION) or line.get("id") != str(manifest.id):
        raise SnapshotDamaged(f"snapshot {manifest.id}: this version cannot read it ({line.get('version')})")


def _maker(label: str, names: list[str]) -> tuple[type[models.Model], Any]:
    """The model, and what makes an instance of it from a list of values."""
    try:
        model = apps.get_model(label)
        by_name = {field.attname: field for field in model._meta.concrete_fields}
        fields = [by_name[name] for name in names]
    except (LookupError, FieldDoesNotExist) as error:
        raise SnapshotDamaged(
            f"the snapshot holds {label} in a shape that this version does not know ({error}); use the version of "
            "CloudStore that made it, or a later one"
        ) from None
    takes = [(f.target_field if isinstance(f, models.ForeignKey) else f).to_python for f in fields]

    def make(values: list[Any]) -> models.Model:
        given = zip(names, takes, values, strict=True)
        return model(**{name: None if value is None else take(value) for name, take, value in given})

    return model, make


def _analyze() -> None:
    """Tell PostgreSQL how many rows there are now: until it looks by itself, it plans for empty tables. SQLite
    plans without such figures."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


def _set_sequences(tables: list[type[models.Model]]) -> None:
    """New rows get numbers above those that came back."""
    statements = connection.ops.sequence_reset_sql(no_style(), tables)
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
