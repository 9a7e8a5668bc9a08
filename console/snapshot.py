"""Making snapshots of the metadata: every table of console/tables.py, as of one moment, as compressed JSON lines.

docs/format.md describes the lines. They do not depend on the database's kind: a snapshot of SQLite is restored into
PostgreSQL as well as into SQLite.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder

from brokers.failpoint import reach
from brokers.models import Broker
from console.tables import tables
from replication import snapshots, vault
from replication.models import Content, Snapshot

FORMAT = "cloudstore metadata"
VERSION = 1
# Lines that are compressed at a time.
LINES = 500


@contextlib.contextmanager
def one_moment() -> Iterator[None]:
    """A transaction that reads, in which every query sees the rows of the same moment, and that nobody waits for.
    Inside another transaction (of a test) it is that one."""
    if connection.in_atomic_block:
        yield
        return
    if connection.vendor == "sqlite":
        # BEGIN IMMEDIATE, which is right for everybody else, would keep all writers waiting.
        mode, connection.transaction_mode = connection.transaction_mode, "DEFERRED"  # type: ignore[attr-defined]
        try:
            with transaction.atomic():
                yield
        finally:
            connection.transaction_mode = mode  # type: ignore[attr-defined]
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


def _plain(value: object) -> Any:
    """What JSON has no form for."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    raise TypeError(f"{type(value).__name__} has no form in a snapshot")


def migrations() -> dict[str, str]:
    """The last applied migration of every app: the shape of the rows."""
    applied = sorted(MigrationRecorder(connection).applied_migrations())
    return dict(applied)


def lines(snapshot: Snapshot, counts: dict[str, int]) -> Iterator[str]:
    """The snapshot's lines without their ends; `counts` gets the number of rows of each table."""
    encode = json.JSONEncoder(default=_plain, separators=(",", ":"), ensure_ascii=False).encode
    yield encode(
        {
            "format": FORMAT,
            "version": VERSION,
            "id": snapshot.pk,
            "number": snapshot.number,
            "created_at": snapshot.created_at,
            "migrations": migrations(),
        }
    )
    for table in tables():
        yield encode({"table": table.label, "fields": table.names})
        counts[table.label] = 0
        for row in table.rows():
            counts[table.label] += 1
            yield encode(row)
    yield encode({"end": counts})


def key_versions() -> list[int]:
    """The versions of the master key that wrap something in the rows as they are now."""
    contents = Content.objects.order_by().values_list("key_version", flat=True).distinct()
    brokers = Broker.objects.order_by().values_list("secrets_key_version", flat=True).distinct()
    return sorted({*contents, *(version for version in brokers if version is not None)})


def make() -> Snapshot:
    """Make a snapshot now: -> its row, standing and read back. Raises SnapshotRefused. Outside any transaction;
    whatever ends it early leaves a row that `snapshots.retain` cleans up after."""
    snapshot = snapshots.begin()
    reach("snapshot.begun")
    spool = vault.Spool(snapshot.pk)
    try:
        counts: dict[str, int] = {}
        with one_moment():
            _fill(spool, snapshot, counts)
            versions = key_versions()
        manifest = spool.manifest(snapshot, counts, versions)
        snapshot.parts, snapshot.size = len(spool.parts), spool.size
        snapshot.rows = sum(counts.values())
        snapshot.master_keys = sorted({*versions, spool.key_version})
        stored = vault.store(snapshot, spool, manifest)
        reach("snapshot.stored")
        snapshots.finish(snapshot, stored)
    except Exception:
        snapshots.abandon(snapshot)
        raise
    finally:
        spool.close()
    return snapshot


def _fill(spool: vault.Spool, snapshot: Snapshot, counts: dict[str, int]) -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: with the head and the tail of a gzip file
    batch: list[str] = []
    for line in lines(snapshot, counts):
        batch.append(line)
        if len(batch) == LINES:
            spool.write(packer.compress(("\n".join(batch) + "\n").encode()))
            batch.clear()
    batch.append("")
    spool.write(packer.compress("\n".join(batch).encode()))
    spool.write(packer.flush())
    spool.finish()
