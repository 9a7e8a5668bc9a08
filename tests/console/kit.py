"""What the tests of recovery share: commands, crashes, an empty database."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import transaction
from django.db.models import QuerySet

from brokers import failpoint
from brokers import open as open_module
from brokers.drivers import memory
from brokers.models import Broker
from console import tables
from console.restore import _set_sequences
from replication import epoch
from replication.read import open_content
from vfs.models import Node, Version


class Crash(BaseException):
    """The process dies."""


@contextmanager
def crash_at(name: str, time: int = 1) -> Iterator[None]:
    """Die when this failpoint is reached for the `time`-th time."""
    count = 0

    def hook(reached: str) -> None:
        nonlocal count
        if before is not None:
            before(reached)
        if reached == name:
            count += 1
            if count == time:
                raise Crash

    before = failpoint.install(hook)
    try:
        yield
    finally:
        failpoint.install(before)


def run(command: str, *arguments: str) -> Any:
    """A command's JSON."""
    out = io.StringIO()
    call_command(command, *arguments, "--json", stdout=out, stderr=io.StringIO())
    return json.loads(out.getvalue())


def places(*brokers: Broker) -> list[str]:
    """The arguments that name these brokers to `rebuild`."""
    arguments: list[str] = []
    for broker in brokers:
        options = [f"{name}={value}" for name, value in broker.options.items()]
        arguments += ["--broker", broker.name, broker.driver, *options]
    return arguments


def new_process() -> None:
    """Forget what a process remembers."""
    open_module.forget()
    epoch._told_at = None


def save() -> dict[str, list[dict[str, Any]]]:
    """The database as it is, every row of every table (a dump)."""
    labels = [*tables.TABLES, *tables.LEFT_OUT]
    return {label: list(tables.Table(label).model._base_manager.values()) for label in labels}


def load(dump: dict[str, list[dict[str, Any]]]) -> None:
    """Put an older database back. The process starts anew."""
    drop_database()
    with transaction.atomic():
        for label, rows in dump.items():
            model = tables.Table(label).model
            base = model._base_manager.all()
            base._raw_delete(base.db)
            model._base_manager.bulk_create([model(**row) for row in rows])
        _set_sequences([tables.Table(label).model for label in dump])
    new_process()


def drop_database() -> None:
    """Empty tables, as after `migrate` in a new database. The process starts anew; places in memory stay."""
    spaces = dict(memory._spaces)
    new_process()
    call_command("flush", interactive=False, verbosity=0, inhibit_post_migrate=False)
    memory._spaces.update(spaces)
    ContentType.objects.clear_cache()


def tree() -> dict[str, str]:
    """Every live file's path with its owner -> the SHA-256 of its bytes as they are read now."""
    names = {pk: (parent, name) for pk, parent, name in Node.objects.values_list("pk", "parent_id", "name")}
    found = {}
    rows = Node.objects.filter(kind="file").select_related("version__content", "owner")
    for node in rows:
        path, at = [], node.pk
        while at is not None:
            parent, name = names[at]
            path.append(name)
            at = parent
        assert node.version is not None
        found[f"{node.owner.username}:{'/'.join(reversed(path))}"] = node.version.content.sha256
    return found


def unread(versions: QuerySet[Version] | None = None) -> list[str]:
    """Versions (of all) whose bytes do not come back as their hash says."""
    wrong = []
    rows = Version.objects.all() if versions is None else versions
    for version in list(rows.select_related("content")):
        digest = hashlib.sha256()
        for piece in open_content(version.content).stream():
            digest.update(piece)
        if digest.hexdigest() != version.content.sha256:
            wrong.append(str(version.pk))
    return wrong


def objects_of(broker: Broker) -> set[str]:
    return {name for name in memory.space(broker.options["space"]).objects if name.startswith("cs/")}
