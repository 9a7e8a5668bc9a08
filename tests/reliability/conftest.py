"""Fixtures of the tests of the lists: places of each kind, a drive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts.models import User
from brokers.models import Broker
from tests.brokers.conftest import _clean_brokers
from tests.cast import Api
from tests.kit.clock import VirtualClock
from tests.reliability.kit import BUCKET, KINDS, Drive, Places
from tests.servers.s3proxy import S3Proxy
from tests.servers.seaweedfs import S3Server, seaweedfs

__all__ = ["_clean_brokers", "seaweedfs"]


@pytest.fixture
def drive(alice: User, api: Api) -> Drive:
    return Drive(api(alice), alice)


@pytest.fixture
def local_root(tmp_path: Path, settings: Any) -> Path:
    top = Path(os.path.realpath(tmp_path)) / "brokers"
    top.mkdir()
    settings.CLOUDSTORE_LOCAL_ROOTS = [top]
    return top


@pytest.fixture(scope="session")
def bucket(seaweedfs: S3Server) -> S3Server:
    """The server, with the bucket in which every broker has a prefix."""
    seaweedfs.new_bucket(BUCKET)
    return seaweedfs


@pytest.fixture
def proxy(bucket: S3Server) -> Iterator[S3Proxy]:
    """A real S3 server behind one that can be told to fail."""
    with S3Proxy(bucket.url).running() as running:
        yield running


@pytest.fixture(params=KINDS)
def places(request: pytest.FixtureRequest, local_root: Path, db: None) -> Places:
    """Places of every kind, one after the other."""
    return places_of(request.param, request, local_root)


def places_of(kind: str, request: pytest.FixtureRequest, local_root: Path) -> Places:
    return Places(kind, local_root, request.getfixturevalue("bucket") if kind == "s3" else None)


@pytest.fixture
def memory_places(db: None) -> Places:
    return Places("memory", None, None)


@pytest.fixture
def local_places(db: None, local_root: Path) -> Places:
    return Places("local", local_root, None)


@pytest.fixture
def s3_places(db: None, bucket: S3Server) -> Places:
    return Places("s3", None, bucket)


@pytest.fixture
def three(memory_places: Places, clock: VirtualClock) -> list[Broker]:
    """Three brokers in memory."""
    return [memory_places.add(name) for name in "abc"]
