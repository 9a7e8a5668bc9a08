"""Deleting: to the trash, which keeps every byte, and for good."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db.models import F, Sum
from django.http import HttpRequest

from accounts import audit, quota
from accounts.models import User
from brokers import clock
from replication import contents
from vfs.access import get_node, locate
from vfs.errors import NodeNotFound, RootNode
from vfs.models import Node, Upload, Version
from vfs.tree import locked, touch

# Nodes removed in one transaction: a big folder must not keep everybody else waiting.
BATCH = 1000


def trash(actor: User, owner: User, node_id: uuid.UUID, *, request: HttpRequest | None = None) -> None:
    """Move a visible node, with all that is in it, to the trash: one row, whatever its size. The bytes stay
    and count. Raises NodeNotFound, RootNode."""
    with locked(owner.pk):
        place = get_node(owner, node_id)
        if place.node.is_root:
            raise RootNode
        changed = Node.objects.filter(pk=node_id, trashed_at=None).update(trashed_at=clock.now())
        if changed != 1:
            raise NodeNotFound
        if place.node.parent_id is not None:
            touch(place.node.parent_id)
        audit.record(actor, f"{place.node.kind}.trashed", node_id, request, path=place.path)


@dataclass
class Purged:
    """What a purge removed: nodes, and the bytes of all their versions."""

    nodes: int = 0
    bytes: int = 0


def purge(actor: User, owner: User, node_id: uuid.UUID, *, request: HttpRequest | None = None) -> Purged:
    """Remove a node for good, with all that is in it and every version, wherever it is; the quota is given
    back and the contents are left to the collector. The node vanishes in the first transaction; a folder of
    more than BATCH nodes takes several, from the leaves up, and a purge that was interrupted is found in the
    trash and can be repeated. Raises NodeNotFound, RootNode."""
    total = Purged()
    first = True
    while True:
        with locked(owner.pk):
            node = Node.objects.filter(pk=node_id, owner=owner).first()
            if node is None:
                if first:
                    raise NodeNotFound
                return total
            if node.is_root:
                raise RootNode
            if not first and node.trashed_at is None:
                return total  # restored meanwhile
            path = locate(node).path
            Node.objects.filter(pk=node_id, trashed_at=None).update(trashed_at=clock.now())
            doomed = _leaves(node_id)
            removed = _remove(owner, doomed)
            if first and node.parent_id is not None:
                touch(node.parent_id)
            audit.record(
                actor,
                f"{node.kind}.purged",
                node_id,
                request,
                path=path,
                nodes=removed.nodes,
                bytes=removed.bytes,
            )
        first = False
        total.nodes += removed.nodes
        total.bytes += removed.bytes
        if node_id in doomed:
            return total


def _leaves(top: uuid.UUID) -> list[uuid.UUID]:
    """At most BATCH nodes of the subtree, `top` among them when they are all; no other node is below them."""
    found, frontier = [top], [top]
    while frontier and len(found) <= BATCH:
        below = Node.objects.filter(parent__in=frontier).order_by().values_list("pk", "kind")
        rows = list(below[: BATCH + 1 - len(found)])
        found += [pk for pk, _kind in rows]
        frontier = [pk for pk, kind in rows if kind == Node.Kind.FOLDER]
    if len(found) <= BATCH:
        return found
    found = []
    _gather(top, found)
    return found


def _gather(folder: uuid.UUID, found: list[uuid.UUID]) -> bool:
    """Append the subtree of a folder, what is inside before the folder: -> whether it fitted."""
    below = Node.objects.filter(parent=folder).order_by().values_list("pk", flat=True)
    for inner in list(below.filter(kind=Node.Kind.FOLDER)[:BATCH]):
        if not _gather(inner, found):
            return False
    room = BATCH - len(found)
    files = list(below.filter(kind=Node.Kind.FILE)[: room + 1])
    found += files[:room]
    if len(files) > room or len(found) >= BATCH:
        return False
    found.append(folder)
    return True


def _remove(owner: User, ids: list[uuid.UUID]) -> Purged:
    versions = Version.objects.filter(node__in=ids)
    content_ids = set(versions.values_list("content", flat=True))
    size = versions.aggregate(total=Sum(F("content__size")))["total"] or 0
    # Raw deletes: files and versions point at each other, and the database checks that when it commits.
    nodes = Node.objects.filter(pk__in=ids)
    gone = nodes._raw_delete(nodes.db)
    versions._raw_delete(versions.db)
    # After the nodes: an upload that starts meanwhile holds its folder's row, so it is seen here, or finds none.
    Upload.objects.filter(parent__in=ids).update(parent=None)
    contents.condemn_unreferenced(content_ids)
    quota.refund(owner.pk, size)
    return Purged(gone, size)
