"""Uploads below HTTP: reservations, expiry, races, what happened meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from accounts import quota
from accounts.models import AuditEvent, Plan, User
from accounts.quota import QuotaExceeded
from brokers import clock as clock_module
from brokers.models import Broker, Health
from replication.collect import collect
from replication.errors import StateConflict, WriteRefused
from replication.models import Content, Replica
from replication.seal import SEGMENT_SIZE
from tests.kit.clock import VirtualClock
from tests.kit.threads import race
from tests.replication.kit import load
from tests.vfs.conftest import Put
from vfs import fsck, holder, trash, tree
from vfs import upload as uploads
from vfs.errors import (
    AccountClosed,
    DigestMismatch,
    InvalidName,
    IsAFolder,
    NotAFolder,
    ParentGone,
    SizeMismatch,
)
from vfs.models import Node, Upload, Version
from vfs.tree import Place
from vfs.upload import FileUpload, Outcome, commit_all, expire_uploads, target_at, target_in

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("two")]


def begin(user: User, path: str, **options: Any) -> FileUpload:
    return FileUpload(user, target_at(user, path.split("/")), **options)


def clean(user: User) -> None:
    """Nothing is left of an upload: no rows, no charge, and after `collect` no object."""
    assert Upload.objects.count() == 0
    assert quota.usage(user).reserved == 0
    collect(grace=timedelta(0))
    assert [str(f) for f in fsck.check(full=True)] == []
    assert Replica.objects.count() == 2 * Version.objects.count()


def test_first_and_second_version(alice: User, put: Put) -> None:
    first = put(alice, "a/file", b"one")
    second = put(alice, "a/file", b"second")
    assert first.pk == second.pk
    assert [v.number for v in second.versions.order_by("number")] == [1, 2]
    assert second.version is not None
    assert load(second.version.content) == b"second"
    assert quota.usage(alice).used == 9  # versions count
    actions = list(AuditEvent.objects.order_by("pk").values_list("action", flat=True))
    assert actions == ["file.created", "version.created"]
    clean(alice)


def test_plan_says_how_many_copies(alice: User, put: Put) -> None:
    alice.plan = Plan.objects.create(name="Single", copies=1)
    alice.save()
    node = put(alice, "file")
    assert node.version is not None
    assert node.version.content.copies == 1


def test_reservation_comes_first(alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(quota=100)
    with pytest.raises(QuotaExceeded):
        begin(alice, "big", size=101)
    assert (Upload.objects.count(), Content.objects.count()) == (0, 0)
    upload = begin(alice, "fits", size=100)
    assert quota.usage(alice).reserved == 100
    with pytest.raises(QuotaExceeded):
        begin(alice, "other", size=1)
    upload.abort()
    upload.abort()
    clean(alice)


def test_too_few_brokers_before_any_byte(alice: User, two: list[Broker]) -> None:
    Broker.objects.filter(pk=two[0].pk).update(health=Health.OFFLINE)
    with pytest.raises(WriteRefused):
        begin(alice, "file", size=10)
    Broker.objects.update(health=Health.ONLINE)
    clean(alice)


def test_unknown_size_reserves_in_steps_and_stops_at_the_quota(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STEP", 1000)
    User.objects.filter(pk=alice.pk).update(quota=2500)
    with begin(alice, "a") as upload:
        upload.write(b"x")
        assert quota.usage(alice).reserved == 1000
        upload.write(b"x" * 1700)
        assert quota.usage(alice).reserved == 2000
        upload.write(b"x" * 799)  # a whole step does not fit any more, but this does
        assert quota.usage(alice).reserved == 2500
        upload.complete()
        assert upload.commit().created
    assert quota.usage(alice).used == 2500
    with pytest.raises(QuotaExceeded), begin(alice, "b") as upload:
        upload.write(b"x")
    with begin(alice, "c", most=0) as upload:
        upload.complete()
        upload.commit()
    clean(alice)


def test_what_was_reserved_too_much_is_given_back_when_the_bytes_are_there(alice: User) -> None:
    with begin(alice, "a") as upload:
        upload.write(b"12345")
        assert quota.usage(alice).reserved == uploads.STEP
        upload.complete()
        assert quota.usage(alice).reserved == 5
    clean(alice)


@pytest.mark.parametrize("sent", [9, 11])
def test_size_is_what_was_said(alice: User, sent: int) -> None:
    with pytest.raises(SizeMismatch), begin(alice, "a", size=10) as upload:
        upload.write(b"x" * sent)
        upload.complete()
    clean(alice)


def test_digest_is_what_was_said(alice: User) -> None:
    with pytest.raises(DigestMismatch), begin(alice, "a", size=1) as upload:
        upload.write(b"x")
        upload.complete(sha256="0" * 64)
    clean(alice)


def test_targets(alice: User, put: Put) -> None:
    file = put(alice, "a/file")
    for path, error in (
        ("", InvalidName),
        ("a", IsAFolder),
        ("a/file/x", NotAFolder),
        ("a/../x", InvalidName),
    ):
        with pytest.raises(error):
            target_at(alice, path.split("/"))
    with pytest.raises(IsAFolder):
        target_at(alice, ())
    folder = file.parent
    assert folder is not None
    for name in ("", "..", "a/b", "x" * 256):
        with pytest.raises(InvalidName):
            target_in(alice, folder, name)
    tree.create_folder(alice, alice, ("a", "sub"))
    with pytest.raises(IsAFolder):
        target_in(alice, folder, "sub")
    deep = tree.create_folder(alice, alice, ("x",) * 100)
    with pytest.raises(InvalidName):
        target_in(alice, deep, "too deep")


def finish(upload: FileUpload, data: bytes = b"x") -> Outcome:
    with upload:
        upload.write(data)
        upload.complete()
        return upload.commit()


@pytest.mark.parametrize("what", ["trashed", "above trashed", "purged"])
def test_folder_deleted_during_the_upload(alice: User, what: str) -> None:
    folder = tree.create_folder(alice, alice, ("a", "b"))
    upload = begin(alice, "a/b/new/file", size=1)
    match what:
        case "trashed":
            trash.trash(alice, alice, folder.pk)
        case "above trashed":
            trash.trash(alice, alice, tree.resolve(alice, ("a",)).pk)
        case _:
            trash.purge(alice, alice, folder.pk)
    with pytest.raises(ParentGone):
        finish(upload)
    assert not Node.objects.filter(name="new").exists()
    clean(alice)


def test_what_stands_in_the_way_at_the_commit(alice: User, put: Put) -> None:
    first, second = begin(alice, "a/b", size=1), begin(alice, "a/c/d", size=1)
    tree.create_folder(alice, alice, ("a", "b"))
    put(alice, "a/c")
    with pytest.raises(IsAFolder):
        finish(first)
    with pytest.raises(NotAFolder):
        finish(second)
    clean(alice)


def test_both_uploads_of_one_file_become_versions(alice: User) -> None:
    first, second = begin(alice, "f", size=1), begin(alice, "f", size=1)
    assert finish(second, b"2").created
    assert not finish(first, b"1").created
    node = tree.resolve(alice, ("f",))
    assert node.version is not None
    assert load(node.version.content) == b"1"
    clean(alice)


def test_account_closed_during_the_upload(alice: User) -> None:
    upload = begin(alice, "f", size=1)
    User.objects.update(is_active=False)
    with pytest.raises(AccountClosed):
        finish(upload)
    clean(alice)


def test_all_or_none(alice: User) -> None:
    tree.root_of(alice)
    first, second = begin(alice, "one", size=1), begin(alice, "two", size=1)
    for upload in (first, second):
        upload.write(b"x")
        upload.complete()
    tree.create_folder(alice, alice, ("two",))
    with pytest.raises(IsAFolder):
        commit_all([first, second])
    assert tree.find(alice, ("one",)) is None
    first.abort()
    second.abort()
    clean(alice)


def test_expired_uploads_are_given_back_and_end_in_conflict(
    alice: User, clock: VirtualClock, settings: Any
) -> None:
    settings.CLOUDSTORE_UPLOAD_EXPIRY = timedelta(hours=1)
    upload = begin(alice, "f", size=SEGMENT_SIZE + 1)
    upload.write(b"x" * SEGMENT_SIZE)
    clock.advance(minutes=50)
    upload.write(b"")  # bytes arrive: it lives on
    clock.advance(minutes=50)
    assert expire_uploads() == 0
    clock.advance(minutes=11)
    assert expire_uploads(dry_run=True) == 1
    assert Upload.objects.count() == 1
    assert expire_uploads() == 1
    assert expire_uploads() == 0
    assert quota.usage(alice).reserved == 0
    with pytest.raises(StateConflict):
        upload.write(b"x")
    upload.abort()
    clean(alice)


def test_expired_between_the_last_byte_and_the_commit(alice: User) -> None:
    with pytest.raises(StateConflict), begin(alice, "f", size=1) as upload:
        upload.write(b"x")
        upload.complete()
        Upload.objects.update(expires_at=clock_module.now())
        assert expire_uploads() == 1
        upload.commit()
    assert tree.find(alice, ("f",)) is None
    clean(alice)


def test_holder(alice: User) -> None:
    upload = begin(alice, "f", size=1)
    assert upload.row.holder == holder.current()
    assert not holder.gone(holder.current())
    machine, boot, namespace, pid, start = holder.current().split("/")
    assert holder.gone(f"{machine}/{boot}/{namespace}/{pid}/{int(start) + 1}")  # the number was given again
    assert holder.gone(f"{machine}/{boot}/{namespace}/99999999/{start}")
    assert holder.gone(f"{machine}/another boot/{namespace}/{pid}/{start}")
    assert not holder.gone(f"another/{boot}/{namespace}/{pid}/{start}")
    assert not holder.gone(f"{machine}/{boot}/another/99999999/{start}")
    assert not holder.gone("nonsense")
    Upload.objects.update(holder=f"{machine}/{boot}/{namespace}/99999999/{start}")
    assert expire_uploads() == 1
    upload.abort()
    clean(alice)


@pytest.mark.django_db(transaction=True)
def test_quota_race(alice: User) -> None:
    """Twenty uploads of a tenth of the quota each: ten fit."""
    size = 1000
    User.objects.filter(pk=alice.pk).update(quota=10 * size)
    tree.root_of(alice)

    def work(i: int) -> bool:
        return finish(begin(alice, f"f{i}", size=size), b"x" * size).created

    results = race(20, work)
    assert sum(r is True for r in results) == 10, results
    assert sum(isinstance(r, QuotaExceeded) for r in results) == 10, results
    assert quota.usage(alice).used == 10 * size
    clean(alice)


@pytest.mark.django_db(transaction=True)
def test_one_new_file_uploaded_by_many_at_once(alice: User) -> None:
    tree.root_of(alice)
    results = race(8, lambda i: finish(begin(alice, "a/b/same", size=1), str(i).encode()).created)
    assert sorted(map(str, results)) == ["False"] * 7 + ["True"]
    node = tree.resolve(alice, ("a", "b", "same"))
    assert sorted(v.number for v in node.versions.all()) == list(range(1, 9))
    assert Place(node, ("a", "b", "same")).path == "/a/b/same"
    clean(alice)


@pytest.mark.django_db(transaction=True)
def test_trash_and_upload_race(alice: User) -> None:
    """Whoever is first: the file is in the folder's trash, or the upload ends in ParentGone. Never an orphan."""
    for round_ in range(4):
        folder = tree.create_folder(alice, alice, (f"d{round_}",))
        jobs = [
            lambda r=round_: finish(begin(alice, f"d{r}/file", size=1)).created,
            lambda f=folder: trash.purge(alice, alice, f.pk),
        ]
        upload, purged = race(2, lambda i, j=jobs: j[i]())
        assert not isinstance(purged, Exception), purged
        assert upload is True or isinstance(upload, ParentGone), upload
    assert quota.usage(alice).reserved == 0
    clean(alice)
