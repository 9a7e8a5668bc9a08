"""The tree: look-ups, pages, locks, trash, purge."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from accounts import quota
from accounts.models import AuditEvent, User
from replication.collect import collect
from replication.models import Content
from tests.kit.threads import race
from tests.vfs.conftest import Put
from vfs import access, fsck, trash, tree
from vfs.errors import BadCursor, InvalidName, NameTaken, NodeNotFound, NotAFolder, RootNode
from vfs.models import Node, Upload, Version
from vfs.upload import FileUpload, target_at

pytestmark = pytest.mark.django_db


def folder(user: User, path: str) -> Node:
    return tree.create_folder(user, user, path.split("/"))


def codes() -> set[str]:
    return {finding.code for finding in fsck.check()}


def test_root_is_made_once(alice: User, bob: User) -> None:
    assert tree.root_of(alice) == tree.root_of(alice)
    assert tree.root_of(alice) != tree.root_of(bob)
    assert tree.resolve(alice, ()).is_root


def test_resolve_and_place(alice: User, put: Put) -> None:
    names = tuple(f"level {i}" for i in range(20))
    node = put(alice, "/".join(names))
    with CaptureQueriesContext(connection) as queries:
        assert tree.resolve(alice, names) == node
    assert len(queries) == 3
    with CaptureQueriesContext(connection) as queries:
        place = access.get_node(alice, node.pk)
    assert place.names == names
    assert len(queries) <= 4
    assert tree.find(alice, (*names[:-1], "other")) is None
    assert tree.find(alice, (*names, "below a file")) is None
    assert tree.deepest(alice, (*names[:5], "x", "y"))[1] == 5
    with pytest.raises(NotAFolder):
        tree.deepest(alice, (*names, "x"))


def test_nobody_finds_what_is_anothers(alice: User, bob: User, put: Put) -> None:
    node = put(alice, "a/b")
    assert tree.find(bob, ("a", "b")) is None
    with pytest.raises(NodeNotFound):
        access.get_node(bob, node.pk)
    with pytest.raises(NodeNotFound):
        trash.trash(bob, bob, node.pk)
    with pytest.raises(NodeNotFound):
        trash.purge(bob, bob, node.pk)


def test_create_folder(alice: User) -> None:
    made = folder(alice, "a/b/c")
    assert access.locate(made).path == "/a/b/c"
    with pytest.raises(NameTaken):
        folder(alice, "a/b")
    with pytest.raises(NameTaken):
        tree.create_folder(alice, alice, ())
    with pytest.raises(InvalidName):
        folder(alice, "a/../b")
    with pytest.raises(InvalidName):
        folder(alice, "/".join("x" * 101))
    assert AuditEvent.objects.filter(action="folder.created").count() == 1


def test_folder_below_a_file(alice: User, put: Put) -> None:
    put(alice, "file")
    with pytest.raises(NotAFolder):
        folder(alice, "file/x")
    with pytest.raises(NameTaken):
        folder(alice, "file")


def test_pages_are_complete_and_stable(alice: User, put: Put) -> None:
    root = tree.root_of(alice)
    names = [f"f{i}" for i in range(25)]
    for name in names:
        folder(alice, name)
    for name in ("b.txt", "A.txt", "c.txt"):
        put(alice, name)
    seen: list[str] = []
    cursor = None
    while True:
        page = tree.children(root, cursor=cursor, limit=4)
        seen += [n.name for n in page.nodes]
        if len(seen) == 8:
            trash.trash(alice, alice, tree.resolve(alice, ("f0",)).pk)  # shown already: nothing shifts
            folder(alice, "aaa")
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [*names, "A.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize(
    "cursor", ["x", "e30", "WzFd", "WyJhIl0", "[]", "W251bGwsMSwyXQ", "WyJhIiwiYlx1MDAwMCIsImMiXQ"]
)
def test_bad_cursors(alice: User, cursor: str) -> None:
    with pytest.raises(BadCursor):
        tree.children(tree.root_of(alice), cursor=cursor)
    with pytest.raises(BadCursor):
        tree.trash_of(alice, cursor=cursor)


def test_trash_hides_the_whole_folder_in_one_row(alice: User, put: Put) -> None:
    file = put(alice, "a/b/file")
    with CaptureQueriesContext(connection) as queries:
        trash.trash(alice, alice, tree.resolve(alice, ("a",)).pk)
    assert len(queries) < 15
    assert Node.objects.filter(trashed_at__isnull=False).count() == 1
    with pytest.raises(NodeNotFound):
        access.get_node(alice, file.pk)
    assert tree.find(alice, ("a", "b", "file")) is None
    assert tree.find(alice, ("a",)) is None
    assert quota.usage(alice).used == 4  # the trash counts
    put(alice, "a/b/file", b"another")  # the name is free again
    assert [n.name for n in tree.trash_of(alice).nodes] == ["a"]
    with pytest.raises(NodeNotFound):
        trash.trash(alice, alice, file.pk)
    with pytest.raises(RootNode):
        trash.trash(alice, alice, tree.root_of(alice).pk)
    assert codes() == set()


def test_purge_gives_everything_back(alice: User, put: Put) -> None:
    put(alice, "a/one", b"x" * 10)
    put(alice, "a/one", b"x" * 20)
    put(alice, "a/b/two", b"x" * 30)
    trash.trash(alice, alice, tree.resolve(alice, ("a", "b")).pk)
    put(alice, "keep", b"x" * 5)
    removed = trash.purge(alice, alice, tree.resolve(alice, ("a",)).pk)
    assert (removed.nodes, removed.bytes) == (4, 60)
    assert quota.usage(alice).used == 5
    assert Version.objects.count() == 1
    assert Content.objects.filter(state=Content.State.CONDEMNED).count() == 3
    event = AuditEvent.objects.get(action="folder.purged")
    assert (event.detail["bytes"], event.detail["path"]) == (60, "/a")
    collect(grace=timedelta(0))
    assert codes() == set()
    with pytest.raises(RootNode):
        trash.purge(alice, alice, tree.root_of(alice).pk)


def test_purge_of_a_big_folder_goes_in_batches(
    alice: User, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "BATCH", 5)
    for i in range(4):
        for j in range(4):
            put(alice, f"top/d{i}/f{j}", b"12")
    for j in range(7):
        put(alice, f"top/f{j}", b"12")
    top = tree.resolve(alice, ("top",))
    removed = trash.purge(alice, alice, top.pk)
    assert (removed.nodes, removed.bytes) == (1 + 4 + 16 + 7, 46)
    assert quota.usage(alice).used == 0
    assert Node.objects.count() == 1
    assert AuditEvent.objects.filter(action="folder.purged").count() > 4


def test_purged_folder_ends_its_uploads(alice: User, put: Put) -> None:
    put(alice, "a/x")
    with FileUpload(alice, target_at(alice, ("a", "new")), size=1) as upload:
        trash.purge(alice, alice, tree.resolve(alice, ("a",)).pk)
        assert Upload.objects.get().parent is None
        upload.abort()
    assert Upload.objects.count() == 0
    assert quota.usage(alice).reserved == 0


def test_the_database_refuses_twins(alice: User) -> None:
    root = tree.root_of(alice)
    tree.make(root, "a", Node.Kind.FOLDER)
    for build in (
        lambda: tree.make(root, "a", Node.Kind.FOLDER),
        lambda: tree.make(root, "b", Node.Kind.FILE),  # a file without a version
        lambda: Node.objects.create(owner=alice, kind="folder"),  # a second root
        lambda: tree.make(root, "", Node.Kind.FOLDER),
        lambda: Node.objects.filter(pk=root.pk).update(trashed_at=root.created_at),
        lambda: Node.objects.filter(parent=root).update(parent=Node.objects.get(name="a").pk),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            build()


def test_unknown_id(alice: User) -> None:
    tree.root_of(alice)
    with pytest.raises(NodeNotFound):
        trash.purge(alice, alice, uuid.uuid4())


@pytest.mark.django_db(transaction=True)
def test_concurrent_roots(alice: User) -> None:
    roots = race(8, lambda _i: tree.root_of(alice).pk)
    assert len(set(roots)) == 1, roots


@pytest.mark.django_db(transaction=True)
def test_concurrent_folders_of_one_name(alice: User) -> None:
    tree.root_of(alice)
    results = race(8, lambda _i: folder(alice, "deep/same"))
    assert sum(isinstance(r, Node) for r in results) == 1, results
    assert sum(isinstance(r, NameTaken) for r in results) == 7, results
    assert Node.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_concurrent_purges_refund_once(alice: User, put: Put) -> None:
    put(alice, "keep", b"x" * 7)
    top = put(alice, "a/b", b"x" * 100).parent
    assert top is not None
    results = race(4, lambda _i: trash.purge(alice, alice, top.pk))
    assert sum(not isinstance(r, Exception) for r in results) == 1, results
    assert quota.usage(alice).used == 7
