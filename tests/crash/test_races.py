"""Races of two or fifty, each with its own connection, held at failpoints so that they meet where it matters."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from django.db import IntegrityError, connection
from rest_framework.test import APIClient

from accounts import quota
from accounts.models import User
from brokers import failpoint
from brokers import open as open_module
from brokers.models import Broker
from brokers.testing.faulty import FaultyBroker
from replication import orphans, policy, reconcile, tasks
from replication.collect import collect
from replication.models import Content, Replica, Segment
from tests.cast import Api
from tests.kit.clock import VirtualClock
from tests.kit.threads import race
from tests.replication.kit import copies, load, memory_broker, store
from vfs import fsck, tree
from vfs.models import Upload
from vfs.upload import FileUpload, expire_uploads, target_at

pytestmark = pytest.mark.django_db(transaction=True)
MANY = 50
SIZE = 1000
PATIENCE = 120.0


@pytest.fixture
def three(transactional_db: None) -> list[Broker]:
    return [memory_broker(name) for name in "abc"]


@contextmanager
def hook(at: dict[str, Callable[[], object]]) -> Iterator[None]:
    """Inside, reaching one of these failpoints calls its function first."""
    before = failpoint.install(None)

    def reached(name: str) -> None:
        if before is not None:
            before(name)
        if name in at:
            at[name]()

    failpoint.install(reached)
    try:
        yield
    finally:
        failpoint.install(before)


@contextmanager
def meeting(name: str, count: int) -> Iterator[None]:
    """Inside, nobody passes the failpoint before `count` have reached it."""
    barrier = threading.Barrier(count)
    with hook({name: lambda: barrier.wait(PATIENCE)}):
        yield


@contextmanager
def held(name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Inside, the first to reach the failpoint waits there: -> (it is there, let it go)."""
    there, go = threading.Event(), threading.Event()

    def wait() -> None:
        if not there.is_set():
            there.set()
            assert go.wait(PATIENCE)

    with hook({name: wait}):
        try:
            yield there, go
        finally:
            go.set()


@contextmanager
def recorded(brokers: list[Broker]) -> Iterator[Callable[..., int]]:
    """Inside, `count("put", ...)` says how many calls of these operations all brokers got so far."""
    made: list[FaultyBroker] = []
    with ExitStack() as stack:
        for broker in brokers:
            stack.enter_context(
                open_module.wrap(broker.pk, lambda driver: made.append(FaultyBroker(driver)) or made[-1])
            )
        yield lambda *operations: sum(faulty.count(name) for faulty in made for name in operations)


@contextmanager
def quota_guard() -> Iterator[None]:
    """Inside, the database itself refuses every row that would break I6, at whatever moment."""
    over = "NEW.used + NEW.reserved > NEW.quota"
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                f"CREATE TRIGGER i6 BEFORE UPDATE ON accounts_user WHEN {over} "
                "BEGIN SELECT RAISE(ABORT, 'I6'); END"
            )
        else:
            cursor.execute(
                "CREATE FUNCTION i6() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF {over} THEN RAISE EXCEPTION 'I6' USING ERRCODE = 'check_violation'; END IF; "
                "RETURN NEW; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER i6 BEFORE UPDATE ON accounts_user FOR EACH ROW EXECUTE FUNCTION i6()"
            )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute("DROP TRIGGER i6")
            else:
                cursor.execute("DROP TRIGGER i6 ON accounts_user")
                cursor.execute("DROP FUNCTION i6")


def clients(api: Api, user: User) -> list[APIClient]:
    made = api(user)
    assert made.get("/api/v1/account").status_code == 200
    (header,) = made._credentials.values()
    many = [APIClient(raise_request_exception=False) for _ in range(MANY)]
    for client in many:
        client.credentials(HTTP_AUTHORIZATION=header)
    return many


def clean() -> None:
    """Nothing is left over, on brokers or in rows."""
    assert Upload.objects.count() == 0
    reconcile.run_to_rest()
    collect()
    assert [str(finding) for finding in fsck.check(full=True)] == []


def test_the_guard_bites(alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(quota=10)
    with quota_guard():
        User.objects.filter(pk=alice.pk).update(used=10)
        with pytest.raises(IntegrityError):
            User.objects.filter(pk=alice.pk).update(reserved=1)


@pytest.mark.parametrize("door", ["put", "form"])
def test_fifty_uploads_of_a_tenth_of_the_quota(alice: User, three: list[Broker], api: Api, door: str) -> None:
    User.objects.filter(pk=alice.pk).update(quota=10 * SIZE)
    # A folder for each, so that no lock of a folder brings them into line.
    folders = [tree.create_folder(alice, alice, (f"folder {i}",)) for i in range(MANY)]
    many = clients(api, alice)
    data = b"x" * SIZE
    form = b'--e\r\nContent-Disposition: form-data; name="f"; filename="%d"\r\n\r\n' + data + b"\r\n--e--\r\n"

    def work(i: int) -> int:
        if door == "put":
            path, body, kind = f"files/folder {i}/f", data, "application/octet-stream"
            return int(many[i].generic("PUT", f"/api/v1/{path}", body, kind).status_code)
        path, body, kind = f"nodes/{folders[i].pk}/files", form % i, "multipart/form-data; boundary=e"
        return int(many[i].generic("POST", f"/api/v1/{path}", body, kind).status_code)

    with quota_guard():
        results = Counter(race(MANY, work))
    assert set(results) == {201, 413}, results
    # A form does not tell the size of its files, so that what it sets aside may keep others out for a moment.
    assert results[201] == 10 if door == "put" else 1 <= results[201] <= 10, results
    now = quota.usage(alice)
    assert (now.used, now.reserved) == (results[201] * SIZE, 0)
    clean()


@pytest.mark.parametrize("policy_of_door", ["version", "only new"])
def test_fifty_creates_of_one_name(alice: User, three: list[Broker], api: Api, policy_of_door: str) -> None:
    """All bytes are durable before the first of them commits: the constraint decides, not a look before."""
    tree.root_of(alice)
    many = clients(api, alice)
    headers = {"If-None-Match": "*"} if policy_of_door == "only new" else {}

    def work(i: int) -> int:
        body = f"number {i}".encode()
        path = "/api/v1/files/folder/same"
        kind = "application/octet-stream"
        return int(many[i].generic("PUT", path, body, kind, headers=headers).status_code)

    with meeting("upload.completed", MANY):
        results = Counter(race(MANY, work))
    others = 412 if headers else 200
    assert results == {201: 1, others: MANY - 1}
    node = tree.resolve(alice, ("folder", "same"))
    versions = list(node.versions.order_by("number"))
    assert [v.number for v in versions] == list(range(1, 2 if headers else MANY + 1))
    bodies = {load(v.content) for v in versions}
    assert len(bodies) == len(versions)
    assert bodies <= {f"number {i}".encode() for i in range(MANY)}
    clean()


# -- reconcilers --------------------------------------------------------------------------------------


def findings() -> set[str]:
    return {f.code for f in fsck.check(full=True)} - {"unreferenced"}


def test_two_reconcilers_find_one_segment(three: list[Broker], clock: VirtualClock) -> None:
    content = store(b"x" * SIZE)
    policy.change(copies=3)
    (pk,) = content.segments.values_list("pk", flat=True)

    def work(_i: int) -> reconcile.Report:
        report = reconcile.reconcile_segment(pk)
        go.set()
        return report

    # Both find it; whoever takes it is held in the middle until the other one has given up.
    with recorded(three) as count, meeting("reconcile.found", 2), held("reconcile.put") as (_there, go):
        reports = race(2, work)
        assert sorted(report.looked_at for report in reports) == [0, 1]
        assert sorted(report.copied for report in reports) == [0, 1]
        assert count("put") == 1
    assert copies(content) == 3
    assert findings() == set()


def test_a_reconciler_that_outlives_its_lease(three: list[Broker], clock: VirtualClock) -> None:
    """The copy of the slow one is not counted, and goes."""
    content = store(b"x" * SIZE)
    policy.change(copies=3)
    (pk,) = content.segments.values_list("pk", flat=True)

    def work(i: int) -> reconcile.Report:
        if i == 0:
            return reconcile.reconcile_segment(pk)
        assert there.wait(PATIENCE)
        clock.advance(minutes=11)
        report = reconcile.reconcile_segment(pk)
        go.set()
        return report

    with held("reconcile.put") as (there, go):
        slow, fast = race(2, work)
    assert (slow.copied, fast.copied) == (0, 1)
    settle(content)


def test_a_reconciler_that_puts_after_its_row_is_gone(three: list[Broker], clock: VirtualClock) -> None:
    """Held before its put until another one has done its work and the collector has dropped its row: its object is
    one that no row knows, which is deleted when it was seen twice."""
    content = store(b"x" * SIZE)
    policy.change(copies=3)
    (pk,) = content.segments.values_list("pk", flat=True)

    def work(i: int) -> reconcile.Report:
        if i == 0:
            return reconcile.reconcile_segment(pk)
        assert there.wait(PATIENCE)
        clock.advance(minutes=11)
        report = reconcile.reconcile_segment(pk)
        assert collect().objects == 1
        go.set()
        return report

    with held("reconcile.planned") as (there, go):
        slow, fast = race(2, work)
    assert (slow.copied, fast.copied) == (0, 1)
    assert orphans.scan().orphans == 1
    clock.advance(hours=49)
    assert orphans.scan().deleted == 1
    settle(content)


def settle(content: Content) -> None:
    clean_up = reconcile.run_to_rest()
    assert clean_up.copied == 0
    collect()
    assert copies(content) == 3
    assert Replica.objects.count() == 3
    assert load(content) == b"x" * SIZE
    assert findings() == set()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_task_delivered_twice_writes_once(three: list[Broker], clock: VirtualClock, at_once: bool) -> None:
    content = store(b"x" * SIZE)
    policy.change(copies=3)
    (pk,) = content.segments.values_list("pk", flat=True)
    with recorded(three) as count:
        if at_once:
            assert race(2, lambda _i: tasks.reconcile_segment(pk)) == [None, None]
        else:
            tasks.reconcile_segment(pk)
            assert count("put") == 1
            tasks.reconcile_segment(pk)
            tasks.reconcile_content(str(content.pk))
        assert count("put") == 1
        assert count("delete") == 0
    assert copies(content) == 3
    assert findings() == set()


def test_two_schedulers_sweep_at_once(three: list[Broker], clock: VirtualClock) -> None:
    """The sweep, and after it the collector, run twice at once: every copy is made once, every object goes."""
    kept = [store(b"%d" % n) for n in range(12)]
    policy.change(copies=3)
    with recorded(three) as count:
        reports = race(3, lambda _i: reconcile.sweep())
        assert [r for r in reports if isinstance(r, Exception)] == []
        assert sum(report.copied for report in reports) == len(kept)
        assert count("put") == len(kept)
    assert all(copies(content) == 3 for content in kept)
    policy.change(copies=2)
    clock.advance(hours=1)
    race(3, lambda _i: reconcile.sweep())
    assert all(copies(content) == 2 for content in kept)
    reports = race(3, lambda _i: collect())
    assert [r for r in reports if isinstance(r, Exception)] == []
    assert Replica.objects.count() == 2 * len(kept)
    assert Segment.objects.filter(check_at__isnull=False).count() == 0
    assert findings() == set()


def test_an_expired_upload_is_given_back_once(alice: User, three: list[Broker], clock: VirtualClock) -> None:
    User.objects.filter(pk=alice.pk).update(quota=10 * SIZE)
    for i in range(5):
        upload = FileUpload(alice, target_at(alice, [f"f{i}"]), size=SIZE)
        upload.write(b"x" * SIZE)
        upload.complete()
    assert quota.usage(alice).reserved == 5 * SIZE
    clock.advance(hours=2)
    assert sum(race(4, lambda _i: expire_uploads())) == 5
    assert quota.usage(alice).reserved == 0
    race(2, lambda _i: collect())
    clean()
    assert Replica.objects.count() == 0
