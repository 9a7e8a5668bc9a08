"""What the API takes and gives."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from vfs.paging import PAGE, PAGE_MOST


class CopiesSerializer(serializers.Serializer[Any]):
    wanted = serializers.IntegerField()
    stored = serializers.IntegerField()
    state = serializers.ChoiceField(choices=["ok", "catching_up", "degraded", "damaged"])
    brokers = serializers.ListField(child=serializers.CharField())
    text = serializers.CharField()


class NodeSerializer(serializers.Serializer[Any]):
    """A folder or a file. Folders have neither size nor type, hash, etag, version or copies (null)."""

    id = serializers.UUIDField()
    kind = serializers.ChoiceField(choices=["folder", "file"])
    name = serializers.CharField()
    path = serializers.CharField()
    size = serializers.IntegerField(allow_null=True)
    type = serializers.CharField(allow_null=True)
    sha256 = serializers.CharField(allow_null=True)
    etag = serializers.CharField(allow_null=True)
    version = serializers.IntegerField(allow_null=True)
    modified = serializers.DateTimeField()
    created = serializers.DateTimeField()
    trashed = serializers.DateTimeField(allow_null=True)
    copies = CopiesSerializer(allow_null=True)


class ListingSerializer(serializers.Serializer[Any]):
    """A page of a folder. `next` is the cursor of the next page, null on the last one; `notices` are sentences
    about brokers that are in trouble."""

    folder = NodeSerializer()
    children = NodeSerializer(many=True)
    next = serializers.CharField(allow_null=True)
    notices = serializers.ListField(child=serializers.CharField())


class TrashSerializer(serializers.Serializer[Any]):
    """A page of the trash, latest first."""

    nodes = NodeSerializer(many=True)
    next = serializers.CharField(allow_null=True)


class UploadedSerializer(serializers.Serializer[Any]):
    files = NodeSerializer(many=True)


class UsageSerializer(serializers.Serializer[Any]):
    """Bytes."""

    used = serializers.IntegerField()
    reserved = serializers.IntegerField()
    limit = serializers.IntegerField()
    free = serializers.IntegerField()


class AccountSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    usage = UsageSerializer()


class Text(serializers.CharField):
    """A JSON string, and nothing that could be made into one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class FolderInput(serializers.Serializer[Any]):
    path = Text(trim_whitespace=False, max_length=10_000)


class PageQuery(serializers.Serializer[Any]):
    cursor = serializers.CharField(required=False, max_length=10_000, help_text="`next` of the page before.")
    limit = serializers.IntegerField(required=False, min_value=1, max_value=PAGE_MOST, default=PAGE)


class ProblemSerializer(serializers.Serializer[Any]):
    """RFC 9457. `code` is stable."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField()
    detail = serializers.CharField()
