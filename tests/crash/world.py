"""A small drive whose whole state can be put back: the database's rows, three folders of objects, the clock.

`World.settle` is what the product's own schedule does after a restart, with the time it takes going by on the
virtual clock; `World.judge` is the oracle.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.cache import cache
from django.db import connection, connections, transaction
from django.test import Client
from rest_framework.test import APIClient

from accounts import tokens
from accounts.models import User
from brokers import entropy, health
from brokers import open as open_module
from brokers.drivers.local import TEMPORARY
from brokers.models import Broker, Health
from brokers.names import OBJECT_PREFIX
from brokers.services import add_broker
from replication import collect, orphans, policy, reconcile, scrub, snapshots, transfer, vault
from replication import read as read_module
from replication import write as write_module
from replication.models import Content, Replica, Segment, Snapshot
from replication.read import open_content
from tests.cast import PASSWORD
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.kit.effects import Effects, one_thread
from vfs import fsck, tree
from vfs.access import locate
from vfs.models import Node, Version
from vfs.upload import expire_uploads

SEGMENT = 1024
DATA = {"one": b"one " * 500, "two": b"two " * 200}  # of 2 segments, and of 1
# Tables of other apps that no operation writes to.
ELSEWHERE = {"auth", "contenttypes", "admin"}

State = dict[str, Any]


class EvenSource(entropy.SystemSource):
    """Placement without chance; keys and salts stay random."""

    def random(self) -> float:
        return 0.5


@dataclass
class Saved:
    """A state of the world."""

    rows: dict[str, tuple[list[str], list[tuple[Any, ...]]]]
    objects: dict[str, bytes]
    elapsed: float


@dataclass
class World:
    root: Path
    clock: VirtualClock
    effects: Effects
    notes: dict[str, Any] = field(default_factory=dict)  # what an operation remembers between its steps

    # -- making it ------------------------------------------------------------------------------------

    def build(self) -> None:
        for name in "abc":
            add_broker(name, "local", f"domain-{name}", {"root": str(self.root / name), "sync": False})
        self.alice = User.objects.create_user("alice", "alice@example.com", PASSWORD)
        self.top = tree.root_of(self.alice)
        token = tokens.create(self.alice, "test", tokens.SCOPES)[1]
        self.api = APIClient(raise_request_exception=False)
        self.api.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
        self.browser = Client(raise_request_exception=False)
        self.browser.force_login(self.alice)
        policy.current()
        # The first request notes the use of the token, which later ones do not repeat within the minute.
        assert self.api.get("/api/v1/account").status_code == 200
        reconcile.sweep()

    def put(self, path: str, data: bytes) -> Any:
        """Through the door, without any fault."""
        answer = self.api.generic("PUT", f"/api/v1/files/{path}", data, "application/octet-stream")
        assert answer.status_code in {200, 201}, answer.content
        return answer

    def node(self, path: str) -> Node:
        return tree.resolve(self.alice, path.split("/"))

    def object_of(self, path: str, place: int = 0) -> tuple[Path, Replica]:
        """The file of one replica (the `place`-th by broker's name) of a drive's file's first segment."""
        version = self.node(path).version
        assert version is not None
        rows = Replica.objects.filter(segment__content=version.content_id, segment__position=0)
        replica = rows.select_related("broker").order_by("broker__name")[place]
        return self.root / replica.broker.name / replica.locator, replica

    # -- putting it back ------------------------------------------------------------------------------

    def save(self) -> Saved:
        rows = {}
        with connection.cursor() as cursor:
            for table in _tables():
                cursor.execute(f'SELECT * FROM "{table}"')
                columns = [column[0] for column in cursor.description]
                rows[table] = (columns, [tuple(row) for row in cursor.fetchall()])
        objects = {str(path): path.read_bytes() for path in self.files()}
        return Saved(rows, objects, self.clock.monotonic())

    def restore(self, saved: Saved) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            for table, (columns, rows) in saved.rows.items():
                cursor.execute(f'DELETE FROM "{table}"')
                if rows:
                    names = ", ".join(f'"{column}"' for column in columns)
                    marks = ", ".join(["%s"] * len(columns))
                    cursor.executemany(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', rows)
        there = {str(path): path for path in self.files()}
        for name in there.keys() - saved.objects.keys():
            there[name].unlink()
        for name, data in saved.objects.items():
            if name not in there or there[name].read_bytes() != data:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(data)
        self.clock._elapsed = saved.elapsed
        open_module.forget()
        cache.clear()

    def files(self) -> Iterator[Path]:
        return (path for path in self.root.rglob("*") if path.is_file())

    # -- the schedule ---------------------------------------------------------------------------------

    def restart(self) -> None:
        """A new process knows nothing."""
        open_module.forget()
        cache.clear()

    def settle(self, *, all_bytes: bool) -> None:
        """Every sweep, often enough, with all dwells and graces going by. `all_bytes`: the scrub has come around
        as well."""
        self.clock.advance(hours=49)
        expire_uploads()
        # A poll of a broker that is well and has nothing to tidy up changes nothing.
        while Broker.objects.exclude(health=Health.ONLINE).exists() or self.left_behind():
            health.poll_due()
            self.clock.advance(minutes=1)
        if all_bytes:
            scrub.scrub(everything=True)
        reconcile.run_to_rest()
        self.clock.advance(hours=1)
        if Segment.objects.exclude(check_at=None).exists():
            reconcile.run_to_rest()
        collect.collect()
        if Snapshot.objects.exists():
            snapshots.retain()
        if self.unknown_objects():
            orphans.scan()

    # -- the oracle -----------------------------------------------------------------------------------

    def state(self) -> State:
        """What a user and the operator see: every file with the bytes of all its versions, the trash, the
        rules."""
        found: State = {"copies": policy.current().copies, "live": {}, "trash": {}}
        found["snapshot"] = bool(snapshots.standing())
        found["brokers"] = {b.name: "draining" if b.draining else "used" for b in Broker.objects.all()}
        for node in Node.objects.exclude(parent=None).order_by("pk"):
            where = found["trash" if node.trashed_at else "live"]
            where[locate(node).path] = [self.read(version) for version in node.versions.order_by("number")]
        return found

    def read(self, version: Version) -> bytes:
        return b"".join(open_content(version.content).stream())

    def unknown_objects(self) -> list[str]:
        """Objects on brokers that no row knows. There are none at any moment: a key is committed before its
        object."""
        known: set[str] = set()
        for name, key, locator in Replica.objects.values_list("broker__name", "key", "locator"):
            known |= {f"{name}/{key}", f"{name}/{locator}"}
        # What a broker left that was removed by force is nobody's.
        names = set(Broker.objects.values_list("name", flat=True))
        files = (path.relative_to(self.root) for path in self.files())
        there = (str(path) for path in files if path.parts[0] in names)
        return sorted(n for n in there if n.partition("/")[2].startswith(OBJECT_PREFIX) and n not in known)

    def left_behind(self) -> list[str]:
        """Temporary files of writers that died."""
        return [str(path) for path in self.root.glob(f"*/{TEMPORARY}/*")]

    def intact(self) -> dict[int, int]:
        """How many brokers hold a segment's object undamaged, whatever the rows say, of sealed contents."""
        checksums = dict(
            Segment.objects.filter(content__state=Content.State.SEALED).values_list("checksum", "pk")
        )
        count = dict.fromkeys(checksums.values(), 0)
        for path in self.files():
            segment = checksums.get(hashlib.sha256(path.read_bytes()).hexdigest())
            if segment is not None:
                count[segment] += 1
        return count

    def complaints(self, *states: State) -> list[str]:
        """What is wrong with the world at rest, which must be one of `states`."""
        wrong = [f"fsck: {finding}" for finding in fsck.check(full=True)]
        seen = self.state()
        counters.add(counters.ACKNOWLEDGED, sum(map(len, _contents(seen))))
        if seen not in states:
            wrong.append(f"the drive is {_short(seen)}, not {' or '.join(map(_short, states))}")
            counters.add(counters.LOST)
        wrong += [f"unknown object {name}" for name in self.unknown_objects()]
        wrong += [f"left behind: {name}" for name in self.left_behind()]
        return wrong + _snapshots() + self._idle()

    def _idle(self) -> list[str]:
        """A second pass has nothing to do: no row changes, no object comes or goes."""
        with self.effects.watch():
            done = {
                "expired": expire_uploads(),
                "actions": reconcile.run_to_rest().actions,
                "collected": collect.collect().contents + collect.collect().objects,
                "snapshots dropped": snapshots.retain() if Snapshot.objects.exists() else 0,
                "puts and deletes": self.effects.count("put", "delete"),
            }
        return [f"a second pass finds work: {count} {what}" for what, count in done.items() if count]


def _snapshots() -> list[str]:
    """Every snapshot with a row stands, and reads back whole."""
    wrong = [f"snapshot {s}" for s in Snapshot.objects.exclude(state=Snapshot.State.STANDING)]
    if not Snapshot.objects.exists():
        return wrong
    there = [vault.on_broker(broker) for broker in Broker.objects.all()]
    for snapshot in Snapshot.objects.filter(state=Snapshot.State.STANDING):
        copies = [found[snapshot.pk] for found in there if snapshot.pk in found]
        with vault.read(vault.read_manifest(copies[0]), copies):
            pass
    return wrong


def _tables() -> list[str]:
    models = apps.get_models(include_auto_created=True)
    return [m._meta.db_table for m in models if m._meta.app_label not in ELSEWHERE and m._meta.managed]


def _contents(state: State) -> list[bytes]:
    return [data for part in ("live", "trash") for versions in state[part].values() for data in versions]


def _short(state: State) -> str:
    def words(files: dict[str, list[bytes]]) -> str:
        return ", ".join(
            f"{path}: {[hashlib.sha256(data).hexdigest()[:6] for data in versions]}"
            for path, versions in sorted(files.items())
        )

    return f"<{state['copies']} copies; {words(state['live'])}; trash {words(state['trash'])}>"


@contextmanager
def world(root: Path, clock: VirtualClock, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A fresh drive. No fsync: processes die here, the machine does not."""
    root.mkdir(parents=True)
    settings.CLOUDSTORE_LOCAL_ROOTS = [root]
    settings.CLOUDSTORE_SNAPSHOT_KEEP = 2
    monkeypatch.setattr(write_module, "SEGMENT_SIZE", SEGMENT)
    # Who is read from depends on nothing but the rows, so that every run has the same effects.
    monkeypatch.setattr(transfer, "latency", lambda _broker: 0.0)
    monkeypatch.setattr(read_module, "PATIENCE", 120.0)
    effects = Effects()
    options = connections["default"].settings_dict["OPTIONS"]
    if "init_command" in options:
        monkeypatch.setitem(
            options, "init_command", options["init_command"].replace("synchronous=FULL", "synchronous=OFF")
        )
        connections.close_all()
    source = entropy.install(EvenSource())
    with ExitStack() as stack:
        stack.callback(entropy.install, source)
        stack.callback(open_module.forget)
        stack.enter_context(one_thread())
        stack.enter_context(effects.installed())
        made = World(root, clock, effects)
        made.build()
        yield made
    shutil.rmtree(root)
    connections.close_all()
