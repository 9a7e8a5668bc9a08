"""How nodes are shown, by the API and by the pages alike."""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from replication.contents import CopyStatus, copy_status
from vfs.conditions import etag_of
from vfs.models import Node
from vfs.names import join_path
from vfs.tree import Place

# The table that comes with Python, not that of the machine, and what its older versions lack: the same answer
# everywhere.
_TYPES = mimetypes.MimeTypes()
for _ending, _type in {
    ".7z": "application/x-7z-compressed",
    ".avif": "image/avif",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".epub": "application/epub+zip",
    ".flac": "audio/flac",
    ".heic": "image/heic",
    ".log": "text/plain",
    ".m4a": "audio/mp4",
    ".md": "text/markdown",
    ".mkv": "video/x-matroska",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ogg": "audio/ogg",
    ".opus": "audio/opus",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".rtf": "application/rtf",
    ".webp": "image/webp",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}.items():
    _TYPES.add_type(_type, _ending)
UNKNOWN_TYPE = "application/octet-stream"


def type_of(name: str) -> str:
    """The media type by the name's ending. What an uploader claims is never taken over."""
    found, encoding = _TYPES.guess_type(f"x{name}", strict=True)
    return UNKNOWN_TYPE if found is None or encoding is not None else found


@dataclass(frozen=True, slots=True)
class Shown:
    """A node as people and programs see it. Folders have neither size nor type nor hash nor copies."""

    id: uuid.UUID
    kind: str
    name: str
    path: str
    modified: datetime
    created: datetime
    size: int | None = None
    type: str | None = None
    sha256: str | None = None
    etag: str | None = None
    version: int | None = None
    copies: CopyStatus | None = None
    trashed: datetime | None = None

    @property
    def is_folder(self) -> bool:
        return self.kind == Node.Kind.FOLDER


def show(places: Iterable[Place]) -> list[Shown]:
    """Nodes (with their current content loaded) in a constant number of queries."""
    rows = list(places)
    versions = [p.node.version for p in rows if p.node.version is not None]
    status = copy_status(v.content_id for v in versions) if versions else {}
    return [_show(place, status) for place in rows]


def show_children(folder: Place, nodes: Iterable[Node]) -> list[Shown]:
    """The children of one folder."""
    return show(Place(node, (*folder.names, node.name)) for node in nodes)


def _show(place: Place, status: dict[uuid.UUID, CopyStatus]) -> Shown:
    node, version = place.node, place.node.version
    return Shown(
        id=node.pk,
        kind=node.kind,
        name=node.name,
        path=join_path(place.names),
        modified=node.modified_at,
        created=node.created_at,
        trashed=node.trashed_at,
        size=version.content.size if version else None,
        type=type_of(node.name) if version else None,
        sha256=version.content.sha256 if version else None,
        etag=etag_of(version) if version else None,
        version=version.number if version else None,
        copies=status.get(version.content_id) if version else None,
    )
