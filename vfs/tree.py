"""The tree: finding, listing, making, trashing and purging nodes.

Functions that change a tree hold its lock: an UPDATE of the owner's root row at the start of the transaction, which
makes all others that change this tree wait, on SQLite and PostgreSQL alike. What they check under it stays true
until they commit.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from accounts import audit
from accounts.models import User
from brokers import clock
from prepared.change import Update, insert
from prepared.query import Query, Slot, columns, instances
from replication.models import Content
from vfs.errors import BadCursor, NameTaken, NodeNotFound, NotAFolder
from vfs.models import Node, Version
from vfs.names import check_place, join_path, name_key, sort_key, validate_name
from vfs.paging import Page, decode, page

# How many levels one query resolves: the joins that PostgreSQL still plans freely.
LEVELS = 7


@dataclass(frozen=True, slots=True)
class Place:
    """A node and the names on the way to it; the root has none."""

    node: Node
    names: tuple[str, ...]

    @property
    def path(self) -> str:
        return join_path(self.names)


def root_of(owner: User) -> Node:
    """The owner's top folder, made at first use. Safe under any number of callers."""
    for row in _ROOT(owner=owner.pk):
        return node_of(row)
    return Node.objects.get_or_create(owner=owner, parent=None, kind=Node.Kind.FOLDER)[0]


@contextmanager
def locked(owner_id: int) -> Iterator[None]:
    """A transaction that holds the lock of this owner's tree. It must be the first lock that it takes."""
    with transaction.atomic():
        if not _LOCK(owner=owner_id):
            raise NodeNotFound
        yield


# -- finding ------------------------------------------------------------------------------------------


def live() -> QuerySet[Node]:
    """Nodes that are not trashed themselves (a folder above may be), with their current content."""
    return Node.objects.filter(trashed_at=None).select_related("version__content")


def find(owner: User, names: Sequence[str]) -> Node | None:
    """The visible node at a path of valid names, in `1 + len(names) / LEVELS` queries."""
    if not names:
        return root_of(owner)
    above: uuid.UUID | None = None
    found: Node | None = None
    for start in range(0, len(names), LEVELS):
        found = _descend(owner, above, names[start : start + LEVELS])
        if found is None:
            return None
        above = found.pk
    return found


def _descend(owner: User, above: uuid.UUID | None, names: Sequence[str]) -> Node | None:
    """The node at `names` below the node `above` (None: the owner's root), with its content."""
    keys = {f"name{i}": name_key(name) for i, name in enumerate(names)}
    for row in _path(len(names), above is None)(owner=owner.pk, above=above, **keys):
        return node_of(row)
    return None


@functools.cache
def _path(count: int, from_root: bool) -> Query:
    """The query that follows `count` names."""
    where = Q(owner=Slot("owner", User, "id"))
    prefix = ""
    for index in reversed(range(count)):
        key = Slot(f"name{index}", Node, "name_key")
        where &= Q(**{f"{prefix}name_key": key, f"{prefix}trashed_at": None})
        prefix += "parent__"
    if from_root:
        where &= Q(**{f"{prefix}owner": Slot("owner", User, "id"), f"{prefix}parent__isnull": True})
    else:
        where &= Q(**{prefix.removesuffix("__"): Slot("above", Node, "id")})
    return Query(lambda: Node.objects.filter(where).values_list(*NODE_COLUMNS))


_OWNER = Slot("owner", User, "id")
NODE_COLUMNS = [*columns(Node), *columns(Version, "version__"), *columns(Content, "version__content__")]


def node_of(row: Sequence[Any]) -> Node:
    """A node with its version and content, from a row of NODE_COLUMNS."""
    node: Node
    node, version, content = instances(row, Node, Version, Content)
    node.version = version
    if version is not None:
        version.content = content
    return node


_ID = Slot("node", Node, "id")
_ROOT = Query(lambda: Node.objects.filter(owner=_OWNER, parent=None).values_list(*NODE_COLUMNS))
_CHILD = Query(
    lambda: Node.objects.filter(
        parent=Slot("parent", Node, "id"), name_key=Slot("name", Node, "name_key"), trashed_at=None
    ).values_list(*NODE_COLUMNS)
)
_BY_ID = Query(lambda: Node.objects.filter(pk=_ID).values_list(*NODE_COLUMNS))
_LOCK = Update(lambda: (Node.objects.filter(owner=_OWNER, parent=None), {"trashed_at": None}))
_TOUCH = Update(lambda: (Node.objects.filter(pk=_ID), {"modified_at": Slot("now", Node, "modified_at")}))


def by_id(node_id: uuid.UUID) -> Node | None:
    """A node, visible or not, of whomever."""
    for row in _BY_ID(node=node_id):
        return node_of(row)
    return None


def resolve(owner: User, names: Sequence[str]) -> Node:
    """As `find`; raises NodeNotFound."""
    found = find(owner, names)
    if found is None:
        raise NodeNotFound
    return found


def deepest(owner: User, names: Sequence[str]) -> tuple[Node, int]:
    """The deepest visible node on the way along `names`, and how many of them lead to it. Raises NotAFolder
    when a file stands in the way."""
    found = find(owner, names)
    if found is not None:
        return found, len(names)
    node, depth = root_of(owner), 0
    # The file itself is mostly what is missing: try its folder before walking down.
    if len(names) > 1:
        folder = find(owner, names[:-1])
        if folder is not None:
            node, depth = folder, len(names) - 1
    while node.is_folder and depth < len(names):
        child = live().filter(parent=node, name_key=name_key(names[depth])).first()
        if child is None:
            return node, depth
        node, depth = child, depth + 1
    if depth < len(names):
        raise NotAFolder
    return node, depth


def child_of(folder: Node, name: str) -> Node | None:
    """The live node of this (valid) name in a folder."""
    for row in _CHILD(parent=folder.pk, name=name_key(name)):
        return node_of(row)
    return None


def children(folder: Node, *, cursor: str | None = None, limit: int = 200) -> Page:
    """A page of the live nodes of a folder: folders first, then by `sort_key`. The cursor of a page leads on
    from its last node, whatever was added or removed meanwhile. Raises BadCursor."""
    nodes = live().filter(parent=folder).order_by("-kind", "sort_key", "name_key")
    if cursor:
        kind, sort, key = decode(cursor, 3)
        after = Q(sort_key__gt=sort) | Q(sort_key=sort, name_key__gt=key)
        nodes = nodes.filter(Q(kind=kind) & after | Q(kind__lt=kind))
    return page(nodes, limit, lambda n: (n.kind, n.sort_key, n.name_key))


def trash_of(owner: User, *, cursor: str | None = None, limit: int = 200) -> Page:
    """A page of what was trashed, latest first. Raises BadCursor."""
    nodes = Node.objects.filter(owner=owner, trashed_at__isnull=False).select_related("version__content")
    nodes = nodes.order_by("-trashed_at", "-id")
    if cursor:
        at, node_id = decode(cursor, 2)
        try:
            when, last = datetime.fromisoformat(at), uuid.UUID(node_id)
        except ValueError:
            raise BadCursor from None
        nodes = nodes.filter(Q(trashed_at__lt=when) | Q(trashed_at=when, id__lt=last))
    return page(nodes, limit, lambda n: (n.trashed_at.isoformat() if n.trashed_at else "", str(n.pk)))


# -- making -------------------------------------------------------------------------------------------


def make(parent: Node, name: str, kind: str, **fields: object) -> Node:
    """Insert a node of a valid name. Call it under the lock, when the name is known to be free."""
    node = Node(
        owner_id=parent.owner_id,
        parent=parent,
        kind=kind,
        name=name,
        name_key=name_key(name),
        sort_key=sort_key(name),
        **fields,
    )
    return insert(node)


def ensure_folders(parent: Node, names: Sequence[str]) -> Node:
    """The folder at `names` below `parent`, made as far as it is missing. Call it under the lock. Raises
    NotAFolder."""
    folder, missing = parent, False
    for name in names:
        child = None if missing else child_of(folder, name)
        if child is None:
            child, missing = make(folder, name, Node.Kind.FOLDER), True
        elif not child.is_folder:
            raise NotAFolder
        folder = child
    return folder


def create_folder(
    actor: User, owner: User, names: Sequence[str], *, request: HttpRequest | None = None
) -> Node:
    """Make the folder at a path, and those above it that are missing. Raises NameTaken when there is a node of
    this path already, NotAFolder, InvalidName."""
    names = tuple(map(validate_name, names))
    check_place(names)
    if not names:
        raise NameTaken
    root_of(owner)
    with locked(owner.pk):
        node, depth = deepest(owner, names)
        if depth == len(names):
            raise NameTaken
        folder = ensure_folders(node, names[depth:])
        audit.record(actor, "folder.created", folder.pk, request, path=join_path(names))
    return folder


def touch(folder_id: uuid.UUID) -> None:
    """A node in this folder came or went."""
    _TOUCH(node=folder_id, now=clock.now())
