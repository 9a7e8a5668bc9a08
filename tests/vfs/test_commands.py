"""fsck names what is wrong with names and quota; quota_recount mends numbers; collect gives back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command

from accounts.models import User
from brokers import clock
from replication import contents
from replication.models import Content, Replica
from tests.brokers.conftest import _clean_brokers
from tests.replication.kit import memory_broker
from vfs import fsck
from vfs.models import Node, Upload, Version
from vfs.tree import root_of
from vfs.upload import FileUpload, target_at

__all__ = ["_clean_brokers"]
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def two_brokers() -> None:
    for name in "ab":
        memory_broker(name)


def put(user: User, path: str, data: bytes) -> Node:
    with FileUpload(user, target_at(user, path.split("/")), size=len(data)) as upload:
        upload.write(data)
        upload.complete()
        return upload.commit().node


def run(command: str, *arguments: str) -> Any:
    out = io.StringIO()
    call_command(command, *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def run_failing(command: str, *arguments: str) -> Any:
    """The findings of a command that ends with status 1."""
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command(command, *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())["findings"]


def codes() -> set[str]:
    return {f.code for f in fsck.check(full=True)}


def test_all_is_well(alice: User) -> None:
    put(alice, "a/b/c.txt", b"x" * 1000)
    assert run("fsck", "--full") == {"findings": []}


def _cycle(node: Node) -> None:
    folder = node.parent
    assert folder is not None
    inner = Node.objects.create(
        kind="folder", owner=node.owner, parent=folder, name="inner", name_key="inner", sort_key="inner"
    )
    Node.objects.filter(pk=folder.pk).update(parent=inner)


def _foreign(node: Node) -> None:
    other = User.objects.create_user("mallory")
    Node.objects.filter(pk=node.pk).update(owner=other)


def _below_a_file(node: Node) -> None:
    Node.objects.create(kind="folder", owner=node.owner, parent=node, name="x", name_key="x", sort_key="x")


def _open_content(node: Node) -> None:
    assert node.version is not None
    Content.objects.filter(pk=node.version.content_id).update(state=Content.State.OPEN)


def _stray_content(_node: Node) -> None:
    contents.create()


def _condemned(node: Node) -> None:
    assert node.version is not None
    Content.objects.filter(pk=node.version.content_id).update(state=Content.State.CONDEMNED)


def _expired(node: Node) -> None:
    Upload.objects.create(
        owner=node.owner,
        parent=node.parent,
        path="late",
        content=contents.create(),
        holder="elsewhere/boot/1/1",
        expires_at=clock.now() - timedelta(hours=1),
    )


def _old_version(node: Node) -> None:
    put(node.owner, "a/file", b"newer")
    assert node.version is not None
    Node.objects.filter(pk=node.pk).update(version=node.version)


def _folder_with_versions(node: Node) -> None:
    folder = node.parent
    assert folder is not None and node.version is not None
    Version.objects.create(node=folder, content_id=node.version.content_id, number=1)


def _closed_upload(node: Node) -> None:
    content = contents.create()
    contents.abandon(content.pk)
    Upload.objects.create(
        owner=node.owner,
        parent=node.parent,
        path="closed",
        content=content,
        holder="elsewhere/boot/1/1",
        expires_at=clock.now() + timedelta(hours=1),
    )


def _lost(node: Node) -> None:
    assert node.version is not None
    Replica.objects.filter(segment__content=node.version.content_id).update(state=Replica.State.LOST)


PLANTED: dict[str, Callable[[Node], object]] = {
    "cycle": _cycle,
    "parent_of_another_owner": _foreign,
    "parent_is_a_file": _below_a_file,
    "wrong_name_key": lambda n: Node.objects.filter(pk=n.pk).update(name_key="other"),
    "wrong_current_version": _old_version,
    "version_without_bytes": _open_content,
    "condemned_but_referenced": _condemned,
    "unreferenced": _stray_content,
    "expired_upload": _expired,
    "folder_with_versions": _folder_with_versions,
    "upload_of_closed_content": _closed_upload,
    "unreadable_file": _lost,
    "wrong_quota": lambda n: User.objects.filter(pk=n.owner_id).update(used=1),
}


@pytest.mark.parametrize("code", PLANTED)
def test_planted_violations_are_named(alice: User, code: str) -> None:
    node = put(alice, "a/file", b"data")
    assert codes() == set()
    PLANTED[code](node)
    assert code in codes()
    with pytest.raises(SystemExit) as ended:
        call_command("fsck", stdout=io.StringIO())
    assert ended.value.code == 1


def test_files_that_cannot_be_read_are_named_by_owner_and_path(alice: User, bob: User) -> None:
    node = put(alice, "a/b/damaged.txt", b"data")
    put(bob, "sound.txt", b"data")
    _lost(node)
    named = [f["detail"] for f in run_failing("fsck") if f["code"] == "unreadable_file"]
    assert named == ["alice: /a/b/damaged.txt, version 1"]


def test_a_cycle_does_not_stop_fsck(alice: User) -> None:
    node = put(alice, "a/file", b"data")
    _lost(node)
    _cycle(node)
    assert codes() >= {"cycle", "unreadable_file"}


def test_quota_recount_mends_wrong_numbers(alice: User, bob: User) -> None:
    put(alice, "one", b"x" * 100)
    put(alice, "one", b"x" * 50)
    User.objects.filter(pk=alice.pk).update(used=7, reserved=9)
    assert run("quota_recount", "--dry-run")["wrong"][0]["counted_used"] == 150
    assert run("quota_recount")["wrong"][0]["user"] == "alice"
    alice.refresh_from_db()
    assert (alice.used, alice.reserved) == (150, 0)
    assert run("quota_recount")["wrong"] == []


def test_collect_gives_back_what_nobody_continues(alice: User) -> None:
    upload = FileUpload(alice, target_at(alice, ["half"]), size=1000)
    upload.write(b"x" * 500)
    Upload.objects.update(expires_at=clock.now() - timedelta(seconds=1))
    assert run("collect", "--dry-run")["uploads"] == 1
    assert run("collect")["uploads"] == 1
    alice.refresh_from_db()
    assert (alice.used, alice.reserved) == (0, 0)
    upload.abort()
    assert codes() == set()
    assert root_of(alice).children.count() == 0
