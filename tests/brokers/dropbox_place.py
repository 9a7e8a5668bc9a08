"""A Dropbox account for tests: one server for a module, an empty account for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
