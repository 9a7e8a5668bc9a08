"""List B of docs/reliability.md, what goes wrong with the database and with answers: B2, B3, B7, B12, B13."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from accounts.models import Token
from brokers import tasks as broker_tasks
from brokers.models import Broker
from replication import policy, tasks
from replication.models import Content, Event, Replica, Segment
from tests.kit import counters
from tests.kit.clock import VirtualClock
from tests.reliability.kit import Drive, Places, at_rest, script, settle
from vfs import tasks as vfs_tasks
from vfs.models import Node, Upload, Version

State = Replica.State
REASONS = ("deadlock detected", "could not serialize access", "database or disk is full")


class Commits:
    """Counts the commits of this process, and fails those that a test names, before or after their effect."""

    def __init__(self) -> None:
        self.count = 0
        self.fails: Callable[[int], bool] = lambda number: False
        self.after = False
        self.reason = REASONS[0]
        self.failed = 0

    def commit(self, original: Callable[[BaseDatabaseWrapper], Any], wrapper: BaseDatabaseWrapper) -> Any:
        self.count += 1
        fails = self.fails(self.count)
        if not fails or self.after:
            original(wrapper)
        if fails:
            self.failed += 1
            counters.add(counters.FAULTS)
            raise OperationalError(self.reason)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    watch = Commits()
    original = BaseDatabaseWrapper._commit
    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", lambda wrapper: watch.commit(original, wrapper))
    return watch


@contextmanager
def refusing_writes() -> Iterator[None]:
    """The database takes no write on this connection, as when its disk is full or it was set read-only."""
    connection = connections[DEFAULT_DB_ALIAS]
    on, off = {
        "sqlite": ("PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
        "postgresql": ("SET default_transaction_read_only = on", "SET default_transaction_read_only = off"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(on)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(off)


def nothing_was_stored(drive: Drive, path: str) -> None:
    assert drive.head(path).status_code == 404
    assert not Node.objects.filter(name=path).exists()


# -- B2 ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("door", ["put", "form"])
def test_b2_any_commit_of_an_upload_fails(
    memory_places: Places,
    clock: VirtualClock,
    drive: Drive,
    commits: Commits,
    expect_log: Callable[..., None],
    door: str,
) -> None:
    """The first, the second ... the last commit of an upload fails: 503 with Retry-After, no file, no byte charged
    for good; what was put goes. The one that is not hit by it succeeds."""
    expect_log("Service Unavailable", "the database")
    brokers = [memory_places.add(name) for name in "ab"]
    drive.keep("before", b"x" * 10)
    used = drive.usage()[0]

    upload = drive.put if door == "put" else drive.form
    hit = 0
    for number in range(1, 50):
        name = f"file {number}"
        commits.count, commits.reason = 0, REASONS[number % len(REASONS)]
        commits.fails = lambda n, number=number: n == number
        answer = upload(name, b"y" * 1000)
        commits.fails = lambda n: False
        if commits.failed == hit:
            assert answer.status_code == 201
            break
        hit = commits.failed
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), number
        assert int(answer.headers["Retry-After"]) > 0
        nothing_was_stored(drive, name)
    else:
        pytest.fail("every upload failed")
    assert hit >= 3, "reservation, intent, the file: each was one of the commits"
    assert drive.usage()[1] == 0 or Upload.objects.exists()
    settle(clock)
    vfs_tasks.expire_uploads()
    settle(clock, hours=2)
    vfs_tasks.expire_uploads()
    settle(clock)
    assert drive.usage() == (used + 1000, 0)
    at_rest(memory_places, brokers, drive)


@pytest.mark.django_db(transaction=True)
def test_b2_a_commit_whose_outcome_is_not_known(
    memory_places: Places,
    clock: VirtualClock,
    drive: Drive,
    commits: Commits,
    expect_log: Callable[..., None],
) -> None:
    """The commit happened, and the database's answer was lost. Whatever the client is told, the rows are right: a
    file is there whole and charged once, or not there and not charged."""
    expect_log("Service Unavailable", "the database")
    brokers = [memory_places.add(name) for name in "ab"]
    drive.keep("before", b"x" * 10)
    commits.after = True
    hit = 0
    for number in range(1, 50):
        commits.count = 0
        commits.fails = lambda n, number=number: n == number
        answer = drive.put(f"file {number}", b"y" * 1000)
        commits.fails = lambda n: False
        if commits.failed == hit:
            break
        hit = commits.failed
        assert answer.status_code == 503
        if drive.head(f"file {number}").status_code == 200:
            drive.kept[f"file {number}"] = b"y" * 1000
    assert hit >= 3
    assert len(drive.kept) >= 3, "the last commit makes the file"
    for _ in range(2):
        settle(clock, hours=2)
        vfs_tasks.expire_uploads()
    settle(clock)
    assert drive.usage() == (sum(map(len, drive.kept.values())), 0)
    at_rest(memory_places, brokers, drive)


@pytest.mark.django_db(transaction=True)
def test_b2_all_commits_fail_from_one_on(
    memory_places: Places,
    clock: VirtualClock,
    drive: Drive,
    commits: Commits,
    expect_log: Callable[..., None],
) -> None:
    """Not even giving back works. The upload expires later, and then nothing is left of it."""
    expect_log("Service Unavailable", "the database")
    brokers = [memory_places.add(name) for name in "ab"]
    drive.keep("before", b"x" * 10)
    commits.count = 0
    drive.keep("counted", b"z" * 1000)
    total = commits.count
    for number in range(1, total + 1):
        commits.count = 0
        commits.fails = lambda n, number=number: n >= number
        answer = drive.put(f"file {number}", b"y" * 1000)
        commits.fails = lambda n: False
        assert answer.status_code == 503
        nothing_was_stored(drive, f"file {number}")
    assert Upload.objects.count() >= 2, "left behind, as by a crash"
    for _ in range(2):
        settle(clock, hours=2)
        vfs_tasks.expire_uploads()
    settle(clock)
    assert drive.usage() == (1010, 0)
    at_rest(memory_places, brokers, drive)


# -- B3 ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_b3_a_retry_after_a_lost_reply_is_a_version_more(
    memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    """What holds today: the file was committed and its answer lost, so a client that simply sends it again makes a
    second version of the same bytes, charged like any version. Nothing is lost, mixed or charged wrongly."""
    brokers = [memory_places.add(name) for name in "ab"]
    for _try in range(2):
        drive.keep("file", b"x" * 1000)
    assert Version.objects.count() == 2
    assert drive.usage() == (2000, 0)
    at_rest(memory_places, brokers, drive)


@pytest.mark.django_db
def test_b3_a_conditional_retry_is_no_second_version(
    memory_places: Places, clock: VirtualClock, drive: Drive, expect_log: Callable[..., None]
) -> None:
    """A client that must not store twice says so: `If-None-Match: *` for a new file, `If-Match` for a new version.
    Its retry then gets 412, which says that the first try was committed; one version, charged once."""
    brokers = [memory_places.add(name) for name in "ab"]
    first = drive.put("file", b"x" * 1000, HTTP_IF_NONE_MATCH="*")
    assert first.status_code == 201
    assert drive.put("file", b"x" * 1000, HTTP_IF_NONE_MATCH="*").status_code == 412
    assert (Version.objects.count(), drive.usage()) == (1, (1000, 0))
    etag = first.headers["ETag"]
    assert drive.put("file", b"y" * 500, HTTP_IF_MATCH=etag).status_code == 200
    assert drive.put("file", b"y" * 500, HTTP_IF_MATCH=etag).status_code == 412
    assert (Version.objects.count(), drive.usage()) == (2, (1500, 0))
    settle(clock)
    at_rest(memory_places, brokers, drive)


# -- B7 ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_b7_a_task_that_is_delivered_twice_writes_nothing_more(
    three: list[Broker], memory_places: Places, clock: VirtualClock, drive: Drive
) -> None:
    for number in range(5):
        drive.keep(f"file {number}", os.urandom(100))
    assert drive.client.delete(f"{drive.FILES}/file 0?purge=true").status_code == 204
    del drive.kept["file 0"]
    policy.change(copies=3)
    clock.advance(hours=30)
    work: dict[str, Callable[[], object]] = {
        "content": lambda: [
            tasks.reconcile_content(str(pk)) for pk in Content.objects.values_list("pk", flat=True)
        ],
        "segment": lambda: [
            tasks.reconcile_segment(pk) for pk in Segment.objects.values_list("pk", flat=True)
        ],
        "sweep": tasks.sweep,
        "scrub": tasks.scrub,
        "collect": tasks.collect,
        "orphans": tasks.find_orphans,
        "uploads": vfs_tasks.expire_uploads,
        "poll": broker_tasks.poll_brokers,
    }
    with script(*three) as drivers:
        for name, task in work.items():
            task()
            written = [(d.count("put"), d.count("delete")) for d in drivers]
            rows = list(Replica.objects.order_by("pk").values_list("pk", "state")), Event.objects.count()
            task()
            assert [(d.count("put"), d.count("delete")) for d in drivers] == written, name
            assert (
                list(Replica.objects.order_by("pk").values_list("pk", "state")),
                Event.objects.count(),
            ) == rows
        assert sum(d.count("put") for d in drivers) == 4, "one copy more of each of four files"
        assert sum(d.count("delete") for d in drivers) == 2
    at_rest(memory_places, three, drive)


# -- B12 -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_b12_a_database_that_takes_no_writes(
    memory_places: Places, clock: VirtualClock, drive: Drive, expect_log: Callable[..., None]
) -> None:
    """Its disk is full, or it is read-only: downloads and listings go on, uploads are refused with 503 before a byte
    is put, and afterwards all is as before."""
    expect_log("Service Unavailable", "the database")
    brokers = [memory_places.add(name) for name in "ab"]
    drive.keep("file", b"x" * 1000)
    clock.advance(minutes=10)
    before = [memory_places.objects(broker) for broker in brokers]
    with refusing_writes():
        drive.check()
        drive.get("file", (10, 20))
        assert drive.head("file").status_code == 200
        assert drive.client.get("/api/v1/files/").json()["children"][0]["name"] == "file"
        for answer in (drive.put("new", b"y" * 1000), drive.client.delete(f"{drive.FILES}/file")):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
    assert [memory_places.objects(broker) for broker in brokers] == before
    assert drive.usage() == (1000, 0)
    drive.keep("new", b"y" * 1000)
    at_rest(memory_places, brokers, drive)


@pytest.mark.django_db(transaction=True)
def test_b12_a_token_is_believed_although_its_use_cannot_be_noted(
    memory_places: Places, drive: Drive, expect_log: Callable[..., None]
) -> None:
    """The use of a token is written down once a minute; that is no reason to refuse a download."""
    expect_log("could not be noted")
    for name in "ab":
        memory_places.add(name)
    drive.keep("file", b"x" * 1000)
    Token.objects.update(last_used_at=None)
    with refusing_writes():
        drive.check()
    drive.check()
    assert Token.objects.get().last_used_at is not None


# -- B13 -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("door", ["put", "form"])
def test_b13_uploads_need_no_disk_of_this_machine(
    memory_places: Places,
    clock: VirtualClock,
    drive: Drive,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    door: str,
) -> None:
    """There is no spool that could fill: with no temporary folder at all, large uploads pass by every door."""
    brokers = [memory_places.add(name) for name in "ab"]
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    settings.FILE_UPLOAD_TEMP_DIR = "/nonexistent"

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, full)
    data = os.urandom(20_000_000)
    if door == "put":
        drive.keep("file", data)
    else:
        assert drive.form("file", data).status_code == 201
    drive.check()
    at_rest(memory_places, brokers, drive)
