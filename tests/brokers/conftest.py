"""Places for the tests of brokers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from brokers import open as open_module
from brokers.driver import CloudBroker
from brokers.drivers import memory
from brokers.layers.call import LIMITS, Limit
from brokers.models import Broker
from brokers.services import add_broker
from brokers.testing.faulty import FaultyBroker
from tests.servers.seaweedfs import seaweedfs  # noqa: F401

SHORT = 0.2


@pytest.fixture(autouse=True)
def _clean_brokers() -> Iterator[None]:
    """No test sees another's open brokers or memory."""
    yield
    open_module.forget()
    memory.clear()


@pytest.fixture
def roots(tmp_path: Path, settings) -> Path:
    """The folder under which local brokers are permitted."""
    top = Path(os.path.realpath(tmp_path)) / "brokers"
    top.mkdir()
    settings.CLOUDSTORE_LOCAL_ROOTS = [top]
    return top


@pytest.fixture
def memory_broker(db) -> Broker:
    return add_broker("Memory", "memory", "memory", {"space": "one"})


@pytest.fixture
def short_limits() -> Iterator[None]:
    """Every call may take 0.2 s."""
    with open_module.wrap(None, limits={name: Limit(SHORT, SHORT) for name in LIMITS}):
        yield


@contextmanager
def faulty(broker: Broker) -> Iterator[FaultyBroker]:
    """The broker's driver, failing by script; every gate is opened at the end."""
    made: list[FaultyBroker] = []

    def wrapper(driver: CloudBroker) -> CloudBroker:
        made.append(FaultyBroker(driver))
        return made[-1]

    with ExitStack() as stack:
        stack.enter_context(open_module.wrap(broker.pk, wrapper))
        open_module.open_broker(broker)
        yield made[0]
        made[0].clear()
