"""The main job with the real product: real processes, real sockets, two local brokers.

A stranger's file goes up and comes down byte for byte, whatever happens to one broker; what was not acknowledged
leaves nothing; what was lost is rebuilt without anyone asking.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.product import Product, child_pids

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
PHRASE = b"this sentence must never stand on a broker; "


@pytest.fixture(scope="module")
def running() -> Iterator[Product]:
    """One product for this module, quick to notice what happens to its brokers."""
    product = Product(CLOUDSTORE_HEALTH_INTERVAL="5", CLOUDSTORE_BLANK_DWELL="5")
    try:
        yield product.start()
    finally:
        product.close()


@pytest.fixture(scope="module")
def token(running: Product) -> str:
    return running.token()


class Client:
    def __init__(self, product: Product, token: str) -> None:
        self.product = product
        self.headers = {"Authorization": f"Bearer {token}"}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.product.port, timeout=120)

    def call(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self.connect()
        connection.request(method, path, body, {**self.headers, **headers})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data

    def json(self, path: str) -> Any:
        status, _headers, body = self.call("GET", path)
        assert status == 200, body
        return json.loads(body)

    def put(self, name: str, data: bytes) -> dict[str, Any]:
        status, _headers, body = self.call("PUT", f"/api/v1/files/{name}", data)
        assert status in (200, 201), body
        found: dict[str, Any] = json.loads(body)
        return found

    def get(self, name: str, **headers: str) -> bytes:
        status, _headers, body = self.call("GET", f"/api/v1/files/{name}", **headers)
        assert status in (200, 206), body
        return body


@pytest.fixture
def client(running: Product, token: str) -> Client:
    return Client(running, token)


def findings(product: Product) -> list[Any]:
    """What `fsck --full` says."""
    done = product.manage("fsck", "--full", "--json", check=False)
    found: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])["findings"]
    return found


def broker_folders(product: Product) -> dict[str, Path]:
    return {row["name"]: Path(row["options"]["root"]) for row in product.manage_json("broker_list")}


def objects(product: Product) -> list[Path]:
    """Every sealed object that lies on the brokers."""
    return [p for root in broker_folders(product).values() for p in (root / "cs").rglob("*") if p.is_file()]


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def memory(pid: int) -> dict[str, int]:
    """VmRSS and VmHWM of a process, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {m[1]: int(m[2]) * 1024 for m in re.finditer(r"(VmRSS|VmHWM):\s+(\d+) kB", text)}


def web_processes(product: Product) -> list[int]:
    main = product.children()["web"]
    return [main, *child_pids(main)]


def blocks(total: int) -> Iterator[bytes]:
    """`total` bytes that never repeat and are quick to make: a phrase to look for, then noise."""
    noise = os.urandom(MIB)
    for number in range(0, total, MIB):
        block = PHRASE * 8 + number.to_bytes(8, "big") + noise
        yield block[: min(MIB, total - number)]


@pytest.mark.only_on("sqlite")
def test_two_gib_up_and_down(running: Product, client: Client) -> None:
    total = 2 * 1024 * MIB
    client.put("warm-up.bin", b"x" * 3_000_000)
    client.get("warm-up.bin")
    pids = web_processes(running)
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # peak := now
    before = sum(memory(pid)["VmRSS"] for pid in pids)

    sent = hashlib.sha256()

    def body() -> Iterator[bytes]:
        for block in blocks(total):
            sent.update(block)
            yield block

    status, _headers, answer = client.call(
        "PUT", "/api/v1/files/large/two%20gib.bin", body(), **{"Content-Length": str(total)}
    )
    assert status == 201, answer
    told = json.loads(answer)
    assert told["size"] == total
    assert told["sha256"] == sent.hexdigest()
    assert told["copies"]["stored"] == told["copies"]["wanted"] == 2

    connection = client.connect()
    connection.request("GET", "/api/v1/files/large/two%20gib.bin", headers=client.headers)
    response = connection.getresponse()
    received = hashlib.sha256()
    while piece := response.read(MIB):
        received.update(piece)
    assert received.hexdigest() == sent.hexdigest()

    grown = sum(memory(pid)["VmHWM"] for pid in pids) - before
    print(f"peak memory of the web processes grew by {grown / MIB:.0f} MiB")
    assert grown < 150 * MIB

    for path in objects(running):
        with path.open("rb") as file:
            while piece := file.read(8 * MIB):
                assert PHRASE not in piece
    status, _headers, _body = client.call("DELETE", "/api/v1/files/large/two%20gib.bin?purge=true")
    assert status == 204
    running.manage("collect", "--now")


def start_upload(client: Client, name: str, total: int, part: int) -> socket.socket:
    """Send the head and the first `part` bytes of an upload."""
    link = socket.create_connection(("127.0.0.1", client.product.port), timeout=60)
    head = f"PUT /api/v1/files/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {total}\r\n"
    link.sendall((head + f"Authorization: {client.headers['Authorization']}\r\n\r\n").encode())
    for block in blocks(part):
        link.sendall(block)
    return link


def assert_nothing_left(running: Product, client: Client, before: set[Path], used: int) -> None:
    until(lambda: client.json("/api/v1/account")["usage"]["reserved"] == 0 or not running.manage("collect"))
    running.manage("collect")
    usage = client.json("/api/v1/account")["usage"]
    assert (usage["used"], usage["reserved"]) == (used, 0)
    status, _headers, _body = client.call("HEAD", "/api/v1/files/half.bin")
    assert status == 404
    assert set(objects(running)) == before
    assert findings(running) == []


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("how", ["client", "server"])
def test_an_upload_killed_half_way_leaves_nothing(running: Product, client: Client, how: str) -> None:
    running.manage("collect", "--now")
    before, used = set(objects(running)), client.json("/api/v1/account")["usage"]["used"]
    link = start_upload(client, "half.bin", 100 * MIB, 50 * MIB)
    until(lambda: len(set(objects(running)) - before) >= 2)
    assert client.json("/api/v1/account")["usage"]["reserved"] == 100 * MIB
    if how == "server":
        for pid in child_pids(running.children()["web"]):
            os.kill(pid, signal.SIGKILL)
        until(lambda: _answers(client))
    link.close()
    assert_nothing_left(running, client, before, used)


def _answers(client: Client) -> bool:
    try:
        return client.call("GET", "/api/v1/account")[0] == 200
    except OSError:
        return False


def health(product: Product, name: str) -> str:
    rows = product.manage_json("broker_list")
    return next(str(row["health"]) for row in rows if row["name"] == name)


@pytest.mark.only_on("sqlite")
def test_a_broker_goes_away_and_comes_back(running: Product, client: Client) -> None:
    data = os.urandom(20 * MIB)
    client.put("stays.bin", data)
    root = broker_folders(running)["Local A"]
    away = root.with_name("away")
    root.rename(away)
    assert client.get("stays.bin") == data
    assert client.get("stays.bin", Range="bytes=9000000-9999999") == data[9_000_000:10_000_000]
    until(lambda: health(running, "Local A") == "offline")
    assert client.get("stays.bin") == data
    status, _headers, body = client.call("PUT", "/api/v1/files/refused.bin", b"x" * 1000)
    assert status == 503
    assert json.loads(body)["code"] == "not_enough_brokers"
    away.rename(root)
    until(lambda: health(running, "Local A") == "online")
    running.manage("reconcile")
    assert findings(running) == []


def test_a_broker_that_comes_back_empty_is_rebuilt_by_itself(running: Product, client: Client) -> None:
    files = {f"rebuilt/{n}.bin": os.urandom(300_000) for n in range(10)}
    for name, data in files.items():
        client.put(name, data)
    root = broker_folders(running)["Local B"]
    shutil.rmtree(root)
    root.mkdir()
    for name, data in files.items():
        assert client.get(name) == data
    # Nobody asks: polls, sweep and worker do it all.
    deadline = time.monotonic() + 240
    while left := findings(running):
        assert time.monotonic() < deadline, left
        time.sleep(2)
    for name, data in files.items():
        assert client.get(name) == data
