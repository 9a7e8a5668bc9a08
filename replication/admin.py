"""Read-only views of the bytes for operators; the policy is the one thing to edit here."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from replication import policy
from replication.models import Content, Event, Orphan, Policy, Replica, Segment


class ReadOnly(admin.ModelAdmin):
    """Nothing here is changed by hand: services change these rows."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Content)
class ContentAdmin(ReadOnly):
    list_display = ("id", "state", "size", "copies", "created_at", "sealed_at")
    list_filter = ("state",)
    search_fields = ("id", "sha256")
    exclude = ("wrapped_key",)


@admin.register(Segment)
class SegmentAdmin(ReadOnly):
    list_display = ("content_id", "position", "size", "check_at", "attempts", "blocked")
    list_filter = ("blocked",)
    search_fields = ("content__id", "checksum")
    exclude = ("header",)


@admin.register(Replica)
class ReplicaAdmin(ReadOnly):
    list_display = ("key", "broker", "state", "reason", "stored_at", "verified_at", "attempts")
    list_filter = ("state", "broker")
    list_select_related = ("broker",)
    search_fields = ("key", "locator", "segment__content__id")


@admin.register(Orphan)
class OrphanAdmin(ReadOnly):
    list_display = ("locator", "broker", "size", "first_seen", "last_seen")
    list_select_related = ("broker",)


@admin.register(Event)
class EventAdmin(ReadOnly):
    list_display = ("at", "kind", "broker", "content", "detail")
    list_filter = ("kind", "broker")
    list_select_related = ("broker",)
    search_fields = ("content",)


@admin.register(Policy)
class PolicyAdmin(admin.ModelAdmin):
    fields = policy.CHANGEABLE

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> Any:
        policy.current()
        return super().get_queryset(request)

    def save_model(self, request: HttpRequest, obj: Policy, form: Any, change: bool) -> None:
        policy.change(**{name: form.cleaned_data[name] for name in policy.CHANGEABLE})
