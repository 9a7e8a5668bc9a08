"""A drive comes back from its brokers and the master key alone."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.core.management.base import CommandError

from accounts import tokens
from accounts.models import Plan, User
from brokers import clock as clock_module
from brokers import credentials, entropy
from brokers.errors import Unavailable
from brokers.models import Broker, MasterKeyCheck
from brokers.names import new_object_key
from brokers.open import wrap
from brokers.services import add_broker
from brokers.testing.faulty import FaultyBroker
from replication import collect, reconcile
from replication.models import Content, Replica, Segment
from replication.seal import SEGMENT_SIZE, seal
from tests.brokers.conftest import roots
from tests.cast import PASSWORD
from tests.console.kit import (
    Crash,
    crash_at,
    drop_database,
    new_process,
    places,
    run,
    tree,
    unread,
)
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, memory_broker
from tests.vfs.conftest import Put
from vfs import found, trash
from vfs.models import Node, Version
from vfs.upload import FileUpload, target_at

__all__ = ["roots"]
pytestmark = pytest.mark.django_db(transaction=True)
BIG = SEGMENT_SIZE + 300_000


def drive(put: Put, alice: User) -> None:
    put(alice, "a/b/one.txt", b"first version")
    put(alice, "a/b/one.txt", b"second version")
    put(alice, "big", os.urandom(BIG))
    put(alice, "empty", b"")
    node = put(alice, "gone.txt", b"in the trash")
    trash.trash(alice, alice, node.pk)


def test_everything_comes_back(put: Put, two: list[Broker], alice: User, root: User) -> None:
    drive(put, alice)
    User.objects.filter(pk=alice.pk).update(plan=Plan.objects.first())
    _row, plain = tokens.create(alice, "mine")
    before, shape = (
        tree(),
        [list(Node.objects.order_by("pk").values_list()), list(Version.objects.order_by("pk").values_list())],
    )
    made = run("snapshot")
    put(alice, "newer.pdf", b"%PDF-1.7 newer")
    newer = put(alice, "newer-big", os.urandom(BIG))
    assert newer.version is not None
    newer_hash = newer.version.content.sha256
    used = User.objects.get(pk=alice.pk).used
    stored = {broker.pk: dict(Objects(broker)) for broker in two}
    arguments = places(*two)
    drop_database()
    assert not User.objects.exists()
    assert run("rebuild", *arguments, "--list")["snapshots"][0]["id"] == made["id"]
    dry = run("rebuild", *arguments, "--dry-run")
    assert dry["snapshot"]["id"] == made["id"] and not User.objects.exists()

    report = run("rebuild", *arguments)

    assert report["snapshot"]["id"] == made["id"] and report["operator"] == "root"
    objects = report["objects"]
    assert (objects["contents"], objects["incomplete"], objects["damaged"]) == (2, [], [])
    after = tree()
    lost = {path: sha for path, sha in after.items() if "lost+found" in path}
    assert {path: sha for path, sha in after.items() if path not in lost} == before
    assert set(lost.values()) == {newer_hash, hashlib.sha256(b"%PDF-1.7 newer").hexdigest()}
    assert any(path.endswith(".pdf") for path in lost) and all(path.startswith("root:") for path in lost)
    kept = Node.objects.exclude(owner=User.objects.get(username="root"))
    assert list(kept.order_by("pk").values_list()) == shape[0]
    assert list(Version.objects.filter(node__in=kept).order_by("pk").values_list()) == shape[1]
    assert unread() == []
    found_user = User.objects.get(username="alice")
    assert found_user.check_password(PASSWORD) and tokens.verify(plain) is not None
    assert found_user.used == used - len(b"%PDF-1.7 newer") - BIG
    assert User.objects.get(username="root").used == len(b"%PDF-1.7 newer") + BIG
    # Nothing on any broker was deleted or changed, and nothing will be before the operator says so.
    for broker in two:
        assert stored[broker.pk].items() <= dict(Objects(broker)).items()
    assert run("epoch_confirm", "--dry-run")["locked"] is True
    # Again: nothing more to do.
    again = run("rebuild", *arguments)
    assert (again["rows"], again["objects"]["contents"], again["objects"]["unknown"]) == (0, 0, 0)
    run("epoch_confirm")
    reconcile.run_to_rest()
    # It lives: new rows do not collide with those that came back.
    put(User.objects.get(username="alice"), "after", b"new")
    tokens.create(found_user, "another")
    second = run("snapshot")
    assert second["number"] > made["number"]
    assert run("fsck", "--full") == {"findings": []}
    with pytest.raises(CommandError, match="not empty"):
        run("rebuild", *arguments)


def test_a_file_deleted_after_the_snapshot_comes_back(put: Put, two: list[Broker], alice: User) -> None:
    node = put(alice, "deleted", b"data")
    run("snapshot")
    trash.purge(alice, alice, node.pk)
    drop_database()
    run("rebuild", *places(*two))
    assert set(tree()) == {"alice:/deleted"} and unread() == []


def test_one_broker_is_missing(put: Put, two: list[Broker], alice: User, clock: VirtualClock) -> None:
    put(alice, "f", b"data")
    run("snapshot")
    put(alice, "newer", b"more")
    with wrap(None, lambda driver: _down(driver, "tests-a")):
        arguments = places(*two)
        drop_database()
        report = run("rebuild", *arguments)
        assert any(text.startswith("a: unavailable") for text in report["unreachable"])
        assert report["objects"]["unreachable"] == ["a"]
        assert report["objects"]["contents"] == 1
        assert unread() == [] and len(tree()) == 2
    # The other comes back: its copies are known again.
    clock.advance(hours=1)
    assert run("adopt")["objects"]["copies"] == 1
    run("epoch_confirm")
    reconcile.run_to_rest()
    assert run("fsck", "--full") == {"findings": []}


def _down(driver: Any, space: str) -> FaultyBroker:
    faulty = FaultyBroker(driver)
    if faulty.inner.options["space"] == space:
        faulty.fail("*", Unavailable("down"))
    return faulty


def test_given_one_place_the_snapshot_knows_the_other(put: Put, two: list[Broker], alice: User) -> None:
    put(alice, "f", b"data")
    for broker in two:
        credentials.seal_secrets(broker, {"password": f"canary {broker.name}"})
        broker.save()
    run("snapshot")
    drop_database()
    report = run("rebuild", *places(two[1]))
    assert report["brokers"] == ["a", "b"]
    for broker in Broker.objects.all():
        assert credentials.open_secrets(broker) == {"password": f"canary {broker.name}"}
    assert {b.health for b in Broker.objects.all()} == {"online"}


def test_a_damaged_newest_snapshot(put: Put, two: list[Broker], alice: User) -> None:
    put(alice, "old", b"data")
    first = run("snapshot")
    put(alice, "new", b"more")
    second = run("snapshot")
    for broker in two:
        objects = Objects(broker)
        for name in [n for n in objects if second["id"].replace("-", "") in n and n.endswith("/000000")]:
            objects[name] = objects[name][:-1] + bytes([objects[name][-1] ^ 1])
    drop_database()
    report = run("rebuild", *places(*two))
    assert report["snapshot"]["id"] == first["id"]
    assert len(report["skipped"]) == 1 and "part 0 cannot be read" in report["skipped"][0]
    assert report["objects"]["contents"] == 1 and unread() == []


def test_one_damaged_copy_is_no_matter(put: Put, two: list[Broker], alice: User) -> None:
    put(alice, "f", b"data")
    made = run("snapshot")
    objects = Objects(two[0])
    for name in [n for n in objects if n.startswith("cs-meta/snapshot-")]:
        objects[name] = b"garbage"
    drop_database()
    assert run("rebuild", *places(*two))["snapshot"]["id"] == made["id"]


def test_a_wrong_master_key_changes_nothing(put: Put, two: list[Broker], alice: User, settings: Any) -> None:
    put(alice, "f", b"data")
    run("snapshot")
    arguments = places(*two)
    drop_database()
    right = settings.CLOUDSTORE_MASTER_KEYS
    for wrong, words in (
        ({1: b"w" * 32}, "does not open"),
        ({2: b"w" * 32}, "version 1 is not configured"),
    ):
        settings.CLOUDSTORE_MASTER_KEYS = wrong
        with pytest.raises(CommandError, match=words) as caught:
            run("rebuild", *arguments)
        assert "nothing was changed" in str(caught.value)
        assert (
            not User.objects.exists() and not Broker.objects.exists() and not MasterKeyCheck.objects.exists()
        )
    settings.CLOUDSTORE_MASTER_KEYS = right
    assert run("rebuild", *arguments)["rows"] > 0


def test_without_any_snapshot(put: Put, two: list[Broker], alice: User) -> None:
    drive(put, alice)
    hashes = sorted(Content.objects.values_list("sha256", flat=True))
    arguments = places(*two)
    drop_database()
    with pytest.raises(CommandError, match="there is no snapshot on these brokers"):
        run("rebuild", *arguments)
    assert not Broker.objects.exists()
    report = run("rebuild", *arguments, "--without-snapshot")
    assert report["password"] and report["operator"] == "admin"
    assert User.objects.get().check_password(report["password"])
    assert sorted(tree().values()) == hashes and unread() == []
    run("epoch_confirm")
    reconcile.run_to_rest()
    assert run("fsck", "--full") == {"findings": []}


def test_incomplete_and_foreign_objects_are_listed_and_left(
    put: Put, two: list[Broker], alice: User, root: User
) -> None:
    run("snapshot")
    put(alice, "cut", os.urandom(BIG))
    put(alice, "rotten", b"rotten" * 100)
    put(alice, "headless", os.urandom(BIG))
    names = {n.name: n for n in Node.objects.select_related("version")}

    def replicas(name: str, position: int) -> list[Replica]:
        version = names[name].version
        assert version is not None
        rows = Replica.objects.filter(segment__content=version.content_id, segment__position=position)
        return list(rows.select_related("broker"))

    for replica in replicas("cut", 1) + replicas("headless", 0):
        del Objects(replica.broker)[replica.locator]
    for replica in replicas("rotten", 0):
        objects = Objects(replica.broker)
        objects[replica.locator] = objects[replica.locator][:-1] + b"!"
    Objects(two[0])[new_object_key()] = b"not a sealed segment, but long enough to hold a header " * 5
    Objects(two[0])[new_object_key()] = b"short"
    left = {broker.pk: dict(Objects(broker)) for broker in two}
    drop_database()
    objects = run("rebuild", *places(*two))["objects"]
    assert (objects["contents"], objects["not_ours"]) == (0, 2)
    assert len(objects["incomplete"]) == 2 and len(objects["damaged"]) == 1
    assert tree() == {} and not Content.objects.exists() and not Replica.objects.exists()
    for broker in two:
        assert left[broker.pk].items() <= dict(Objects(broker)).items()


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_copy_of_a_newer_file_is_left_out(
    put: Put, two: list[Broker], alice: User, root: User, which: int
) -> None:
    run("snapshot")
    put(alice, "newer", b"data" * 50)
    replica = Replica.objects.order_by("broker")[which]
    objects = Objects(replica.broker)
    objects[replica.locator] = objects[replica.locator][:-1] + b"!"
    drop_database()
    report = run("rebuild", *places(*two))
    assert report["objects"]["contents"] == 1 and unread() == []
    assert Replica.objects.count() == 1


def test_objects_under_another_master_key_are_left(two: list[Broker], root: User) -> None:
    """Somebody who can write to a broker cannot put a file into a drive."""
    run("snapshot")
    forged = uuid.uuid4()
    key = entropy.token_bytes(32)
    sealed = seal(
        key, b"forged", content_id=forged, position=0, offset=0, last=True, key_version=1,
        wrapped_key=entropy.token_bytes(60),
    )  # fmt: skip
    Objects(two[0])[new_object_key()] = sealed.data
    drop_database()
    objects = run("rebuild", *places(*two))["objects"]
    assert (objects["not_ours"], objects["contents"]) == (1, 0)


@pytest.mark.parametrize(
    ("place", "time"), [("restore.inserted", 1), ("adopt.content_verified", 1), ("adopt.content_verified", 2)]
)
def test_a_crash_and_again(
    put: Put, two: list[Broker], alice: User, root: User, place: str, time: int
) -> None:
    put(alice, "f", b"data")
    run("snapshot")
    for number in range(3):
        put(alice, f"newer-{number}", b"x" * (number + 1))
    arguments = places(*two)
    drop_database()
    with crash_at(place, time), pytest.raises(Crash):
        run("rebuild", *arguments)
    assert User.objects.exists() is (place != "restore.inserted")
    new_process()
    run("rebuild", *arguments)
    assert len(tree()) == 4 and unread() == []
    assert User.objects.get(username="root").used == 6
    run("epoch_confirm")
    reconcile.run_to_rest()
    assert run("fsck", "--full") == {"findings": []}


def test_copies_that_were_moved_since_are_known_again(put: Put, two: list[Broker], alice: User) -> None:
    """Repair and drains write objects that the snapshot does not know, of segments that it does."""
    node = put(alice, "f", b"data")
    run("snapshot")
    memory_broker("c")
    assert node.version is not None
    first = Replica.objects.filter(segment__content=node.version.content_id, broker=two[0])
    first.update(state=Replica.State.LOST)
    Broker.objects.filter(pk=two[0].pk).update(weight=0)
    Segment.objects.update(check_at=clock_module.now())
    reconcile.run_to_rest()
    collect.collect()
    assert Replica.objects.filter(broker__name="c", state="stored").count() == 1
    arguments = places(*two, Broker.objects.get(name="c"))
    drop_database()
    report = run("rebuild", *arguments)
    assert report["objects"]["copies"] == 1 and report["brokers"] == ["a", "b", "c"]
    assert unread() == [] and Replica.objects.filter(broker__name="c", state="stored").count() == 1


def test_a_place_that_moved_gets_its_new_options(roots: Path, tmp_path: Path, alice: User) -> None:
    for name in "ab":
        add_broker(name, "local", name, {"root": str(roots / name), "sync": False})
    with FileUpload(alice, target_at(alice, ["f"]), size=4) as upload:
        upload.write(b"data")
        upload.complete()
        upload.commit()
    run("snapshot")
    drop_database()
    (roots / "a").rename(roots / "moved")
    report = run("rebuild", "--broker", "x", "local", f"root={roots / 'moved'}", "sync=")
    assert report["brokers"] == ["a", "b"]
    moved = Broker.objects.get(name="a")
    assert moved.options["root"] == str(roots / "moved") and moved.health == "online"
    assert unread() == []


def test_places_from_a_file_and_the_environment(
    put: Put, two: list[Broker], roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("snapshot")
    (tmp_path / "places.json").write_text(
        json.dumps([{"name": "a", "driver": "memory", "options": {"space": "tests-a"}}])
    )
    monkeypatch.setenv("T_SPACE", "tests-b")
    drop_database()
    listed = run(
        "rebuild",
        "--list",
        "--brokers",
        str(tmp_path / "places.json"),
        "--broker",
        "b",
        "memory",
        "space=env:T_SPACE",
    )
    assert listed["snapshots"][0]["brokers"] == ["a", "b"]
    for words, arguments in {
        "name at least one broker": [],
        "write --broker NAME DRIVER": ["--broker", "a", "space=1"],
        "T_NONE is not set": ["--broker", "a", "memory", "space=env:T_NONE"],
        "none of the brokers answers": ["--broker", "a", "local", f"root={roots}/none"],
        "no such option": ["--broker", "a", "memory", "colour=red"],
        "JSONDecodeError": ["--brokers", __file__],
    }.items():
        with pytest.raises(CommandError, match=words):
            run("rebuild", *arguments)
    assert not Broker.objects.exists()


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"\x89PNG\r\n\x1a\n....", ".png"),
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"....ftypisom", ".mp4"),
        ("caf\u00e9, r\u00e9sum\u00e9\n".encode(), ".txt"),
        (b"\x00\x01\x02\x03" * 10, ""),
        (b"", ""),
    ],
)
def test_the_kind_is_told_by_the_first_bytes(head: bytes, suffix: str) -> None:
    assert found.extension(head) == suffix
