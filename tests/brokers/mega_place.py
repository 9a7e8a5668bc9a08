"""A MEGA account for tests: one server for a module, an empty account for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokers.drivers import mega_client
from brokers.drivers.mega_client import Account
from tests.servers.fake_mega import FakeMega


@pytest.fixture(scope="module")
def one_mega() -> Iterator[FakeMega]:
    with FakeMega().running() as running:
        yield running
    mega_client.forget()


@pytest.fixture
def mega(one_mega: FakeMega, monkeypatch: pytest.MonkeyPatch) -> FakeMega:
    """Sessions of earlier tests go on: logging in takes its time."""
    one_mega.reset()
    monkeypatch.setattr(Account, "endpoint", one_mega.endpoint)
    return one_mega


@pytest.fixture
def logged_out(mega: FakeMega) -> Iterator[None]:
    """Nobody has logged in yet; who did in the test is forgotten after it."""
    mega_client.forget()
    mega.sessions.clear()
    yield
    mega_client.forget()
