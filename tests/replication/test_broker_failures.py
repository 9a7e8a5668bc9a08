"""One of two brokers fails in every way that the promise covers: reads are right or refused, never wrong; writes
follow the rule of W; health shows it within one poll; when it is back, reconcile comes to rest with all copies
verified, and then does nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from brokers import open as open_module
from brokers.errors import OutOfSpace, ReadOnly, Timeout, Unauthorized, Unavailable
from brokers.health import poll
from brokers.layers.call import LIMITS, Limit
from brokers.models import Broker, Health
from brokers.services import add_broker
from brokers.testing.faulty import FaultyBroker
from replication import contents, policy, reconcile, scrub
from replication.collect import collect
from replication.errors import ContentUnavailable, WriteRefused
from replication.fsck import check
from replication.models import Content, Replica
from replication.seal import FRAME_SIZE, SEGMENT_SIZE, TAG_SIZE
from replication.write import ContentWriter
from tests.brokers.conftest import faulty
from tests.kit.clock import VirtualClock
from tests.replication.kit import State, copies, load, memory_broker, replicas, store

pytestmark = pytest.mark.django_db


@pytest.fixture
def two(tmp_path: Path, settings: Any) -> list[Broker]:
    top = Path(os.path.realpath(tmp_path))
    settings.CLOUDSTORE_LOCAL_ROOTS = [top]
    return [add_broker(n, "local", f"domain-{n}", {"root": str(top / n)}) for n in ("a", "b")]


def codes() -> set[str]:
    return {f.code for f in check(full=True)} - {"unreferenced"}


# -- the ways to fail ---------------------------------------------------------------------------------


@contextmanager
def renamed_away(broker: Broker) -> Iterator[None]:
    root = Path(broker.options["root"])
    away = root.with_name(root.name + ".away")
    root.rename(away)
    try:
        yield
    finally:
        away.rename(root)


@contextmanager
def replaced_by_an_empty_folder(broker: Broker) -> Iterator[None]:
    """As when a disk is not mounted: the folder is there, and nothing in it."""
    root = Path(broker.options["root"])
    away = root.with_name(root.name + ".away")
    root.rename(away)
    root.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(root)
        away.rename(root)


def scripted(script: Callable[[FaultyBroker], object]) -> Callable[[Broker], AbstractContextManager[None]]:
    @contextmanager
    def failing(broker: Broker) -> Iterator[None]:
        with faulty(broker) as driver:
            script(driver)
            yield
            driver.clear()

    return failing


def _read_only(driver: FaultyBroker) -> None:
    driver.fail("put", ReadOnly())
    driver.fail("delete", ReadOnly())
    driver.fail("probe", ReadOnly())


def _full(driver: FaultyBroker) -> None:
    driver.fail("put", OutOfSpace())
    driver.fail("probe", OutOfSpace())


def _garbage(driver: FaultyBroker) -> None:
    driver.swap("get", b"<html>It works!</html>" * 20_000)


@contextmanager
def hung(broker: Broker) -> Iterator[None]:
    """No call ends. The limits are shorter than in the product, and long enough for a busy machine."""
    limits = {name: Limit(1.0, 1.0) for name in LIMITS}
    with open_module.wrap(broker.pk, limits=limits), scripted(lambda d: d.hang("*"))(broker):
        yield


FAILURES: dict[str, tuple[Callable[[Broker], AbstractContextManager[None]], Health]] = {
    "renamed away": (renamed_away, Health.OFFLINE),
    "replaced by an empty folder": (replaced_by_an_empty_folder, Health.OFFLINE),
    "read-only": (scripted(_read_only), Health.READ_ONLY),
    "full": (scripted(_full), Health.FULL),
    "hung": (hung, Health.OFFLINE),
    "garbage": (scripted(_garbage), Health.OFFLINE),
    "down": (scripted(lambda d: d.fail("*", Unavailable("down"))), Health.OFFLINE),
    "revoked": (scripted(lambda d: d.fail("*", Unauthorized("revoked"))), Health.OFFLINE),
    "slow to death": (scripted(lambda d: d.fail("*", Timeout("slow"))), Health.OFFLINE),
}


@pytest.mark.parametrize("name", FAILURES)
def test_one_of_two_fails_and_returns(two: list[Broker], clock: VirtualClock, name: str) -> None:
    failing, health = FAILURES[name]
    small, large = os.urandom(1000), os.urandom(SEGMENT_SIZE + 5000)
    before = [(store(small), small), (store(large), large)]
    broken = two[0]
    writes_refused = health in (Health.OFFLINE, Health.READ_ONLY, Health.FULL)

    with failing(broken):
        # Reads go on before anything is known of the failure, and after.
        for content, data in before:
            assert load(content) == data
        assert poll(broken.pk).health == health, "known within one poll"
        for content, data in before:
            assert load(content) == data
            assert load(content, 10, 900) == data[10:900]
        if writes_refused:
            with pytest.raises(WriteRefused):
                store(b"needs two")
        policy.change(allow_degraded=True)
        degraded = (store(b"one is enough now"), b"one is enough now")
        policy.change(allow_degraded=False)
        assert copies(degraded[0]) == 1
        reconcile.run_to_rest()
        assert Replica.objects.filter(state=State.LOST).count() == 0, "an outage is never a loss"

    for _ in range(3):
        clock.advance(minutes=6)
        poll(broken.pk)
    assert Broker.objects.get(pk=broken.pk).health == Health.ONLINE
    for _ in range(3):
        reconcile.run_to_rest()
        clock.advance(hours=1)
        scrub.scrub(everything=True)
        collect()
    for content, data in [*before, degraded]:
        assert copies(content) == 2
        assert load(content) == data
        assert all(r.verified_at for r in replicas(content))
    assert reconcile.run_to_rest().actions == 0
    assert codes() == set()


def test_both_away_is_an_outage_in_words(two: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x" * 1000)
    with renamed_away(two[0]), renamed_away(two[1]):
        for broker in two:
            poll(broker.pk)
        with pytest.raises(ContentUnavailable):
            load(content)
        with pytest.raises(WriteRefused):
            store(b"y")
        assert contents.copy_status([content.pk])[content.pk].stored == 0
    assert load(content) == b"x" * 1000


# -- one call that goes wrong ---------------------------------------------------------------------------


@pytest.fixture
def three(clock: VirtualClock) -> list[Broker]:
    return [memory_broker(name) for name in "abc"]


PUT_FAULTS: dict[str, Callable[[FaultyBroker], object]] = {
    "lost before the effect": lambda d: d.fail("put", Unavailable()),
    "stored, but the answer is lost": lambda d: d.fail("put", Timeout(), after=True),
    "accepted, and not there": lambda d: d.lose(),
    "cut short": lambda d: d.truncate("put", 100),
    "stored empty": lambda d: d.truncate("put", 0),
    "out of space": lambda d: d.fail("put", OutOfSpace()),
    "read-only": lambda d: d.fail("put", ReadOnly()),
    "the wrong size is told": lambda d: d.lie(size=7),
    "another checksum is told": lambda d: d.lie(checksum="sha256:" + "0" * 64),
    "cannot be asked afterwards": lambda d: d.fail("stat", Unavailable()),
}


@pytest.mark.parametrize("fault", PUT_FAULTS)
@pytest.mark.parametrize("when", ["always", "in the middle"])
def test_a_failed_put_is_handed_off(three: list[Broker], clock: VirtualClock, fault: str, when: str) -> None:
    """The upload is acknowledged with two verified copies all the same, and nothing stays behind."""
    data = os.urandom(3 * SEGMENT_SIZE + 10)
    Broker.objects.filter(name="c").update(weight=1e-9)
    with faulty(three[0]) as driver:
        if when == "always":
            PUT_FAULTS[fault](driver)
            content = store(data)
        else:
            content = contents.create()
            writer = ContentWriter(content)
            writer.write(data[: 2 * SEGMENT_SIZE + 5])
            PUT_FAULTS[fault](driver)
            writer.write(data[2 * SEGMENT_SIZE + 5 :])
            written = writer.finish()
            with transaction.atomic():
                contents.seal(content.pk, written)
            content.refresh_from_db()
        assert copies(content) == 2
        assert load(content) == data
        driver.clear()
    for _ in range(4):
        clock.advance(minutes=10)
        for broker in three:
            poll(broker.pk)
        reconcile.run_to_rest()
        collect()
    assert copies(content) == 2
    assert codes() == set()


def test_a_put_stored_under_a_lost_answer_leaves_one_object(three: list[Broker], clock: VirtualClock) -> None:
    """Tried again under the same key, the second answer counts: one object, one row."""
    with faulty(three[0]) as first, faulty(three[1]) as second:
        for driver in (first, second):
            driver.fail("put", Timeout(), on=1, after=True)
        content = store(b"once")
    assert copies(content) == 2
    assert not Replica.objects.exclude(state=State.STORED).exists()
    assert codes() == set()


GET_FAULTS: dict[str, Callable[[FaultyBroker], object]] = {
    "flipped bit": lambda d: d.flip("get", 300_000),
    "first byte": lambda d: d.flip("get", 0),
    "last byte": lambda d: d.flip("get", -1),
    "cut short": lambda d: d.truncate("get", 1000),
    "empty": lambda d: d.truncate("get", 0),
    "cut at a frame's end": lambda d: d.truncate("get", FRAME_SIZE + TAG_SIZE),
    "other bytes": lambda d: d.swap("get", os.urandom(2 * 1024 * 1024)),
    "down": lambda d: d.fail("get", Unavailable()),
    "revoked": lambda d: d.fail("get", Unauthorized()),
}


@pytest.mark.parametrize("fault", GET_FAULTS)
def test_reads_are_right_whatever_one_broker_answers(
    three: list[Broker], clock: VirtualClock, fault: str
) -> None:
    data = os.urandom(2 * SEGMENT_SIZE + 321)
    content = store(data, copies=3)
    reconcile.run_to_rest()
    collect()
    for broker in three:
        with faulty(broker) as driver:
            GET_FAULTS[fault](driver)
            assert load(content) == data
            assert (
                load(content, SEGMENT_SIZE - 5, SEGMENT_SIZE + 300_000)
                == data[SEGMENT_SIZE - 5 : SEGMENT_SIZE + 300_000]
            )
            driver.clear()
    clock.advance(hours=1)
    reconcile.run_to_rest()
    clock.advance(hours=1)
    reconcile.run_to_rest()
    collect()
    assert copies(content) == 3
    assert codes() == set()


def test_a_broker_that_fails_in_the_middle_of_a_stream(three: list[Broker], clock: VirtualClock) -> None:
    data = os.urandom(3 * SEGMENT_SIZE)
    content = store(data)
    with faulty(replicas(content)[0].broker) as one, faulty(replicas(content)[1].broker) as other:
        one.flip("get", 5000, on=lambda call: call.number > 3)
        other.fail("get", Unavailable(), on=lambda call: call.number <= 1)
        assert load(content) == data
    assert Content.objects.get(pk=content.pk).state == Content.State.SEALED


def test_repair_is_one_read_and_one_write(three: list[Broker], clock: VirtualClock) -> None:
    content = store(os.urandom(1000))
    victim = replicas(content)[0]
    good = replicas(content)[1]
    Replica.objects.filter(pk=victim.pk).update(state=State.LOST, reason="corrupt")
    with faulty(three[0]) as a, faulty(three[1]) as b, faulty(three[2]) as c:
        report = reconcile.run_to_rest()
        drivers = [a, b, c]
        assert report.copied == 1
        assert sum(d.count("get") for d in drivers) == 1
        assert sum(d.count("put") for d in drivers) == 1
        assert [r.name for d in drivers for r in d.calls if r.operation == "get"] == [good.locator]


def test_a_delete_that_deletes_nothing_is_seen(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x")
    contents.condemn_unreferenced([content.pk])
    clock.advance(days=2)
    with faulty(replicas(content)[0].broker) as driver:
        driver.keep()
        assert collect().objects == 1
        assert Replica.objects.filter(state=State.DOOMED).count() == 1
        driver.clear()
        clock.advance(hours=2)
        assert collect().objects == 1
    assert check(full=True) == []
