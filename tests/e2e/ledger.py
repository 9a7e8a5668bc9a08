"""Clients of the real product that keep a ledger: what was answered 2xx is acknowledged, everything else is not."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.kit import counters
from tests.servers.product import Product

KIB, MIB = 1024, 1024 * 1024
PATIENCE = 120.0
BROKEN = (OSError, http.client.HTTPException)


class Unreachable(OSError):
    """Nobody took the connection, so nothing was sent."""


@dataclass
class Entry:
    """One file: what was acknowledged last, and what was sent since without an answer."""

    acknowledged: str | None = None
    size: int = 0
    maybe: set[str] = field(default_factory=set)


def noise(rng: random.Random, size: int) -> bytes:
    return rng.randbytes(size)


class Client:
    """One user's connection: every request on a connection of its own, so that each meets the server anew."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {token}", "Host": "localhost"}

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """-> status and the whole body. Raises OSError or HTTPException for a connection that was cut."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable from error
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        status, body = self.call("GET", path)
        assert status == 200, body
        return json.loads(body)


class Ledger:
    """What all clients were told. Thread-safe as long as each name belongs to one client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.entries: dict[str, Entry] = {}
        self.lock = threading.Lock()
        self.sent = self.acknowledged = self.cut = self.refused = self.reads = self.wrong = 0
        self.unreachable = self.under_way = 0
        self.statuses: set[int] = set()

    def put(self, name: str, data: bytes, *, tries: float = PATIENCE) -> bool:
        """Upload until it is acknowledged, for at most `tries` seconds (0: once): -> whether it was."""
        digest = hashlib.sha256(data).hexdigest()
        with self.lock:
            entry = self.entries.setdefault(name, Entry())
        deadline = time.monotonic() + tries
        while True:
            entry.maybe.add(digest)
            with self.lock:
                self.sent += 1
                self.under_way += 1
            try:
                status, body = self.client.call("PUT", f"/api/v1/files/{name}", data)
            except Unreachable:
                with self.lock:
                    self.unreachable += 1
                    self.under_way -= 1
            except BROKEN:
                with self.lock:
                    self.cut += 1
                    self.under_way -= 1
            else:
                with self.lock:
                    self.under_way -= 1
                if status in (200, 201):
                    assert json.loads(body)["sha256"] == digest
                    entry.acknowledged, entry.size, entry.maybe = digest, len(data), set()
                    with self.lock:
                        self.acknowledged += 1
                    counters.add(counters.ACKNOWLEDGED, len(data))
                    return True
                with self.lock:
                    self.refused += 1
                    self.statuses.add(status)
                assert status == 503, (status, body)
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    def get(self, name: str, *, final: bool = False) -> None:
        """Read a file back. A cut connection is an error that the client sees; a whole answer must be right."""
        entry = self.entries[name]
        try:
            status, body = self.client.call("GET", f"/api/v1/files/{name}")
        except BROKEN:
            assert not final, f"{name} was cut off while nobody killed anything"
            return
        if status == 503 and not final:
            return
        with self.lock:
            self.reads += 1
        if status == 404 and entry.acknowledged is None:
            return
        if status != 200:
            counters.add(counters.LOST, entry.size)
            raise AssertionError(f"{name} was acknowledged and answers {status}: {body[:300]!r}")
        found = hashlib.sha256(body).hexdigest()
        if found not in {entry.acknowledged, *entry.maybe}:
            with self.lock:
                self.wrong += 1
            counters.add(counters.WRONG, len(body))
            raise AssertionError(f"{name} has bytes that nobody sent under that name")

    def read_all_back(self) -> None:
        """Every file that was ever tried, whole, by HTTP."""
        self.parallel(lambda name: self.get(name, final=True), list(self.entries))

    @staticmethod
    def parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, name) for name in names]:
                done.result(300)


STATE = """
import json
from django.db.models import Count
from replication.models import Content, Replica, Orphan, Segment
from vfs.models import Upload
count = lambda rows: {str(r["state"]): r["n"] for r in rows.values("state").annotate(n=Count("pk")).order_by()}
print(json.dumps({"uploads": Upload.objects.count(), "contents": count(Content.objects),
    "replicas": count(Replica.objects), "due": Segment.objects.filter(check_at__isnull=False).count()}))
"""


def state(product: Product) -> dict[str, Any]:
    """What the database says of uploads and contents."""
    found: dict[str, Any] = json.loads(product.manage("shell", "-c", STATE).stdout.strip().splitlines()[-1])
    return found


def at_rest(product: Product) -> bool:
    found = state(product)
    return (
        found["uploads"] == 0
        and set(found["contents"]) <= {"sealed"}
        and set(found["replicas"]) <= {"stored"}
        and found["due"] == 0
    )


def findings(product: Product, *arguments: str) -> list[Any]:
    done = product.manage("fsck", *arguments, "--json", check=False)
    found: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])["findings"]
    return found


def until(true: Callable[[], object], what: str, seconds: float = PATIENCE, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)


def answers(client: Client) -> bool:
    try:
        return client.call("GET", "/api/v1/account")[0] == 200
    except BROKEN:
        return False
