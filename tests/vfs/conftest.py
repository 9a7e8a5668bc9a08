"""Fixtures of the tests of names: two brokers in memory, and quick ways to put and get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accounts.models import User
from brokers.models import Broker
from tests.brokers.conftest import _clean_brokers
from tests.replication.kit import memory_broker
from vfs.models import Node
from vfs.upload import FileUpload, target_at

__all__ = ["_clean_brokers"]
Put = Callable[..., Node]


@pytest.fixture
def two() -> list[Broker]:
    return [memory_broker("a"), memory_broker("b")]


@pytest.fixture
def put(two: list[Broker]) -> Put:
    """`put(user, "a/b.txt", b"...")`: the node, after an upload without HTTP."""

    def make(user: User, path: str, data: bytes = b"data", **options: Any) -> Node:
        with FileUpload(user, target_at(user, path.split("/")), size=len(data), **options) as upload:
            upload.write(data)
            upload.complete()
            return upload.commit().node

    return make
