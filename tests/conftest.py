"""What every test shares: the virtual clock, the strict log, the cast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from django.db import connection

from brokers import clock as clock_module
from brokers import history
from tests.kit.clock import VirtualClock
from tests.servers.chromium import browser_type_launch_args
from tests.servers.product import product
from vfs import owed

__all__ = ["browser_type_launch_args", "product"]
pytest_plugins = ["tests.cast", "tests.kit.counters"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, so that a broken change is known early; those of another database not at all."""
    elsewhere = [
        item
        for item in items
        if (mark := item.get_closest_marker("only_on")) and connection.vendor not in mark.args
    ]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]
    items.sort(key=lambda item: bool(item.get_closest_marker("slow") or item.get_closest_marker("browser")))


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    """The process's clock, moved by hand."""
    virtual = VirtualClock()
    before = clock_module.install(virtual)
    yield virtual
    clock_module.install(before)


@pytest.fixture(autouse=True)
def no_history() -> Iterator[None]:
    """No test writes down what another's brokers were asked."""
    yield
    history.forget()


class _LogRecorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.expected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Django logs each answer from 400 on; what a client did wrong is the test's own assertion.
        if not (record.name.startswith("django.") and 400 <= getattr(record, "status_code", 0) < 500):
            self.records.append(record)

    def unexpected(self) -> list[str]:
        lines = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in self.records]
        return [line for line in lines if not any(part in line for part in self.expected)]


@pytest.fixture(autouse=True)
def strict_log() -> Iterator[_LogRecorder]:
    """An unexpected WARNING (or worse) in the log fails the test."""
    recorder = _LogRecorder()
    root = logging.getLogger()
    root.addHandler(recorder)
    yield recorder
    owed.forget()
    root.removeHandler(recorder)
    unexpected = recorder.unexpected()
    assert not unexpected, "unexpected log lines:\n" + "\n".join(unexpected)


@pytest.fixture
def expect_log(strict_log: _LogRecorder) -> Callable[..., None]:
    """`expect_log("part", ...)`: warnings that contain a part belong to this test."""

    def expect(*parts: str) -> None:
        strict_log.expected.extend(parts)

    return expect
