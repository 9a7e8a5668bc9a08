"""What the drive must hold: the model that the state machine compares the product with."""

from __future__ import annotations

import copy
import hashlib
import uuid
from dataclasses import dataclass, field

from accounts.models import User
from vfs.models import Node, Version

Names = tuple[str, ...]
ROOT = 0
# id -> (id of the folder, name, kind, trashed, (SHA-256, size) of each version)
Seen = dict[uuid.UUID, tuple[uuid.UUID | None, str, str, bool, tuple[tuple[str, int], ...]]]


class Conflict(Exception):
    """Something stands in the way of a name. `code` is the product's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Entry:
    name: str
    parent: int | None
    folder: bool
    versions: list[bytes] = field(default_factory=list)
    trashed: bool = False
    id: uuid.UUID | None = None


class Tree:
    """Folders, files with all their versions, and the trash of one user."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {ROOT: Entry("", None, folder=True)}
        self._next = 1

    def copy(self) -> Tree:
        return copy.deepcopy(self)

    # -- looking ------------------------------------------------------------------------------------------

    def child(self, parent: int, name: str) -> int | None:
        for key, entry in self.entries.items():
            if entry.parent == parent and entry.name == name and not entry.trashed:
                return key
        return None

    def find(self, names: Names) -> int | None:
        """What is visible at a path."""
        at: int | None = ROOT
        for name in names:
            at = None if at is None else self.child(at, name)
        return at

    def file(self, names: Names) -> bytes | None:
        """The current bytes of the visible file at a path."""
        key = self.find(names)
        return None if key is None or self.entries[key].folder else self.entries[key].versions[-1]

    def path(self, key: int) -> Names:
        entry = self.entries[key]
        return () if entry.parent is None else (*self.path(entry.parent), entry.name)

    def visible(self, key: int) -> bool:
        entry = self.entries[key]
        return not entry.trashed and (entry.parent is None or self.visible(entry.parent))

    def paths(self, *, folders: bool) -> list[Names]:
        """Of all visible folders, or files."""
        keys = [k for k, e in self.entries.items() if e.folder == folders and self.visible(k)]
        return sorted(map(self.path, keys))

    def in_trash(self) -> list[int]:
        return sorted(key for key, entry in self.entries.items() if entry.trashed)

    def by_id(self, node_id: uuid.UUID) -> int:
        return next(key for key, entry in self.entries.items() if entry.id == node_id)

    @property
    def used(self) -> int:
        return sum(len(data) for entry in self.entries.values() for data in entry.versions)

    # -- changing -----------------------------------------------------------------------------------------

    def _add(self, entry: Entry) -> int:
        key, self._next = self._next, self._next + 1
        self.entries[key] = entry
        return key

    def mkdir(self, names: Names, parent: int = ROOT, *, exists_ok: bool = True) -> int:
        """Make the folders that are missing. Raises Conflict."""
        at, made = parent, False
        for name in names:
            child = self.child(at, name)
            if child is None:
                child, made = self._add(Entry(name, at, folder=True)), True
            elif not self.entries[child].folder:
                raise Conflict("name_taken" if not exists_ok and name is names[-1] else "not_a_folder")
            at = child
        if not made and not exists_ok:
            raise Conflict("name_taken")
        return at

    def put(self, names: Names, data: bytes, parent: int = ROOT) -> None:
        """A file, or a new version of the one that is there. Raises Conflict."""
        folder = self.mkdir(names[:-1], parent)
        key = self.child(folder, names[-1])
        if key is None:
            self._add(Entry(names[-1], folder, folder=False, versions=[data]))
        elif self.entries[key].folder:
            raise Conflict("is_a_folder")
        else:
            self.entries[key].versions.append(data)

    def trash(self, key: int) -> None:
        self.entries[key].trashed = True

    def purge(self, key: int) -> None:
        for inner in [k for k, e in self.entries.items() if e.parent == key]:
            self.purge(inner)
        del self.entries[key]

    # -- comparing ----------------------------------------------------------------------------------------

    def learn(self, seen: Seen) -> None:
        """Note the ids of nodes that are new here, by their place."""
        for entry in self.entries.values():
            if entry.id is None:
                above = None if entry.parent is None else self.entries[entry.parent].id
                for node_id, (parent, name, _kind, trashed, _versions) in seen.items():
                    if (parent, name, trashed) == (above, entry.name, False):
                        entry.id = node_id

    def difference(self, seen: Seen) -> str:
        """How the product's tree differs from this one; empty when it does not."""
        self.learn(seen)
        should: Seen = {}
        for entry in self.entries.values():
            if entry.id is None:
                return f"{entry.name!r} is not there"
            above = None if entry.parent is None else self.entries[entry.parent].id
            versions = tuple((hashlib.sha256(d).hexdigest(), len(d)) for d in entry.versions)
            kind = Node.Kind.FOLDER if entry.folder else Node.Kind.FILE
            should[entry.id] = (above, entry.name, str(kind), entry.trashed, versions)
        differing = [k for k in should.keys() | seen.keys() if should.get(k) != seen.get(k)]
        return "\n".join(f"should be {should.get(k)}, is {seen.get(k)}" for k in differing)


def look(owner: User) -> Seen:
    """The product's tree as its rows have it."""
    versions: dict[uuid.UUID, list[tuple[str, int]]] = {}
    rows = Version.objects.filter(node__owner=owner).order_by("number")
    for node_id, sha256, size in rows.values_list("node_id", "content__sha256", "content__size"):
        versions.setdefault(node_id, []).append((sha256, size))
    nodes = Node.objects.filter(owner=owner).values_list("pk", "parent_id", "name", "kind", "trashed_at")
    return {
        pk: (parent, name, kind, trashed_at is not None, tuple(versions.get(pk, ())))
        for pk, parent, name, kind, trashed_at in nodes
    }
