"""Who: users, plans, API tokens, the audit trail."""

from __future__ import annotations

from typing import Any, NoReturn

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models import Q
from django.utils import timezone

# What a user without an own quota and without a plan may store, in bytes.
DEFAULT_QUOTA = 5_000_000_000


class Plan(models.Model):
    """Quota, copies and limits sold to users. `quota` in bytes; `copies` None follows the operator's setting."""

    name = models.CharField(max_length=100, unique=True)
    quota = models.BigIntegerField(default=DEFAULT_QUOTA, help_text="Bytes a user of this plan may store.")
    copies = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Copies of every file; empty follows the operator's setting."
    )

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=Q(quota__gte=0), name="plan_quota_not_negative"),
            models.CheckConstraint(
                condition=Q(copies__isnull=True) | Q(copies__gte=1), name="plan_copies_at_least_one"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class User(AbstractUser):
    """Somebody who signs in. `used` and `reserved` (bytes) change through `accounts/quota.py` alone;
    `quota` overrides the plan's."""

    plan = models.ForeignKey(Plan, null=True, blank=True, on_delete=models.PROTECT, related_name="users")
    quota = models.BigIntegerField(
        null=True, blank=True, help_text="Own limit in bytes; empty takes the plan's."
    )
    used = models.BigIntegerField(default=0, editable=False)
    reserved = models.BigIntegerField(default=0, editable=False)

    class Meta(AbstractUser.Meta):
        constraints = [
            models.CheckConstraint(condition=Q(used__gte=0), name="user_used_not_negative"),
            models.CheckConstraint(condition=Q(reserved__gte=0), name="user_reserved_not_negative"),
            models.CheckConstraint(
                condition=Q(quota__isnull=True) | Q(quota__gte=0), name="user_quota_not_negative"
            ),
        ]


class Token(models.Model):
    """An API token. The plain text is shown once by `accounts.tokens.create`; the row holds its SHA-256 and
    its first characters, by which its owner knows it again."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16)
    digest = models.CharField(max_length=64, unique=True)
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}...)"


class AppendOnly(TypeError):
    """The audit trail only grows: somebody tried to change or delete a row of it."""


class AuditQuerySet(models.QuerySet["AuditEvent"]):
    def update(self, **_: Any) -> NoReturn:
        raise AppendOnly("audit events are not changed")

    def delete(self) -> NoReturn:
        raise AppendOnly("audit events are not deleted")

    def bulk_update(self, *_: Any, **__: Any) -> NoReturn:
        raise AppendOnly("audit events are not changed")


class AuditEvent(models.Model):
    """Who did what to what, when and from where. Rows are added by `accounts.audit.record` and stay as they
    are; only `actor` becomes empty when that user is deleted, and `actor_name` then still tells."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    actor_name = models.CharField(max_length=150, blank=True)
    action = models.CharField(max_length=60, db_index=True)
    target = models.CharField(max_length=255, blank=True)
    address = models.CharField(max_length=45, blank=True)
    detail = models.JSONField(default=dict, blank=True)

    objects = AuditQuerySet.as_manager()

    class Meta:
        ordering = ["-at", "-pk"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor_name or '-'} {self.action} {self.target}".rstrip()

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnly("audit events are not changed")
        kwargs["force_insert"] = True
        super().save(*args, **kwargs)

    def delete(self, *_: Any, **__: Any) -> NoReturn:
        raise AppendOnly("audit events are not deleted")


class SignInAttempts(models.Model):
    """Recent sign-in attempts under one key (account and address, or address), for `accounts/throttle.py`.
    `key` is a hash: what people type into the name field is sometimes their password."""

    key = models.CharField(max_length=64, primary_key=True)
    failures = models.PositiveIntegerField(default=0)
    last_at = models.DateTimeField(db_index=True)
    blocked_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "sign-in attempts"

    def __str__(self) -> str:
        return f"{self.failures} at {self.last_at:%Y-%m-%d %H:%M:%S}"
