"""The independent count of what users store: every version of every node, in the trash or not, plus what uploads
have reserved. Copies on brokers don't count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Sum

from accounts import quota
from accounts.models import User
from vfs.models import Upload, Version


@dataclass(frozen=True, slots=True)
class Count:
    """A user's numbers as they stand and as they were counted, in bytes."""

    user: str
    used: int
    reserved: int
    counted_used: int
    counted_reserved: int

    @property
    def right(self) -> bool:
        return (self.used, self.reserved) == (self.counted_used, self.counted_reserved)


def _count(user: User) -> Count:
    used = Version.objects.filter(node__owner=user).aggregate(n=Sum("content__size"))["n"] or 0
    reserved = Upload.objects.filter(owner=user).aggregate(n=Sum("reserved"))["n"] or 0
    return Count(user.get_username(), user.used, user.reserved, used, reserved)


def recount(*, dry_run: bool = False) -> Iterator[Count]:
    """Count every user anew and, unless `dry_run`, write down what was wrong: one user a transaction, in which
    nothing else can change that user's numbers. Idempotent."""
    for pk in list(User.objects.order_by("pk").values_list("pk", flat=True)):
        with transaction.atomic():
            quota.hold(pk)
            count = _count(User.objects.get(pk=pk))
            if not count.right and not dry_run:
                quota.set_recounted(pk, count.counted_used, count.counted_reserved)
        yield count
