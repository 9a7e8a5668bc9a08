"""List A of docs/reliability.md, a broker that hangs (A11) or takes long now and then (A10)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from django.db import connections

from brokers import clock
from brokers import open as open_module
from brokers.layers.call import LIMITS, Limit
from brokers.models import Broker
from brokers.testing.faulty import FaultyBroker
from replication import read, transfer
from replication.errors import ContentDamaged
from replication.models import Content, Replica
from replication.seal import FRAME_SIZE
from tests.brokers.conftest import faulty
from tests.replication.kit import State, copies, load, memory_broker, replicas, store

pytestmark = pytest.mark.django_db(transaction=True)

HANGS = 20
# No call of the hanging broker ends by itself in these tests: whoever needs its threads waits until a gate opens.
FOR_EVER = {name: Limit(600, 600) for name in LIMITS}


@pytest.fixture
def hung() -> Iterator[tuple[Broker, FaultyBroker]]:
    broker = memory_broker("hung")
    with open_module.wrap(broker.pk, limits=FOR_EVER), faulty(broker) as driver:
        yield broker, driver


class Crowd:
    """Threads that do the same, each with a database connection of its own."""

    def __init__(self) -> None:
        self.results: list[object] = []
        self._threads: list[threading.Thread] = []

    def start(self, work, *arguments: object) -> None:
        def run() -> None:
            try:
                self.results.append(work(*arguments))
            except Exception as error:
                self.results.append(error)
            finally:
                connections.close_all()

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> list[object]:
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "somebody still waits"
        return self.results


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader asks the next copy after a twentieth of a second, however long the broker lately took."""
    monkeypatch.setattr(read, "PATIENCE", 0.05)
    monkeypatch.setattr(read, "PATIENCE_FACTOR", 0.0)


def test_a10_a_read_that_takes_long_is_asked_of_the_other_copy_as_well(
    hung: tuple[Broker, FaultyBroker], impatient: None
) -> None:
    """The first answer that verifies counts; nobody waits for the other one. A poll is due for the slow broker."""
    broker, driver = hung
    other = memory_broker("b")
    data = os.urandom(1000)
    content = store(data)
    driver.hang("get")
    with faulty(other) as second:
        second.delay("get", 0.0)
        transfer.fetch(other, replicas(content)[0].locator, 0, 1)
        assert load(content) == data
        assert load(content, 10, 20) == data[10:20]
        assert driver.count("get") >= 1, "it was asked first"
        assert second.count("get") == 3
    row = Broker.objects.get(pk=broker.pk)
    assert row.check_at is not None and row.check_at <= clock.now()
    assert not Replica.objects.exclude(state=State.STORED).exists(), "slow is not damaged"


def test_a10_what_answers_in_time_is_asked_once() -> None:
    first, other = memory_broker("a"), memory_broker("b")
    contents = [store(os.urandom(1000)) for _ in range(30)]
    with faulty(first) as one, faulty(other) as two:
        for content in contents:
            load(content)
        assert one.count("get") + two.count("get") == 30


def test_a10_a_slow_copy_that_is_bad_and_a_fast_one_that_is_gone(impatient: None) -> None:
    """Copies that are asked side by side and all fail end in one answer, when the last of them has failed."""
    first, other = memory_broker("a"), memory_broker("b")
    content = store(os.urandom(1000))
    with faulty(first) as one, faulty(other) as two:
        gates = [driver.hang("get") for driver in (one, two)]
        one.flip("get", 50)
        two.truncate("get", 10)
        crowd = Crowd()
        crowd.start(load, content)
        while one.count("get") + two.count("get") < 2:
            threading.Event().wait(0.01)
        for gate in gates:
            gate.set()
        [result] = crowd.join()
    assert isinstance(result, ContentDamaged)
    assert {r.state for r in Replica.objects.all()} == {State.SUSPECT}


def test_a11_twenty_reads_that_hang_keep_nobody_else_waiting(hung: tuple[Broker, FaultyBroker]) -> None:
    """A node's readers all wait for one broker that does not answer. Uploads and downloads that need others only are
    served meanwhile; and when the answer comes at last, so do the bytes."""
    broker, driver = hung
    other = memory_broker("b")
    data = os.urandom(1000)
    stuck = [store(data) for _ in range(HANGS)]
    Broker.objects.filter(pk=other.pk).update(health="offline")  # so that readers ask the other one first
    memory_broker("c")
    Broker.objects.filter(pk=broker.pk).update(weight=0)
    Broker.objects.filter(pk=other.pk).update(health="online")
    elsewhere = store(os.urandom(3 * FRAME_SIZE))
    Broker.objects.filter(pk=other.pk).update(health="offline")
    gate = driver.hang("get")
    crowd = Crowd()
    for content in stuck:
        crowd.start(load, content)
    try:
        while driver.count("get") < 8:
            threading.Event().wait(0.01)
        others = Crowd()
        Broker.objects.filter(pk=other.pk).update(health="online")
        others.start(load, elsewhere)
        others.start(store, os.urandom(1000))
        [first, second] = others.join()
        assert not isinstance(first, Exception) and not isinstance(second, Exception)
    finally:
        gate.set()
    assert crowd.join() == [data] * HANGS


def test_a11_twenty_writes_that_hang_are_handed_off() -> None:
    """Each call has a deadline; what did not answer by then is put elsewhere, and nobody else has waited."""
    broker, _b, _c = (memory_broker(name) for name in "abc")
    limits = {name: Limit(2.0, 2.0) for name in LIMITS}
    with open_module.wrap(broker.pk, limits=limits), faulty(broker) as driver:
        gate = driver.hang("put")
        crowd = Crowd()
        for number in range(HANGS):
            crowd.start(store, b"%d" % number)
        contents = crowd.join()
        stored = [c for c in contents if isinstance(c, Content)]
        assert len(stored) == HANGS, contents
        assert all(copies(content) == 2 for content in stored)
        assert not Replica.objects.filter(broker=broker, state=State.STORED).exists()
        assert 0 < driver.count("put") <= 16, "its threads, and no more, are taken"
        opened = open_module.open_broker(broker)
        assert opened.hanging == driver.count("put")
        gate.set()
        while opened.hanging:
            threading.Event().wait(0.01)
    assert {load(content) for content in stored} == {b"%d" % number for number in range(HANGS)}
