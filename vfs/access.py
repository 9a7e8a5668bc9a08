"""Who may see what. What a user may not see does not exist for that user."""

from __future__ import annotations

import uuid

from accounts.models import User
from vfs.errors import NodeNotFound
from vfs.models import Node
from vfs.names import MAX_DEPTH
from vfs.tree import LEVELS, Place

_ABOVE = [("parent__" * i) + "parent" for i in range(LEVELS)]


def get_node(user: User, node_id: uuid.UUID) -> Place:
    """A visible node of this user: its own, and neither it nor a folder above it is trashed. Raises
    NodeNotFound. Takes `1 + depth / LEVELS` queries."""
    node = Node.objects.filter(pk=node_id, owner=user).select_related("version__content", *_ABOVE).first()
    if node is None:
        raise NodeNotFound
    place, visible = _locate(node)
    if not visible:
        raise NodeNotFound
    return place


def get_trashed(user: User, node_id: uuid.UUID) -> Place:
    """A node of this user's trash: trashed itself, wherever it was. Raises NodeNotFound."""
    nodes = Node.objects.filter(pk=node_id, owner=user, trashed_at__isnull=False)
    node = nodes.select_related("version__content", *_ABOVE).first()
    if node is None:
        raise NodeNotFound
    return _locate(node)[0]


def locate(node: Node) -> Place:
    """A node with the names on the way to it, trashed or not."""
    return _locate(node)[0]


def visible(node: Node) -> bool:
    """Whether neither the node nor a folder above it is trashed, by the rows as they are now."""
    fresh = Node.objects.filter(pk=node.pk).select_related(*_ABOVE).first()
    return fresh is not None and _locate(fresh)[1]


def _locate(node: Node) -> tuple[Place, bool]:
    names: list[str] = []
    seen = node.trashed_at is None
    at = node
    while at.parent_id is not None:
        names.append(at.name)
        if len(names) > 2 * MAX_DEPTH:
            raise RuntimeError(f"node {node.pk} is in a cycle (see manage.py fsck)")
        if not Node.parent.is_cached(at):
            at.parent = Node.objects.select_related(*_ABOVE).get(pk=at.parent_id)
        assert at.parent is not None  # noqa: S101
        at = at.parent
        seen = seen and at.trashed_at is None
    return Place(node, tuple(reversed(names))), seen
