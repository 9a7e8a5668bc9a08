"""The threads of the process for broker calls."""

from __future__ import annotations

import threading
import time

import pytest

from brokers.models import Broker
from replication import transfer

pytestmark = pytest.mark.only_on("sqlite")


def test_pools_of_brokers_that_are_gone_end() -> None:
    """Brokers come and go; the threads of those not used any more do not add up. What waits in a pool is still done."""
    gate, done = threading.Event(), []
    first = Broker(pk=-1)
    work = [transfer.pool(first).submit(lambda: done.append(gate.wait(30))) for _ in range(20)]
    before = threading.active_count()
    for number in range(2, transfer.POOLS * 3):
        transfer.pool(Broker(pk=-number)).submit(int).result()
    gate.set()
    for future in work:
        future.result(30)
    assert len(done) == 20
    deadline = time.monotonic() + 30
    while threading.active_count() > before + transfer.POOLS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before + transfer.POOLS
