"""Objects that no row knows: noted, and deleted only when seen again long after."""

from __future__ import annotations

import pytest

from brokers.errors import Unavailable
from brokers.models import Broker
from replication import orphans
from replication.models import Event, Orphan, Replica
from tests.brokers.conftest import faulty
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, memory_broker, replicas, store

pytestmark = pytest.mark.django_db
STRAY = "cs/ab/" + "ab" * 16


@pytest.fixture
def two(clock: VirtualClock) -> list[Broker]:
    return [memory_broker(name) for name in "ab"]


def test_an_orphan_goes_after_its_age(two: list[Broker], clock: VirtualClock) -> None:
    content = store(b"kept")
    Objects(two[0])[STRAY] = b"12345"
    Objects(two[0])["someone-elses/file"] = b"not ours"
    assert orphans.scan(dry_run=True).orphans == 1
    assert not Orphan.objects.exists()
    report = orphans.scan()
    assert (report.orphans, report.deleted) == (1, 0)
    clock.advance(hours=47)
    assert orphans.scan().deleted == 0
    clock.advance(hours=2)
    report = orphans.scan()
    assert (report.deleted, report.bytes) == (1, 5)
    assert STRAY not in Objects(two[0])
    assert "someone-elses/file" in Objects(two[0])
    assert len(replicas(content)) == 2
    assert Event.objects.filter(kind="orphan deleted").count() == 1
    assert orphans.scan().orphans == 0


def test_an_object_that_got_a_row_is_no_orphan(two: list[Broker], clock: VirtualClock) -> None:
    Objects(two[0])[STRAY] = b"12345"
    orphans.scan()
    segment = store(b"x").segments.get()
    Replica.objects.filter(segment=segment, broker=two[0]).update(key=STRAY, locator=STRAY)
    clock.advance(days=3)
    assert orphans.scan().deleted == 0
    assert STRAY in Objects(two[0])


def test_a_listing_that_fails_forgets_and_deletes_nothing(two: list[Broker], clock: VirtualClock) -> None:
    Objects(two[0])[STRAY] = b"12345"
    orphans.scan()
    clock.advance(days=3)
    with faulty(two[0]) as driver:
        driver.fail("list", Unavailable())
        report = orphans.scan()
        assert (report.failed, report.deleted) == (1, 0)
        driver.clear()
    assert Orphan.objects.count() == 1
