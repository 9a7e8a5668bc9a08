"""A database that is read-only, full or busy: refusals with a reason, and reads go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from accounts.models import User
from brokers.models import Broker
from tests.cast import Api, Browser
from tests.replication.kit import memory_broker
from tests.vfs.conftest import Put, put, two
from vfs import owed
from vfs.models import Upload
from vfs.upload import FileUpload, target_at

__all__ = ["put", "two"]
pytestmark = pytest.mark.django_db(transaction=True)
sqlite = connection.vendor == "sqlite"


@contextmanager
def read_only() -> Iterator[None]:
    on, off = (
        ("PRAGMA query_only=ON", "PRAGMA query_only=OFF")
        if sqlite
        else ("SET default_transaction_read_only=on", "SET default_transaction_read_only=off")
    )
    with connection.cursor() as cursor:
        cursor.execute(on)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(off)


@contextmanager
def full() -> Iterator[None]:
    """SQLite may not grow: as when its disk is full."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA max_page_count=1")  # the least it takes is what the file has
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA max_page_count=1073741823")


def stored(brokers: list[Broker]) -> int:
    from tests.replication.kit import Objects

    return sum(len(Objects(broker)) for broker in brokers)


def test_a_read_only_database(
    two: list[Broker], put: Put, alice: User, api: Api, browser_client: Browser, expect_log
) -> None:
    put(alice, "a.txt", b"hello")
    client, browser = api(alice), browser_client(alice)
    before = stored(two)
    browser.raise_request_exception = False
    expect_log("the database failed", "Service Unavailable")
    with read_only():
        assert b"".join(client.get("/api/v1/files/a.txt").streaming_content) == b"hello"
        answer = client.put("/api/v1/files/b.txt", b"x", content_type="application/octet-stream")
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert "takes no changes" in answer.json()["detail"]
        assert answer["Retry-After"] == "30"
        assert answer["Content-Type"] == "application/problem+json"
        assert client.delete("/api/v1/files/a.txt").status_code == 503
        assert b"a.txt" in browser.get("/dashboard/").content
        page = browser.post("/", {"username": "alice", "password": "x"}, HTTP_SEC_FETCH_SITE="same-origin")
        assert page.status_code in (403, 503)
        assert client.get("/healthz").status_code == 200
    assert stored(two) == before
    assert client.put("/api/v1/files/b.txt", b"x", content_type="application/octet-stream").status_code == 201


@pytest.mark.only_on("sqlite")  # PostgreSQL is full only with its disk
def test_a_full_database(two: list[Broker], put: Put, alice: User, api: Api, expect_log) -> None:
    put(alice, "a.txt", b"hello")
    client = api(alice)
    before = stored(two)
    expect_log("the database failed", "Service Unavailable")
    with full():
        status = 0
        for number in range(200):  # what is free within the file goes first
            answer = client.post("/api/v1/folders", {"path": f"/{number}" + "n" * 200}, format="json")
            if (status := answer.status_code) != 201:
                break
        assert (status, answer.json()["code"]) == (503, "database_unavailable")
        assert "no space left" in answer.json()["detail"]
        assert stored(two) == before
        assert b"".join(client.get("/api/v1/files/a.txt").streaming_content) == b"hello"
    assert client.put("/api/v1/files/b.txt", b"x", content_type="application/octet-stream").status_code == 201


def test_a_fault_in_the_code_stays_a_fault(alice: User, api: Api, expect_log) -> None:
    """Only what waiting can mend is called an outage."""
    expect_log("Internal Server Error")
    client = api(alice)
    client.raise_request_exception = False
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE vfs_node RENAME TO vfs_away")
    try:
        answer = client.get("/api/v1/files/a.txt")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE vfs_away RENAME TO vfs_node")
    assert (answer.status_code, answer.json()["code"]) == (500, "server_error")


def test_healthz_tells_the_parts(alice: User, client, two: list[Broker]) -> None:
    told = client.get("/healthz").json()
    assert (told["database"], told["brokers"]) == ("ok", "ok")
    Broker.objects.filter(pk=two[0].pk).update(health="offline")
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["brokers"]) == (200, "red")
    Broker.objects.filter(pk=two[0].pk).update(enabled=False)
    memory_broker("c")
    assert client.get("/healthz").json()["brokers"] == "ok"
    assert set(answer.json()) == {"status", "database", "schema", "brokers", "queue"}
    assert client.post("/healthz").status_code == 405


def test_an_upload_that_could_not_be_given_back_is_owed(
    two: list[Broker], alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away under an upload: when it is back, the reservation is too, while the process lives."""
    monkeypatch.setattr(owed, "EVERY", 0.05)
    upload = FileUpload(alice, target_at(alice, ["big.bin"]), size=1000)
    upload.write(b"x" * 10)
    with read_only():
        upload.abort()
        assert owed.waiting() == 1
        assert Upload.objects.exists()
    deadline = time.monotonic() + 60
    while owed.waiting():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not Upload.objects.exists()
    alice.refresh_from_db()
    assert alice.reserved == 0
