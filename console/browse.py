"""The raw objects of a broker, and which file each belongs to.

A driver lists in an order of its own and cannot go on from a place in the middle. So a page's cursor is a part of the
place and a position in the listing of that part: the next page lists the part again and passes over what was shown.
A broker with many objects of ours is cut into the 256 parts that their names have, so that a page costs little there;
names of others have no parts, and a page far down among them costs as much as all pages before it. (`walk` lists
everything once.) What comes or goes between two pages may be shown twice or not at all. Nothing is ever held but
one window of the listing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from brokers.driver import StoredFile
from brokers.models import Broker
from brokers.names import (
    CHECK_PREFIX,
    MARKER_NAME,
    META_PREFIX,
    OBJECT_PREFIX,
    PROBE_NAME,
    is_object_key,
    name_in,
)
from replication import transfer
from replication.models import Orphan, Replica
from vfs.access import locate_all
from vfs.errors import BadCursor
from vfs.models import Version
from vfs.paging import decode, encode

OURS, METADATA, ORPHAN, UNMANAGED = KINDS = ("ours", "metadata", "orphan", "unmanaged")
WINDOW = 500
PAGE_MOST = 1000
# A page that finds little looks at no more objects than these, and then says where to go on.
SCAN_MOST = 20_000
# With more rows than these a broker is listed in parts.
SMALL = 5000
# Files that are named for one object: copies of a file share its bytes.
FILES = 5
_SHARDS = tuple(f"{OBJECT_PREFIX}{number:02x}/" for number in range(256))
_META = "cs-"
_REST = ""


@dataclass
class File:
    """A version of a file that an object holds a part of."""

    owner: str
    path: str
    version: int
    trashed: bool


@dataclass
class Entry:
    """One object. `kind` is ours (a replica, whose state is `state`), metadata (`state` says which), orphan (a name
    of ours that no row knows) or unmanaged (not named by us). `size` is -1 where the listing does not say. Of an
    orphan, `first_seen` by a scan and `deletable_from`; null until a scan saw it."""

    path: str
    size: int
    modified: datetime | None
    kind: str
    state: str = ""
    content: uuid.UUID | None = None
    segment: int | None = None
    files: list[File] = field(default_factory=list)
    first_seen: datetime | None = None
    deletable_from: datetime | None = None


@dataclass
class Page:
    """Some objects, and the cursor that leads on; None at the end. A page with a cursor may hold few or none."""

    entries: list[Entry]
    cursor: str | None


def walk(broker: Broker, *, prefix: str = "", kind: str = "") -> Iterator[Entry]:
    """Every object of a broker, in the driver's order, with one pass of its listing. Raises BrokerError."""
    window: list[StoredFile] = []
    for found in transfer.listing(broker, prefix or _only(kind)):
        window.append(found)
        if len(window) == WINDOW:
            yield from _kept(_resolve(broker, window), kind)
            window = []
    yield from _kept(_resolve(broker, window), kind)


def page(
    broker: Broker, *, prefix: str = "", kind: str = "", cursor: str | None = None, limit: int = 200
) -> Page:
    """Some of the objects of a broker. Raises BadCursor, BrokerError."""
    limit = max(1, min(limit, PAGE_MOST))
    sharded, at, position = _position(cursor, broker, prefix)
    parts = _parts(prefix, kind, sharded)
    if at >= len(parts):
        raise BadCursor
    entries: list[Entry] = []
    looked = 0
    while at < len(parts):
        for window in _windows(broker, parts[at], sharded, position):
            resolved = _resolve(broker, window)
            for entry in resolved:
                position += 1
                looked += 1
                entries += _kept([entry], kind)
                if len(entries) == limit or looked == SCAN_MOST:
                    return Page(entries, encode((str(int(sharded)), str(at), str(position))))
        at, position = at + 1, 0
    return Page(entries, None)


def _only(kind: str) -> str:
    """The prefix under which everything of a kind is."""
    return {OURS: OBJECT_PREFIX, ORPHAN: OBJECT_PREFIX, METADATA: _META}.get(kind, "")


def _position(cursor: str | None, broker: Broker, prefix: str) -> tuple[bool, int, int]:
    if not cursor:
        many = Replica.objects.filter(broker=broker)[: SMALL + 1].count() > SMALL
        return many and not prefix, 0, 0
    try:
        sharded, at, position = map(int, decode(cursor, 3))
    except ValueError:
        raise BadCursor from None
    if sharded not in (0, 1) or at < 0 or position < 0:
        raise BadCursor
    return bool(sharded) and not prefix, at, position


def _parts(prefix: str, kind: str, sharded: bool) -> tuple[str, ...]:
    if prefix or not sharded or kind in (METADATA, UNMANAGED):
        return (prefix or _only(kind),)
    if kind in (OURS, ORPHAN):
        return _SHARDS
    return (_META, *_SHARDS, _REST)


def _windows(broker: Broker, part: str, sharded: bool, skip: int) -> Iterator[list[StoredFile]]:
    """One part's listing from the position `skip` on, in windows."""
    window: list[StoredFile] = []
    for found in transfer.listing(broker, part):
        if sharded and part == _REST and _in_parts(name_in(found.path, broker.marker_locator)):
            continue
        if skip:
            skip -= 1
            continue
        window.append(found)
        if len(window) == WINDOW:
            yield window
            window = []
    yield window


def _in_parts(name: str) -> bool:
    """Whether the parts before the rest have shown it."""
    return name.startswith(_META) or name[: len(OBJECT_PREFIX) + 3] in _SHARDS


def _kept(entries: Iterable[Entry], kind: str) -> list[Entry]:
    return [entry for entry in entries if not kind or entry.kind == kind]


# -- what they are ------------------------------------------------------------------------------------


def _resolve(broker: Broker, window: list[StoredFile]) -> list[Entry]:
    """The entries of a window, in its order: a few queries for all of them."""
    names = {found.path: name_in(found.path, broker.marker_locator) for found in window}
    replicas = _replicas(broker, names)
    files = _files({r.segment.content_id for r in replicas.values()})
    strays = [p for p, name in names.items() if is_object_key(name) and p not in replicas]
    seen = {o.locator: o for o in Orphan.objects.filter(broker=broker, locator__in=strays)} if strays else {}
    entries = []
    for found in window:
        entry = Entry(found.path, found.size, found.modified, UNMANAGED)
        entries.append(entry)
        replica, name = replicas.get(found.path), names[found.path]
        if replica is not None:
            entry.kind, entry.state = OURS, str(replica.state)
            entry.content, entry.segment = replica.segment.content_id, replica.segment.position
            entry.files = files.get(replica.segment.content_id, [])
        elif is_object_key(name):
            entry.kind = ORPHAN
            if orphan := seen.get(found.path):
                entry.first_seen = orphan.first_seen
                entry.deletable_from = orphan.first_seen + _age()
        elif state := metadata_of(name):
            entry.kind, entry.state = METADATA, state
    return entries


def _age() -> timedelta:
    age: timedelta = settings.CLOUDSTORE_ORPHAN_AGE
    return age


def metadata_of(name: str) -> str:
    """What an object of ours that is no segment is for; "" for all others."""
    if name in (MARKER_NAME, PROBE_NAME):
        return name.removeprefix(_META)
    if name.startswith(CHECK_PREFIX):
        return "check"
    if name.startswith(META_PREFIX):
        rest = name.removeprefix(META_PREFIX)
        return next((what for what in ("snapshot", "epoch") if rest.startswith(f"{what}-")), "other")
    return ""


def _replicas(broker: Broker, names: dict[str, str]) -> dict[str, Replica]:
    """By path: found by the locator, or, while a put is under way, by the key."""
    if not names:
        return {}
    rows = Replica.objects.filter(broker=broker).select_related("segment").defer("segment__header")
    found = {r.locator: r for r in rows.filter(locator__in=list(names))}
    rest = {name: path for path, name in names.items() if path not in found and is_object_key(name)}
    if rest:
        found |= {rest[r.key]: r for r in rows.filter(key__in=list(rest))}
    return found


def _files(contents: set[uuid.UUID]) -> dict[uuid.UUID, list[File]]:
    """The first files with a version of each content."""
    if not contents:
        return {}
    versions = Version.objects.filter(content__in=contents).select_related("node__owner")
    kept: dict[uuid.UUID, list[Version]] = {}
    for version in versions.order_by("created_at", "pk").iterator(chunk_size=WINDOW):
        chosen = kept.setdefault(version.content_id, [])
        if len(chosen) < FILES:
            chosen.append(version)
    places = locate_all(v.node for chosen in kept.values() for v in chosen)
    return {
        content: [
            File(
                v.node.owner.get_username(),
                places[v.node_id].path,
                v.number,
                v.node.trashed_at is not None,
            )
            for v in chosen
        ]
        for content, chosen in kept.items()
    }


def as_dict(entry: Entry) -> dict[str, Any]:
    """Plain data for JSON."""
    return asdict(entry)


def words_of(entry: Entry) -> str:
    """One line for a terminal."""
    size = "?" if entry.size < 0 else str(entry.size)
    when = f"{entry.modified:%Y-%m-%d %H:%M}" if entry.modified else "-"
    what = f"{entry.kind}{f' ({entry.state})' if entry.state else ''}"
    files = ", ".join(f"{f.owner}:{f.path} v{f.version}" for f in entry.files)
    return f"{size:>9}  {when:16}  {what:18}  {entry.path}  {files}".rstrip()
