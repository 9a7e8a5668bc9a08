"""List A of docs/reliability.md, a broker that hangs: A11."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from django.db import connections

from brokers import open as open_module
from brokers.layers.call import LIMITS, Limit
from brokers.models import Broker
from brokers.testing.faulty import FaultyBroker
from replication.seal import FRAME_SIZE
from tests.brokers.conftest import faulty
from tests.replication.kit import load, memory_broker, store

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
