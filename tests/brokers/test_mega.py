from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokers.drivers import mega_client
from brokers.drivers.mega import MegaBroker
from brokers.drivers.mega_client import Account
from brokers.open import OpenBroker
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from tests.servers.fake_mega import EMAIL, PASSWORD, FakeMega

OPTIONS = {"email": EMAIL, "password": PASSWORD, "folder": "CloudStore"}


@pytest.fixture
def mega(monkeypatch) -> Iterator[FakeMega]:
    with FakeMega().running() as running:
        monkeypatch.setattr(Account, "endpoint", running.endpoint)
        yield running
    mega_client.forget()


@pytest.mark.parametrize("name", conformance.names())
def test_contract(mega, name):
    MegaBroker(OPTIONS).prepare()
    check = Conformance(lambda: OpenBroker(MegaBroker(OPTIONS)), secrets=(PASSWORD,)).run_one(name)
    assert check.ok, check.detail
