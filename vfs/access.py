"""Who may see what. What a user may not see does not exist for that user."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db.models import F

from accounts.models import User
from prepared.query import Query, Slot
from vfs.errors import NodeNotFound
from vfs.models import Node
from vfs.names import MAX_DEPTH
from vfs.tree import LEVELS, NODE_COLUMNS, Place, node_of

# Of each folder on the way up: its name, when it was trashed, its parent.
_LEVEL = ("name", "trashed_at", "parent_id")
_OWN_LEVELS = [F(("parent__" * i) + name) for i in range(LEVELS) for name in _LEVEL]
_LEVELS_ABOVE = [F(("parent__" * i) + name) for i in range(1, LEVELS + 1) for name in _LEVEL]
_UP = Query(lambda: Node.objects.filter(pk=Slot("node", Node, "id")).values_list(*_OWN_LEVELS))
_OWN = Query(
    lambda: Node.objects.filter(pk=Slot("node", Node, "id"), owner=Slot("owner", User, "id")).values_list(
        *NODE_COLUMNS, *_LEVELS_ABOVE
    )
)


def _get(user: User, node_id: uuid.UUID) -> tuple[Place, bool]:
    for row in _OWN(node=node_id, owner=user.pk):
        return _locate(node_of(row[: len(NODE_COLUMNS)]), row[len(NODE_COLUMNS) :])
    raise NodeNotFound


def get_node(user: User, node_id: uuid.UUID) -> Place:
    """A visible node of this user: its own, and neither it nor a folder above it is trashed. Raises
    NodeNotFound. Takes `1 + depth / LEVELS` queries."""
    place, visible = _get(user, node_id)
    if not visible:
        raise NodeNotFound
    return place


def get_trashed(user: User, node_id: uuid.UUID) -> Place:
    """A node of this user's trash: trashed itself, wherever it was. Raises NodeNotFound."""
    place, _visible = _get(user, node_id)
    if place.node.trashed_at is None:
        raise NodeNotFound
    return place


def locate(node: Node) -> Place:
    """A node with the names on the way to it, trashed or not."""
    return _locate(node)[0]


def locate_all(nodes: Iterable[Node]) -> dict[uuid.UUID, Place]:
    """`locate` of many nodes, in one query for each level of folders above them."""
    found = {node.pk: node for node in nodes}
    above: dict[uuid.UUID, tuple[str, uuid.UUID | None]] = {}
    level = {node.parent_id for node in found.values()}
    while missing := [pk for pk in level if pk is not None and pk not in above]:
        rows = Node.objects.filter(pk__in=missing).values_list("pk", "name", "parent_id")
        level = set()
        for pk, name, parent_id in rows:
            above[pk] = name, parent_id
            level.add(parent_id)
    places = {}
    for pk, node in found.items():
        names, at = ([node.name] if node.parent_id is not None else []), node.parent_id
        while at is not None:
            name, at = above[at]
            if name:  # the root has none
                names.append(name)
            if len(names) > 2 * MAX_DEPTH:
                raise RuntimeError(f"node {node.pk} is in a cycle (see manage.py fsck)")
        places[pk] = Place(node, tuple(reversed(names)))
    return places


def visible(node: Node) -> bool:
    """Whether neither the node nor a folder above it is trashed, by the rows as they are now."""
    levels = list(_up(node.pk))
    return bool(levels) and all(trashed_at is None for _name, trashed_at in levels)


def _locate(node: Node, above: Sequence[Any] = ()) -> tuple[Place, bool]:
    """A node with its place, and whether it is visible. `above` are the levels above it that are known."""
    if node.parent_id is None:
        return Place(node, ()), node.trashed_at is None
    names, seen = [node.name], node.trashed_at is None
    for name, trashed_at in _up(node.parent_id, above):
        if name:  # the root has none
            names.append(name)
        if len(names) > 2 * MAX_DEPTH:
            raise RuntimeError(f"node {node.pk} is in a cycle (see manage.py fsck)")
        seen = seen and trashed_at is None
    return Place(node, tuple(reversed(names))), seen


def _up(node_id: uuid.UUID, known: Sequence[Any] = ()) -> Iterator[tuple[str, datetime | None]]:
    """Name and trash of a node and of every folder above it, up to the root; nothing when there is no such node."""
    at: uuid.UUID | None = node_id
    levels = known
    while at is not None:
        if not levels:
            rows = _UP(node=at)
            if not rows:
                return
            levels = rows[0]
        for start in range(0, len(levels), len(_LEVEL)):
            name, trashed_at, at = levels[start : start + len(_LEVEL)]
            yield name, trashed_at
            if at is None:
                return
        levels = ()
