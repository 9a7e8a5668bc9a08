"""The drill: thousands of files, the database gone, and every byte back from the brokers and the master key."""

from __future__ import annotations

import hashlib
import os
import uuid
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F

from accounts.models import Token, User
from brokers import clock as clock_module
from brokers.keyring import keyring
from brokers.models import Broker
from brokers.names import new_object_key
from console.snapshot import make
from replication import reconcile, vault
from replication.keys import PURPOSE, new_wrapped_key
from replication.models import Content, Replica, Segment
from replication.seal import SEGMENT_SIZE, open_object, seal
from tests.console.kit import drop_database, objects_of, places, run, tree, unread
from tests.replication.kit import Objects
from tests.vfs.conftest import Put
from vfs import tree as vfs_tree
from vfs.models import Node, Version
from vfs.names import name_key, sort_key

pytestmark = pytest.mark.django_db(transaction=True)
BIG = SEGMENT_SIZE + 300_000
FILES, NEWER = 10_000 if connection.vendor == "sqlite" else 2_000, 60


def _stored(owner: User, count: int, two: list[Broker], folder: str) -> dict[str, str]:
    """Many small files, sealed one by one with the product's own cipher and put as the product stores them; only
    their rows are written many at a time."""
    root = vfs_tree.root_of(owner)
    folders = [vfs_tree.make(root, f"{folder}-{number}", Node.Kind.FOLDER) for number in range(20)]
    contents, segments, replicas, nodes, versions = [], [], [], [], []
    hashes = {}
    now = clock_module.now()
    places_ = [Objects(broker) for broker in two]
    for number in range(count):
        data = b"%d " % number * (number % 40 + 1)
        content_id = uuid.uuid4()
        version, wrapped = new_wrapped_key(content_id)
        key = keyring().open(PURPOSE, version, wrapped, content_id.bytes)
        sealed = seal(
            key, data, content_id=content_id, position=0, offset=0, last=True, key_version=version,
            wrapped_key=wrapped,
        )  # fmt: skip
        sha = hashlib.sha256(data).hexdigest()
        content = Content(
            id=content_id, state="sealed", size=len(data), sha256=sha, key_version=version, wrapped_key=wrapped,
            created_at=now, sealed_at=now,
        )  # fmt: skip
        segment = Segment(
            content=content, position=0, offset=0, size=len(data), sealed_size=len(sealed.data),
            checksum=sealed.checksum, header=sealed.header,
        )  # fmt: skip
        contents.append(content)
        segments.append(segment)
        for broker, place in zip(two, places_, strict=True):
            name = new_object_key()
            place[name] = sealed.data
            replicas.append(
                Replica(
                    segment=segment,
                    broker=broker,
                    key=name,
                    locator=name,
                    state="stored",
                    stored_at=now,
                    verified_at=now,
                )
            )
        parent, name = folders[number % 20], f"file {number}.txt"
        node = Node(
            kind="file",
            owner=owner,
            parent=parent,
            name=name,
            name_key=name_key(name),
            sort_key=sort_key(name),
        )
        node.version = Version(node=node, content=content, number=1, created_by=owner)
        versions.append(node.version)
        nodes.append(node)
        hashes[f"{owner.username}:/{parent.name}/{name}"] = sha
    with transaction.atomic():
        Content.objects.bulk_create(contents, batch_size=1000)
        Segment.objects.bulk_create(segments, batch_size=1000)
        Replica.objects.bulk_create(replicas, batch_size=1000)
        Node.objects.bulk_create(nodes, batch_size=1000)
        Version.objects.bulk_create(versions, batch_size=1000)
        total = sum(content.size for content in contents)
        User.objects.filter(pk=owner.pk).update(used=F("used") + total)
    return hashes


def _differing(two: list[Broker]) -> list[str]:
    """Contents that are not on both brokers with the bytes that their hash says, every byte opened and hashed."""
    ring = keyring()
    places_ = {broker.name: Objects(broker) for broker in two}
    rows = Replica.objects.filter(state="stored").select_related("segment__content", "broker")
    hashes: dict[tuple[str, uuid.UUID], Any] = {}
    expected: dict[uuid.UUID, str] = {}
    for replica in rows.order_by("segment__content", "segment__position").iterator():
        content = replica.segment.content
        key = ring.open(PURPOSE, content.key_version, bytes(content.wrapped_key), content.pk.bytes)
        digest = hashes.setdefault((replica.broker.name, content.pk), hashlib.sha256())
        digest.update(open_object(key, places_[replica.broker.name][replica.locator]))
        expected[content.pk] = content.sha256
    return [
        f"{content} on {name}"
        for content, sha256 in expected.items()
        for name in places_
        if (name, content) not in hashes or hashes[name, content].hexdigest() != sha256
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_drill_with_ten_thousand_files(put: Put, two: list[Broker], alice: User, root: User) -> None:
    hashes = _stored(alice, FILES - 3, two, "folder")
    for number in range(3):
        data = os.urandom(SEGMENT_SIZE * (number + 1) + number)
        put(alice, f"big/{number}", data)
        hashes[f"alice:/big/{number}"] = hashlib.sha256(data).hexdigest()
    assert tree() == hashes and len(hashes) == FILES
    made = make()
    assert made.rows > 6 * FILES
    newer = [put(alice, f"newer/{n}", b"newer %d" % n if n else os.urandom(BIG)) for n in range(NEWER)]
    newer_hashes = sorted(node.version.content.sha256 for node in newer if node.version)
    arguments = places(*two)
    known = [objects_of(broker) for broker in two]

    drop_database()
    report = run("rebuild", *arguments)

    assert report["snapshot"]["files"] == Node.objects.filter(owner__username="alice").count()
    assert report["objects"]["contents"] == NEWER
    after = tree()
    assert {path: sha for path, sha in after.items() if path.startswith("alice:")} == hashes
    assert sorted(sha for path, sha in after.items() if path.startswith("root:/lost+found/")) == newer_hashes
    assert len(after) == FILES + NEWER
    assert _differing(two) == []
    sample = Version.objects.filter(number=1, node__name__endswith="7.txt")[:200]
    assert (
        unread(Version.objects.filter(node__parent__name__in=["big", "lost+found"])) == unread(sample) == []
    )
    assert [objects_of(broker) for broker in two] == known
    run("epoch_confirm")
    reconcile.run_to_rest()
    assert run("fsck") == {"findings": []}
    assert Token.objects.count() == 0 and vault.on_broker(two[0])[made.pk].manifest
