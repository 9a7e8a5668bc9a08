"""Names every violation of the invariants of names (vfs/models.py), of quota, and of bytes (replication/fsck.py).
It reads; it mends nothing."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator

from django.db.models import Count, F, Max, Q

from replication import fsck as bytes_fsck
from replication.fsck import Finding
from replication.models import Content
from vfs import recount
from vfs.access import locate
from vfs.models import Node, Upload, Version
from vfs.names import name_key
from vfs.upload import is_expired

WINDOW = 500


def check(full: bool = False) -> list[Finding]:
    """All findings; empty means that every invariant holds. `full` re-reads every object on every broker."""
    of_bytes = bytes_fsck.check(full)
    gone = {f.content for f in of_bytes if f.content is not None}
    return [*_tree(), *_versions(), *_uploads(), *_quota(), *of_bytes, *_unreadable(gone)]


def _tree() -> Iterator[Finding]:
    """Every node hangs below its owner's root, under folders of the same owner, without a cycle."""
    parents: dict[uuid.UUID, tuple[uuid.UUID | None, str, int]] = {}
    rows = Node.objects.order_by().values_list("pk", "parent_id", "kind", "owner_id", "name", "name_key")
    for pk, parent, kind, owner, name, key in rows.iterator():
        parents[pk] = (parent, kind, owner)
        if parent is not None and key != name_key(name):
            yield Finding("wrong_name_key", f"node {pk}: {name!r} has the key {key!r}")
    rooted: set[uuid.UUID] = set()
    for pk, (above, _kind, owner) in parents.items():
        if above is not None:
            if parents[above][1] != Node.Kind.FOLDER:
                yield Finding("parent_is_a_file", f"node {pk}")
            if parents[above][2] != owner:
                yield Finding("parent_of_another_owner", f"node {pk}")
        way: list[uuid.UUID] = []
        seen: set[uuid.UUID] = set()
        at: uuid.UUID | None = pk
        while at is not None and at not in rooted and at not in seen:
            way.append(at)
            seen.add(at)
            at = parents[at][0]
        if at is not None and at in seen:
            yield Finding("cycle", f"node {pk} does not hang below a root")
        rooted.update(way)


def _versions() -> Iterator[Finding]:
    newest = Node.objects.filter(kind=Node.Kind.FILE).annotate(top=Max("versions__number"))
    wrong = newest.filter(~Q(version__node=F("pk")) | ~Q(version__number=F("top")) | Q(top=None))
    for pk in wrong.values_list("pk", flat=True):
        yield Finding("wrong_current_version", f"node {pk}")
    unsealed = Version.objects.exclude(content__state=Content.State.SEALED)
    for pk, state in unsealed.values_list("pk", "content__state"):
        yield Finding("version_without_bytes", f"version {pk}: its content is {state}")
    folders = Node.objects.filter(kind=Node.Kind.FOLDER).annotate(n=Count("versions"))
    for pk in folders.filter(n__gt=0).values_list("pk", flat=True):
        yield Finding("folder_with_versions", f"node {pk}")


def _uploads() -> Iterator[Finding]:
    for upload in Upload.objects.select_related("content"):
        if upload.content.state != Content.State.OPEN:
            yield Finding("upload_of_closed_content", f"upload {upload.pk}: {upload.content.state}")
        elif is_expired(upload):
            yield Finding("expired_upload", f"upload {upload.pk} waits for the collector")


def _quota() -> Iterator[Finding]:
    for count in recount.recount(dry_run=True):
        if not count.right:
            yield Finding(
                "wrong_quota",
                f"{count.user}: {count.used} used, {count.reserved} reserved; "
                f"counted {count.counted_used}, {count.counted_reserved}",
            )


def _unreadable(contents: Collection[uuid.UUID]) -> Iterator[Finding]:
    """The files, by owner and path, whose bytes cannot be had now."""
    ids = sorted(contents)
    for start in range(0, len(ids), WINDOW):
        rows = Version.objects.filter(content__in=ids[start : start + WINDOW])
        for version in rows.select_related("node__owner").order_by("node", "number"):
            where = f"{version.node.owner.get_username()}: {_path(version.node)}"
            yield Finding("unreadable_file", f"{where}, version {version.number}")


def _path(node: Node) -> str:
    try:
        return locate(node).path
    except RuntimeError:  # a cycle, which has its own finding
        return f"node {node.pk}"
