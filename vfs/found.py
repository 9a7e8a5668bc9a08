"""lost+found: contents without a name get one, in a folder of an operator."""

from __future__ import annotations

import uuid
from datetime import datetime

from accounts import audit, quota
from accounts.models import User
from brokers import clock
from replication.models import Content
from vfs.models import Node, Version
from vfs.tree import child_of, ensure_folders, locked, make, root_of, touch

FOLDER = "lost+found"

# What the first bytes of common kinds of files are.
_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"GIF8", ".gif"),
    (0, b"%PDF-", ".pdf"),
    (0, b"PK\x03\x04", ".zip"),
    (0, b"\x1f\x8b", ".gz"),
    (0, b"7z\xbc\xaf\x27\x1c", ".7z"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1aE\xdf\xa3", ".mkv"),
    (0, b"ID3", ".mp3"),
    (0, b"OggS", ".ogg"),
    (0, b"fLaC", ".flac"),
    (8, b"WEBP", ".webp"),
    (8, b"WAVE", ".wav"),
)


def extension(head: bytes) -> str:
    """The usual extension of what begins with these bytes; "" when they tell nothing."""
    for offset, mark, suffix in _KINDS:
        if head[offset : offset + len(mark)] == mark:
            return suffix
    try:
        # The last character may be cut.
        text = head.decode() if len(head) < 8 else head[:-4].decode() + head[-4:].decode(errors="ignore")
    except UnicodeDecodeError:
        return ""
    return ".txt" if (text and text.isprintable()) or ("\n" in text and "\0" not in text) else ""


def keep(owner: User, content: Content, stored_at: datetime, head: bytes) -> Node:
    """Make a SEALED content a file in the owner's lost+found, named by the time it was stored and its id. Its bytes
    count, over the quota if need be. Joins the caller's transaction."""
    root = root_of(owner)
    with locked(owner.pk):
        taken = child_of(root, FOLDER)
        folder = ensure_folders(root, [FOLDER if taken is None or taken.is_folder else f"{FOLDER} (folder)"])
        name = f"{stored_at:%Y-%m-%d %H.%M.%S} {content.pk}{extension(head)}"
        if child_of(folder, name) is not None:
            name = f"{uuid.uuid4()} {name}"
        now = clock.now()
        version = Version(content=content, number=1, created_by=owner, created_at=stored_at)
        new_id = uuid.uuid4()
        version.node_id = new_id
        version.save(force_insert=True)
        node = make(
            folder, name, Node.Kind.FILE, id=new_id, version=version, created_at=now, modified_at=stored_at
        )
        touch(folder.pk)
        quota.charge(owner.pk, content.size)
        audit.record(None, "file.found", new_id, path=f"/{FOLDER}/{name}", size=content.size)
    return node
