"""Health: down with one poll, up with two, and what a marker tells."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest
from django.db import connection, transaction

from brokers import health, marker
from brokers import open as open_module
from brokers.drivers import memory
from brokers.errors import Corrupt, NotFound, OutOfSpace, ReadOnly, Unauthorized, Unavailable
from brokers.layers.guard import IoInTransaction
from brokers.models import Broker, BrokerEvent, Health
from brokers.names import MARKER_NAME
from brokers.services import add_broker, set_enabled
from tests.brokers.conftest import faulty

pytestmark = pytest.mark.django_db


def kinds(broker: Broker) -> list[str]:
    return list(BrokerEvent.objects.filter(broker=broker).order_by("id").values_list("kind", flat=True))


def test_a_new_broker_is_online_at_once(clock, settings, memory_broker):
    assert memory_broker.health == Health.ONLINE
    assert memory_broker.writable and memory_broker.readable and memory_broker.offline_since is None
    assert memory_broker.check_at == clock.now() + timedelta(seconds=settings.CLOUDSTORE_HEALTH_INTERVAL)
    assert kinds(memory_broker) == ["added", "online"]


def test_down_with_one_poll_and_up_with_two(clock, memory_broker):
    with faulty(memory_broker) as broken:
        broken.fail("get", Unavailable("no route"))
        clock.advance(seconds=300)
        down = health.poll(memory_broker.pk)
        assert (down.health, down.health_reason, down.health_detail) == ("offline", "unavailable", "no route")
        assert down.offline_since == clock.now() and not down.readable
        since = down.health_since
        broken.clear()
        clock.advance(seconds=15)
        first = health.poll(memory_broker.pk)
        assert first.health == Health.OFFLINE and first.successes == 1 and first.health_since == since
        assert first.check_at == clock.now() + timedelta(seconds=15)
        clock.advance(seconds=15)
        up = health.poll(memory_broker.pk)
    assert up.health == Health.ONLINE and up.health_reason == "" and up.health_since == clock.now()
    assert kinds(memory_broker) == ["added", "online", "offline", "online"]


def test_a_broker_that_flaps_stays_down(clock, memory_broker):
    with faulty(memory_broker) as broken:
        for _ in range(4):
            broken.fail("get", Unavailable("no route"))
            clock.advance(seconds=15)
            assert health.poll(memory_broker.pk).health == Health.OFFLINE
            broken.clear()
            clock.advance(seconds=15)
            assert health.poll(memory_broker.pk).health == Health.OFFLINE
    assert kinds(memory_broker).count("offline") == 1


def test_the_polls_of_a_broken_broker_back_off_to_the_interval(clock, settings, memory_broker):
    settings.CLOUDSTORE_HEALTH_INTERVAL = 100
    waits = []
    with faulty(memory_broker) as broken:
        broken.fail("get", Unauthorized("revoked"))
        for _ in range(6):
            row = health.poll(memory_broker.pk)
            waits.append((row.check_at - clock.now()).total_seconds())
            clock.advance(seconds=waits[-1])
    assert waits == [15, 30, 60, 100, 100, 100]


@pytest.mark.parametrize(
    ("error", "state"), [(ReadOnly("mounted ro"), Health.READ_ONLY), (OutOfSpace("full"), Health.FULL)]
)
def test_a_place_that_takes_nothing_can_still_be_read(clock, memory_broker, error, state):
    with faulty(memory_broker) as broken:
        broken.fail("probe", error)
        row = health.poll(memory_broker.pk)
        assert row.health == state and row.readable and not row.writable and row.offline_since is None
        assert row.health_reason == error.code
        broken.clear()
        assert health.poll(memory_broker.pk).health == state
        assert health.poll(memory_broker.pk).health == Health.ONLINE


def test_little_room_is_full_and_a_little_more_is_still_full(clock, memory_broker):
    def room(megabytes: int) -> dict[str, int]:
        return {"total": 10**10, "used": 0, "available": megabytes * 1024 * 1024}

    with faulty(memory_broker) as broken:
        broken.capacity(room(63))
        row = health.poll(memory_broker.pk)
        assert (
            row.health == Health.FULL and row.available == 63 * 1024 * 1024 and row.measured_at == clock.now()
        )
        broken.clear()
        broken.capacity(room(100))
        for _ in range(3):
            assert health.poll(memory_broker.pk).health == Health.FULL
        broken.clear()
        broken.capacity(room(200))
        health.poll(memory_broker.pk)
        assert health.poll(memory_broker.pk).health == Health.ONLINE


def test_unknown_capacity_does_not_hurt(clock, memory_broker):
    with faulty(memory_broker) as broken:
        broken.fail("info", Unavailable("busy"))
        assert health.poll(memory_broker.pk).health == Health.ONLINE


def test_a_hanging_broker_is_offline_in_time(memory_broker, short_limits):
    with faulty(memory_broker) as broken:
        broken.hang("get")
        row = health.poll(memory_broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "timeout")


def test_a_wrong_place_is_offline_and_is_never_written_to(clock, memory_broker):
    space = memory.space("one")
    other = uuid.uuid4()
    space.objects[MARKER_NAME] = (marker.content(other), clock.now())
    before = dict(space.objects)
    for _ in range(3):
        clock.advance(hours=1)
        row = health.poll(memory_broker.pk)
        assert (row.health, row.health_reason) == (Health.OFFLINE, "wrong_marker")
    assert str(other) in row.health_detail
    assert space.objects == before


def test_a_damaged_marker_is_offline(clock, memory_broker):
    memory.space("one").objects[MARKER_NAME] = (b"\0garbage", clock.now())
    row = health.poll(memory_broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "wrong_marker")


def test_objects_without_a_marker_are_offline_for_ever(clock, memory_broker):
    space = memory.space("one")
    space.objects["cs/ab/" + "ab" * 16] = (b"x", clock.now())
    del space.objects[MARKER_NAME]
    for _ in range(3):
        clock.advance(hours=1)
        row = health.poll(memory_broker.pk)
        assert (row.health, row.health_reason) == (Health.OFFLINE, "marker_missing")
    assert row.blank_since is None and health.adopted(row) is None and MARKER_NAME not in space.objects


def test_a_blank_place_is_adopted_after_the_dwell(clock, settings, memory_broker):
    settings.CLOUDSTORE_BLANK_DWELL = 120
    memory.clear("one")
    first = health.poll(memory_broker.pk)
    assert (first.health, first.health_reason) == (Health.OFFLINE, "blank")
    assert first.check_at == clock.now() + timedelta(seconds=15)
    clock.advance(seconds=119)
    assert health.poll(memory_broker.pk).health_reason == "blank"
    clock.advance(seconds=1)
    row = health.poll(memory_broker.pk)
    assert (
        row.health == Health.ONLINE and health.adopted(row) == clock.now() and row.health_since == clock.now()
    )
    assert memory.space("one").objects[MARKER_NAME][0] == marker.content(memory_broker.marker)
    assert kinds(memory_broker) == ["added", "online", "offline", "blank_adopted", "online"]
    assert row.blank_since is None or health.poll(row.pk).blank_since is None


def test_a_blank_place_needs_two_polls_even_without_a_dwell(clock, settings, memory_broker):
    settings.CLOUDSTORE_BLANK_DWELL = 0
    memory.clear("one")
    assert health.poll(memory_broker.pk).health == Health.OFFLINE
    assert health.poll(memory_broker.pk).health == Health.ONLINE


def test_an_outage_in_between_starts_the_dwell_anew(clock, settings, memory_broker):
    settings.CLOUDSTORE_BLANK_DWELL = 120
    memory.clear("one")
    health.poll(memory_broker.pk)
    clock.advance(seconds=60)
    with faulty(memory_broker) as broken:
        broken.fail("get", Unavailable("down"))
        assert health.poll(memory_broker.pk).blank_since is None
    clock.advance(seconds=100)
    assert health.poll(memory_broker.pk).health_reason == "blank"
    clock.advance(seconds=100)
    assert health.poll(memory_broker.pk).health_reason == "blank"
    clock.advance(seconds=20)
    assert health.poll(memory_broker.pk).health == Health.ONLINE


def test_a_place_that_cannot_be_marked_stays_down(clock, settings, memory_broker):
    settings.CLOUDSTORE_BLANK_DWELL = 0
    memory.clear("one")
    health.poll(memory_broker.pk)
    with faulty(memory_broker) as broken:
        broken.fail("put", ReadOnly("mounted ro"))
        row = health.poll(memory_broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "read_only")


def test_only_what_speaks_of_the_place_makes_a_poll_due(clock, memory_broker):
    due = memory_broker.check_at
    health.note_failure(memory_broker.pk, Corrupt("bits"))
    assert Broker.objects.get(pk=memory_broker.pk).check_at == due
    health.note_failure(memory_broker.pk, NotFound("gone"))
    assert Broker.objects.get(pk=memory_broker.pk).check_at == clock.now()


def test_only_what_is_due_is_polled_and_a_hanging_one_delays_no_other(clock, short_limits):
    one, _two, three = (add_broker(n, "memory", n, {"space": n}) for n in ("a", "b", "c"))
    assert health.poll_due() == 0
    clock.advance(seconds=300)
    set_enabled(three.pk, False)
    memory.clear("c")
    with faulty(one) as broken:
        broken.hang("get")
        assert health.poll_due() == 2
    assert [b.health for b in Broker.objects.order_by("name")] == ["offline", "online", "online"]
    assert health.poll_due() == 0


def test_a_disabled_broker_is_left_alone(clock, memory_broker):
    set_enabled(memory_broker.pk, False)
    memory.clear("one")
    row = health.poll(memory_broker.pk)
    assert row.health == Health.ONLINE and not row.readable and not row.writable
    assert set_enabled(memory_broker.pk, True).health_reason == "blank"


def test_a_poll_that_was_overtaken_writes_nothing(clock, memory_broker):
    stale = Broker.objects.get(pk=memory_broker.pk)
    clock.advance(seconds=10)
    health.poll(memory_broker.pk)
    seen = health.Observation(Health.OFFLINE, "unavailable", "old news")
    assert health._settle(stale, seen).health == Health.ONLINE
    assert "offline" not in kinds(memory_broker)


def test_polls_refuse_to_run_in_a_transaction(memory_broker):
    with transaction.atomic(), pytest.raises(IoInTransaction):
        health.poll(memory_broker.pk)
    with transaction.atomic(), pytest.raises(IoInTransaction):
        health.poll_due()


def test_credentials_that_do_not_open_are_an_outage_with_a_reason(clock, memory_broker):
    Broker.objects.filter(pk=memory_broker.pk).update(
        sealed_secrets=b"x" * 60, secrets_key_version=1, revision=2
    )
    row = health.poll(memory_broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "misconfigured")


def test_polls_of_many_threads_come_to_one_result(clock, memory_broker):
    """The observation runs on threads; only the rows decide."""
    opened = open_module.open_broker(memory_broker)
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(health.observe(memory_broker, opened))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.health for s in seen} == {Health.ONLINE}


@pytest.mark.django_db(transaction=True)
def test_two_processes_that_poll_at_once_write_one_change(clock):
    """Real connections: both look, both try to write, one does."""
    broker = add_broker("Memory", "memory", "memory", {"space": "one"})
    clock.advance(seconds=300)
    barrier = threading.Barrier(4)
    rows, errors = [], []

    def work() -> None:
        try:
            barrier.wait()
            rows.append(health.poll(broker.pk))
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    with faulty(broker) as broken:
        broken.fail("get", Unauthorized("revoked"))
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors and {row.health for row in rows} == {Health.OFFLINE}
    assert kinds(broker) == ["added", "online", "offline"]
