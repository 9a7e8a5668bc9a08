"""Read-only views of names for operators."""

from __future__ import annotations

from django.contrib import admin

from replication.admin import ReadOnly
from vfs.models import Node, Upload, Version


@admin.register(Node)
class NodeAdmin(ReadOnly):
    list_display = ("name", "kind", "owner", "modified_at", "trashed_at")
    list_filter = ("kind", ("trashed_at", admin.EmptyFieldListFilter))
    list_select_related = ("owner",)
    search_fields = ("name", "id", "owner__username")
    raw_id_fields = ("owner", "parent", "version")


@admin.register(Version)
class VersionAdmin(ReadOnly):
    list_display = ("node", "number", "content", "created_by", "created_at")
    list_select_related = ("node", "content", "created_by")
    search_fields = ("node__name", "content__id", "content__sha256")
    raw_id_fields = ("node", "content", "created_by")


@admin.register(Upload)
class UploadAdmin(ReadOnly):
    list_display = ("path", "owner", "expected", "reserved", "created_at", "expires_at")
    list_select_related = ("owner",)
    search_fields = ("path", "owner__username", "content__id")
    raw_id_fields = ("owner", "parent", "content")
