"""The failures that every HTTP driver must name, in MEGA's API. What MEGA says in numbers, and what its servers of the
stored bytes say, is in test_mega_errors.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from brokers.driver import StoredFile
from brokers.drivers.mega import MegaBroker
from brokers.errors import Unavailable
from tests.brokers.fault_table import FaultTable
from tests.brokers.mega_place import mega_fixture, one_mega_fixture  # noqa: F401
from tests.servers.fake_mega import EMAIL, PASSWORD, FakeMega

pytestmark = pytest.mark.only_on("sqlite")
OPTIONS = {"email": EMAIL, "password": PASSWORD, "folder": "CloudStore"}


class ByLocator(MegaBroker):
    """The table's name stands for an object that is there, by its locator, as rows know it."""

    known = ""

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        return super().download_file(self.known or storage_path, start, length)

    def stat_file(self, storage_path: str) -> StoredFile:
        return super().stat_file(self.known or storage_path)

    def delete_file(self, storage_path: str) -> None:
        super().delete_file(self.known or storage_path)


class Table(FaultTable):
    driver: ClassVar[type[MegaBroker]] = MegaBroker
    # Whether an object is there MEGA says in numbers alone.
    differs: ClassVar = {"404": Unavailable}

    @pytest.fixture
    def server(self, mega) -> FakeMega:
        """The login and the folder came before; from now on the fault is the answer."""
        mega.answers = []
        mega.rules.append(lambda call: mega.answers[0] if mega.answers else None)
        return mega

    @pytest.fixture
    def broker(self, server) -> Iterator[MegaBroker]:
        made = self.driver(OPTIONS)
        made.prepare()
        if isinstance(made, ByLocator):
            made.known = made.upload_file(bytes(100), "cs/ab/known")
        server.calls.clear()
        server.requests.clear()
        yield made
        made.close()


class TestByName(Table):
    """A bare name is looked up: the listing fails."""


class TestByLocator(Table):
    """Without a listing: the one node that is asked for fails."""

    driver = ByLocator
