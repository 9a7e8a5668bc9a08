"""A MEGA account for tests: one server for a module, an empty account for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokers.drivers import mega_client
from brokers.drivers.mega_client import Account
from tests.servers.fake_mega import FakeMega


@pytest.fixture(scope="module", name="one_mega")
def one_mega_fixture() -> Iterator[FakeMega]:
    with FakeMega().running() as running:
        yield running
    mega_client.forget()


@pytest.fixture(name="mega")
def mega_fixture(one_mega: FakeMega, monkeypatch: pytest.MonkeyPatch) -> FakeMega:
    """Sessions of earlier tests go on: logging in takes its time."""
    one_mega.reset()
    monkeypatch.setattr(Account, "endpoint", one_mega.endpoint)
    return one_mega


@pytest.fixture(name="logged_out")
def logged_out_fixture(mega: FakeMega) -> Iterator[None]:
    """Nobody has logged in yet; who did in the test is forgotten after it."""
    mega_client.forget()
    mega.sessions.clear()
    yield
    mega_client.forget()
