"""The end of a program: the faults cease, the providers come back, time passes. Then everything must be as it was
acknowledged, and nothing may be left to do."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

from accounts import quota
from accounts.quota import QuotaExceeded
from brokers import health, services
from replication import collect, orphans, reconcile, scrub
from replication.errors import ContentDamaged, ContentUnavailable, StateConflict, WriteRefused
from replication.models import Content, Event, Orphan, Replica
from tests.kit import counters
from vfs import fsck, recount, upload
from vfs.errors import VfsError
from vfs.models import Node, Upload, Version

if TYPE_CHECKING:
    from tests.machine.machine import Machine

READ_ERRORS = (ContentUnavailable, ContentDamaged)
REFUSALS = (WriteRefused, QuotaExceeded, StateConflict, VfsError)
# Seconds between the rounds: two polls, the dwells, the grace, two scans for orphans an age apart.
ROUNDS = (1, 20, 20, 150, 20, 20, 1000, 1000, 4000, 4000, 90_000, 4000, 180_000, 4000, 180_000, 4000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def node(node_id: uuid.UUID | None) -> Node:
    return Node.objects.select_related("version").get(pk=node_id)


def _round() -> dict[str, Any]:
    """Every worker once: -> what each did."""
    health.poll_due()
    swept = reconcile.sweep(3600, full=True)
    return {
        "sweep": (swept.actions, swept.blocked),
        "expired": upload.expire_uploads(),
        "collected": collect.collect(),
        "orphans": orphans.scan(),
    }


def bring_to_rest(machine: Machine) -> None:
    world = machine.world
    machine.readers.clear()
    machine.uploads.clear()
    world.restart()
    for place in world.places:
        world.come_back(place)
        place.late.clear()
        place.paused_until = 0.0
        services.set_enabled(place.pk, True)
        services.update_broker(place.pk, weight=1.0)
    for number, seconds in enumerate(ROUNDS):
        world.clock.advance(seconds=seconds)
        _round()
        if number == 3:
            world.settle_markers()
        if number == 6:
            scrub.scrub(everything=True)
        machine.nothing_is_lost()
    machine.the_tree_and_the_quota_are_as_told()
    _reads_back(machine)
    findings = fsck.check(full=True)
    assert not findings, "\n".join(map(str, findings))
    assert not world.unknown(), world.unknown()
    assert not Upload.objects.exists()
    assert not Orphan.objects.exists()
    assert not Content.objects.exclude(versions__isnull=False).exists()
    assert all(count.right for count in recount.recount(dry_run=True))
    usage = quota.usage(machine.user)
    assert (usage.used, usage.reserved) == (machine.tree.used, 0)
    _does_nothing(machine)


def _reads_back(machine: Machine) -> None:
    """Every file by its door, and every version."""
    for names in machine.tree.paths(folders=False):
        data = machine.tree.file(names)
        assert data is not None
        read = machine.drive.get(names)
        machine.check_read(read, data, certain=True)
        if read.body != data:
            counters.add(counters.LOST, len(data))
            raise AssertionError(f"{names} does not read back: {read.status}")
    for entry in machine.tree.entries.values():
        for number, data in enumerate(entry.versions, 1):
            content = Version.objects.get(node=entry.id, number=number).content
            found = b"".join(reader(content))
            assert found == data, f"version {number} of {entry.name} does not read back"


def reader(content: Content) -> Any:
    from replication.read import open_content

    return open_content(content).stream()


def _does_nothing(machine: Machine) -> None:
    """At rest a further pass changes nothing anywhere."""
    before = (Event.objects.count(), sorted(Replica.objects.values_list("pk", "state", "stored_at")))
    puts = [(p.driver.count("put"), p.driver.count("delete")) for p in machine.world.places]
    machine.world.clock.advance(seconds=60)
    did = _round()
    assert did["sweep"] == (0, {}), did
    assert (did["expired"], did["collected"].objects, did["collected"].contents) == (0, 0, 0), did
    assert (did["orphans"].orphans, did["orphans"].deleted) == (0, 0), did
    after = (Event.objects.count(), sorted(Replica.objects.values_list("pk", "state", "stored_at")))
    assert before == after
    assert puts == [(p.driver.count("put"), p.driver.count("delete")) for p in machine.world.places]
