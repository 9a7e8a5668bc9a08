"""Users, plans, tokens and the audit trail on the admin site."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from accounts import audit, quota, tokens
from accounts.models import AuditEvent, Plan, Token, User


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows rows; adds, changes and deletes none."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):
    list_display = ["name", "quota_text", "copies"]

    @admin.display(description="quota", ordering="quota")
    def quota_text(self, plan: Plan) -> str:
        return filesizeformat(plan.quota)


@admin.register(User)
class UserAdmin(DjangoUserAdmin):
    list_display = [
        "username",
        "email",
        "plan",
        "used_text",
        "reserved_text",
        "is_active",
        "is_staff",
        "last_login",
    ]
    list_filter = [*DjangoUserAdmin.list_filter, "plan"]
    list_select_related = ["plan"]
    readonly_fields = ["used_text", "reserved_text", "limit_text", "last_login", "date_joined"]
    fieldsets = [
        *(DjangoUserAdmin.fieldsets or ()),
        ("Storage", {"fields": ["plan", "quota", "limit_text", "used_text", "reserved_text"]}),
    ]

    @admin.display(description="used", ordering="used")
    def used_text(self, user: User) -> str:
        return filesizeformat(user.used)

    @admin.display(description="reserved by uploads", ordering="reserved")
    def reserved_text(self, user: User) -> str:
        return filesizeformat(user.reserved)

    @admin.display(description="limit in effect")
    def limit_text(self, user: User) -> str:
        return filesizeformat(quota.limit_of(user)) if user.pk else "-"


@admin.register(Token)
class TokenAdmin(ReadOnlyAdmin):
    list_display = [
        "name",
        "prefix",
        "user",
        "scopes",
        "created_at",
        "last_used_at",
        "expires_at",
        "revoked_at",
    ]
    list_select_related = ["user"]
    search_fields = ["name", "prefix", "user__username"]
    exclude = ["digest"]
    actions = ["revoke"]

    @admin.action(description="Revoke the selected tokens", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Token]) -> None:
        count = 0
        for token in queryset:
            if tokens.revoke(token):
                audit.record(
                    request.user, "token.revoked", token.prefix, request, user=token.user.get_username()
                )
                count += 1
        self.message_user(request, f"{count} tokens revoked.", messages.SUCCESS)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.change_token")


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ["at", "actor_name", "action", "target", "address"]
    list_filter = ["action"]
    search_fields = ["actor_name", "action", "target", "address"]
    date_hierarchy = "at"
    show_full_result_count = False
