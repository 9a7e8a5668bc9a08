"""Who: users, plans, API tokens, the audit trail."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models import Q

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
            models.CheckConstraint(condition=Q(copies__isnull=True) | Q(copies__gte=1), name="plan_copies_at_least_one"),
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

    class Meta(AbstractUser.Meta):  # type: ignore[name-defined,misc]
        constraints = [
            models.CheckConstraint(condition=Q(used__gte=0), name="user_used_not_negative"),
            models.CheckConstraint(condition=Q(reserved__gte=0), name="user_reserved_not_negative"),
        ]
