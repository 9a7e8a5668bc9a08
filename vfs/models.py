"""Names: each user's tree of folders and files, the versions of files, and uploads in progress.

The comments here are the specification that `manage.py fsck` checks (vfs/fsck.py). Rows change through the service
modules of this package alone.
"""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q

from brokers import clock
from replication.models import Content


class Node(models.Model):
    """A folder or a file in its owner's tree.

    Every owner has one root: a folder without parent and name, which is never trashed. Every other node has a
    name and a parent folder of the same owner. Among the live nodes (`trashed_at` empty) of a folder the
    `name_key` is unique. A node is visible when neither it nor a folder above it is trashed: trashing a folder
    touches one row. A file has a current version, a folder has none. `sort_key` is the order for people.
    """

    class Kind(models.TextChoices):
        FOLDER = "folder", "folder"
        FILE = "file", "file"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="nodes")
    parent = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="children")
    name = models.CharField(max_length=255, blank=True)
    name_key = models.CharField(max_length=255, blank=True)
    sort_key = models.CharField(max_length=255, blank=True)
    # A file and its first version point at each other; both rows come and go in one transaction.
    version = models.ForeignKey("Version", null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(default=clock.now)
    modified_at = models.DateTimeField(default=clock.now)
    trashed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["parent", "name_key"], condition=Q(trashed_at=None), name="node_live_name"
            ),
            models.UniqueConstraint(fields=["owner"], condition=Q(parent=None), name="node_one_root"),
            models.CheckConstraint(
                condition=Q(parent__isnull=False) & ~Q(name="") & ~Q(name_key="")
                | Q(parent=None, name="", name_key="", kind="folder", trashed_at=None),
                name="node_root_or_named",
            ),
            models.CheckConstraint(
                condition=Q(kind="folder", version=None) | Q(kind="file", version__isnull=False),
                name="node_file_has_version",
            ),
            models.CheckConstraint(condition=~Q(parent=models.F("id")), name="node_not_its_own_parent"),
        ]
        indexes = [
            models.Index(
                fields=["parent", "-kind", "sort_key", "name_key"],
                condition=Q(trashed_at=None),
                name="node_listing",
            ),
            models.Index(
                fields=["owner", "-trashed_at", "id"],
                condition=Q(trashed_at__isnull=False),
                name="node_trash",
            ),
        ]

    def __str__(self) -> str:
        return self.name or "/"

    @property
    def is_folder(self) -> bool:
        return self.kind == self.Kind.FOLDER

    @property
    def is_root(self) -> bool:
        return self.parent_id is None


class Version(models.Model):
    """One immutable state of a file: which content, when, by whom. `number` counts from 1 within the file; the
    file's current version is the one with the highest number. Its content is SEALED."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="versions")
    content = models.ForeignKey(Content, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "number"], name="version_number")]

    def __str__(self) -> str:
        return f"{self.node_id} v{self.number}"


class Upload(models.Model):
    """An upload in progress: pins its OPEN content and its quota reservation (`reserved` bytes).

    `path` are the names below `parent` that the file will have; folders among them are made at the commit.
    `holder` is the process that receives the bytes (vfs/holder.py). The row goes in the transaction that makes
    the file visible, or in the one that gives content and reservation back; past `expires_at` anyone may do
    the latter. `parent` becomes empty when that folder is purged meanwhile.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    parent = models.ForeignKey(Node, null=True, on_delete=models.PROTECT, related_name="+")
    path = models.TextField()
    content = models.OneToOneField(Content, on_delete=models.PROTECT, related_name="upload")
    expected = models.BigIntegerField(null=True)
    reserved = models.BigIntegerField(default=0)
    holder = models.CharField(max_length=300)
    created_at = models.DateTimeField(default=clock.now)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(reserved__gte=0), name="upload_reserved_not_negative")
        ]

    def __str__(self) -> str:
        return f"{self.path} ({self.id})"
