"""The database goes away under the running product: quick refusals, no writes to brokers, and back without hands."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.ledger import MIB, Client, Ledger, answers, at_rest, findings, state, until
from tests.servers.postgres import Postgres
from tests.servers.product import Product

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
QUICK = {"CLOUDSTORE_HEALTH_INTERVAL": "5", "CLOUDSTORE_SWEEP_INTERVAL": "3"}


def objects(product: Product) -> set[str]:
    return {str(p) for p in (product.data / "brokers").rglob("*") if p.is_file() and "/cs/" in str(p)}


def healthz(client: Client) -> tuple[int, dict[str, str]]:
    status, body = client.call("GET", "/healthz")
    return status, json.loads(body)


def start_upload(client: Client, name: str, total: int, part: bytes) -> socket.socket:
    """The head and the first part of an upload."""
    link = socket.create_connection(("127.0.0.1", client.port), timeout=60)
    head = f"PUT /api/v1/files/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {total}\r\n"
    link.sendall((head + f"Authorization: {client.headers['Authorization']}\r\n\r\n").encode())
    link.sendall(part)
    return link


@pytest.fixture
def server() -> Iterator[Postgres]:
    server = Postgres(settings=())  # its commits are durable: a crash must lose none
    server.start()
    yield server
    server.close()


@pytest.mark.only_on("postgresql")  # SQLite is no server
def test_postgresql_killed_and_started_again(server: Postgres) -> None:
    product = Product(DATABASE_URL=server.url, **QUICK)
    try:
        product.start()
        client = Client(product.port, product.token())
        ledger = Ledger(client)
        ledger.put("before.bin", os.urandom(3 * MIB))
        assert healthz(client) == (
            200,
            {"status": "ok", "database": "ok", "schema": "ok", "brokers": "ok", "queue": "ok"},
        )
        stored = objects(product)
        half = start_upload(client, "half.bin", 60 * MIB, os.urandom(20 * MIB))
        until(lambda: len(objects(product)) > len(stored), "the upload is under way")

        server.kill()
        status, told = healthz(client)
        assert (status, told["status"], told["database"], told["queue"]) == (503, "red", "red", "ok")
        # The rest of the upload may find the connection dead at any step; its answer is a refusal.
        try:
            half.sendall(os.urandom(40 * MIB))
            answer = http.client.HTTPResponse(half)
            answer.begin()
            assert answer.status == 503
        except (OSError, http.client.HTTPException):
            pass  # cut off while it was still sending
        half.close()
        now = objects(product)
        for method, path, body in (
            ("GET", "/api/v1/files/before.bin", None),
            ("HEAD", "/api/v1/files/before.bin", None),
            ("PUT", "/api/v1/files/new.bin", b"x" * 1000),
            ("DELETE", "/api/v1/files/before.bin", None),
            ("GET", "/api/v1/account", None),
        ):
            began = time.monotonic()
            status, body = client.call(method, path, body)
            assert (status, time.monotonic() - began < 20) == (503, True), (method, path, body)
            if method != "HEAD":
                assert json.loads(body)["code"] == "database_unavailable"
        status, page = client.call("GET", "/", Cookie="session=" + "a" * 32)
        assert status == 503 and b"<h1>Not available at the moment</h1>" in page
        assert objects(product) == now, "something was written without the database"

        assert server.start() == product.env["DATABASE_URL"]
        until(lambda: answers(client), "the web answers again")
        assert ledger.put("after.bin", os.urandom(MIB))
        until(lambda: at_rest(product), f"the half upload is given back: {state(product)}", every=2.0)
        ledger.read_all_back()
        assert client.json("/api/v1/account")["usage"]["reserved"] == 0
        assert findings(product, "--full") == []
        assert healthz(client)[0] == 200
    finally:
        product.close()


@pytest.mark.only_on("sqlite")  # PostgreSQL has no lock on the whole database
def test_sqlite_locked_by_another_process() -> None:
    """Longer than the time that a writer waits: 503, not 500; reads go on meanwhile."""
    product = Product(CLOUDSTORE_SQLITE_TIMEOUT="2", **QUICK)
    try:
        product.start()
        client = Client(product.port, product.token())
        ledger = Ledger(client)
        ledger.put("before.bin", os.urandom(3 * MIB))
        stored = objects(product)
        with closing(sqlite3.connect(product.data / "cloudstore.sqlite3", isolation_level=None)) as other:
            other.execute("PRAGMA busy_timeout=20000")
            other.execute("BEGIN IMMEDIATE")
            assert healthz(client)[0] == 200
            ledger.get("before.bin", final=True)
            status, body = client.call("PUT", "/api/v1/files/new.bin", b"x" * 1000)
            assert (status, json.loads(body)["code"]) == (503, "database_unavailable")
            status, body = client.call("DELETE", "/api/v1/files/before.bin")
            assert status == 503
            ledger.get("before.bin", final=True)
            assert objects(product) == stored
            other.execute("ROLLBACK")
        assert ledger.put("after.bin", os.urandom(MIB))
        until(lambda: at_rest(product), f"it comes to rest: {state(product)}", every=2.0)
        ledger.read_all_back()
        assert findings(product, "--full") == []
    finally:
        product.close()
