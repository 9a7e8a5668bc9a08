"""What the tests of the lists share: places of every kind, and looking into them behind the product's back."""

from __future__ import annotations

import functools
import io
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from rest_framework.test import APIClient

from accounts.models import User
from brokers.health import poll
from brokers.models import Broker
from brokers.services import add_broker
from brokers.testing.faulty import FaultyBroker
from replication import reconcile
from replication.collect import collect
from replication.models import Replica
from tests.brokers.conftest import faulty
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, memory_broker
from tests.servers.seaweedfs import S3Server
from vfs import fsck

KINDS = ("memory", "local", "s3")


def on(*kinds: str) -> pytest.MarkDecorator:
    """The test's `places` are of these kinds only."""
    return pytest.mark.parametrize("places", kinds, indirect=True)


BUCKET = "reliability"


class Files(MutableMapping[str, bytes]):
    """What a local broker's folder holds, by object name."""

    def __init__(self, broker: Broker) -> None:
        self.root = Path(broker.options["root"])

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, data: bytes) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def __delitem__(self, name: str) -> None:
        (self.root / name).unlink()

    def __iter__(self) -> Iterator[str]:
        for path in list(self.root.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.root))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@functools.cache
def _client(server: S3Server) -> Any:
    return server.client()


class Bucket(MutableMapping[str, bytes]):
    """What an S3 broker's prefix holds, by object name."""

    def __init__(self, broker: Broker, server: S3Server) -> None:
        self._client = _client(server)
        self._prefix = broker.options["prefix"] + "/"

    def __getitem__(self, name: str) -> bytes:
        found = self._client.get_object(Bucket=BUCKET, Key=self._prefix + name)
        return bytes(found["Body"].read())

    def __setitem__(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=self._prefix + name, Body=io.BytesIO(data))

    def __delitem__(self, name: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self._prefix)
        return iter([e["Key"].removeprefix(self._prefix) for p in pages for e in p.get("Contents", [])])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Places:
    """Makes brokers of one kind, each with a domain and a place of its own."""

    def __init__(self, kind: str, root: Path | None, server: S3Server | None) -> None:
        self.kind = kind
        self._root = root
        self._server = server

    def add(self, name: str, **options: Any) -> Broker:
        if self.kind == "memory":
            return memory_broker(name, **options)
        if self.kind == "local":
            assert self._root is not None
            return add_broker(name, "local", f"domain-{name}", {"root": str(self._root / name), **options})
        assert self._server is not None
        place = self._server.options(BUCKET, prefix=uuid.uuid4().hex, **options)
        return add_broker(name, "s3", f"domain-{name}", place)

    def held(self, broker: Broker) -> MutableMapping[str, bytes]:
        """Everything that is stored there, the marker among it."""
        if self.kind == "memory":
            return Objects(broker)
        if self.kind == "local":
            return Files(broker)
        assert self._server is not None
        return Bucket(broker, self._server)

    def objects(self, broker: Broker) -> set[str]:
        """The names of ours."""
        return {name for name in self.held(broker) if name.startswith("cs/")}


@contextmanager
def script(*brokers: Broker) -> Iterator[list[FaultyBroker]]:
    """The drivers of these brokers, each failing by script; good again at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(faulty(broker)) for broker in brokers]


class Drive:
    """A user's drive over the API, with a model of what was acknowledged. Counts what it sees for the suite."""

    FILES = "/api/v1/files"

    def __init__(self, client: APIClient, user: User) -> None:
        self.client = client
        self.user = user
        self.kept: dict[str, bytes] = {}

    def put(self, path: str, data: bytes, **headers: str) -> Any:
        """Upload -> the answer. An acknowledged one is in the model from then on."""
        kind = "application/octet-stream"
        answer = self.client.generic(
            "PUT", f"{self.FILES}/{path}", data, kind, CONTENT_LENGTH=str(len(data)), **headers
        )
        if answer.status_code in (200, 201):
            self.kept[path] = data
            counters.add(counters.ACKNOWLEDGED, len(data))
        return answer

    def form(self, name: str, data: bytes) -> Any:
        """Upload through a form into the top folder -> the answer."""
        folder = self.client.get("/api/v1/nodes/root").json()["id"]
        body = encode_multipart(BOUNDARY, {"file": SimpleUploadedFile(name, data)})
        answer = self.client.generic("POST", f"/api/v1/nodes/{folder}/files", body, MULTIPART_CONTENT)
        if answer.status_code in (200, 201):
            self.kept[name] = data
            counters.add(counters.ACKNOWLEDGED, len(data))
        return answer

    def keep(self, path: str, data: bytes) -> None:
        """Upload, which must be acknowledged."""
        answer = self.put(path, data)
        assert answer.status_code in (200, 201), answer.content

    def get(self, path: str, span: tuple[int, int] | None = None) -> tuple[Any, bytes]:
        """Download, whole or the bytes `span` (end exclusive) -> the answer and its body. Bytes that came with a
        good status must be the right ones."""
        headers = {"HTTP_RANGE": f"bytes={span[0]}-{span[1] - 1}"} if span else {}
        answer = self.client.get(f"{self.FILES}/{path}", **headers)
        body = b"".join(answer.streaming_content) if answer.streaming else answer.content
        if answer.status_code in (200, 206):
            assert answer.status_code == (206 if span else 200)
            right = self.kept[path][slice(*span)] if span else self.kept[path]
            counters.add(counters.WRONG, body != right)
            assert body == right
        return answer, body

    def head(self, path: str) -> Any:
        return self.client.head(f"{self.FILES}/{path}")

    def usage(self) -> tuple[int, int]:
        """Bytes used and reserved, by the row."""
        self.user.refresh_from_db()
        return self.user.used, self.user.reserved

    def check(self) -> None:
        """Every acknowledged file reads back, whole and right."""
        for path, data in self.kept.items():
            answer, _body = self.get(path)
            counters.add(counters.LOST, 0 if answer.status_code == 200 else len(data))
            assert answer.status_code == 200, path


def findings(full: bool = True) -> list[str]:
    return [str(finding) for finding in fsck.check(full=full)]


def settle(clock: VirtualClock, rounds: int = 4, **step: float) -> None:
    """Let the product come to rest, as its schedule does: polls, repair and collection, with time between."""
    for _ in range(rounds):
        clock.advance(**(step or {"minutes": 16}))
        for broker in Broker.objects.filter(enabled=True):
            poll(broker.pk)
        reconcile.run_to_rest()
        collect()


def at_rest(places: Places, brokers: list[Broker], drive: Drive) -> None:
    """The end of each test: nothing left to do, fsck finds nothing, every object has a row, every file is right."""
    assert reconcile.run_to_rest().actions == 0
    assert findings() == []
    keys = set(Replica.objects.values_list("locator", flat=True))
    for broker in brokers:
        assert places.objects(broker) <= keys
    drive.check()
