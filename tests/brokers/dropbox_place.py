"""A Dropbox account for tests: one server for a module, an empty account for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokers.drivers.dropbox import DropboxBroker
from brokers.services import check_options
from tests.servers.fake_dropbox import FakeDropbox


@pytest.fixture(scope="module", name="one_dropbox")
def one_dropbox_fixture() -> Iterator[FakeDropbox]:
    with FakeDropbox().running() as running:
        yield running


@pytest.fixture(name="dropbox")
def dropbox_fixture(one_dropbox: FakeDropbox, monkeypatch: pytest.MonkeyPatch) -> FakeDropbox:
    one_dropbox.reset()
    one_dropbox.requests.clear()
    one_dropbox.bodies.clear()
    one_dropbox.take_over(monkeypatch)
    return one_dropbox


def made(dropbox: FakeDropbox, **more: str) -> DropboxBroker:
    """The driver with a refresh token."""
    plain, secrets = check_options("dropbox", dropbox.options(**more))
    return DropboxBroker({**plain, **secrets})


@pytest.fixture(name="broker")
def broker_fixture(dropbox: FakeDropbox) -> Iterator[DropboxBroker]:
    """With a token already, and nothing recorded."""
    opened = made(dropbox)
    opened.prepare()
    dropbox.calls.clear()
    yield opened
    opened.close()
