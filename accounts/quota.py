"""Quota: bytes are reserved before they arrive and settled in the transaction that makes them a file.

`used` counts the bytes of a user's versions and trash, `reserved` those of uploads that are under way. The
promise is `used + reserved <= limit` whenever bytes are added, however many requests race: `reserve` is one
conditional UPDATE, and its row count is the answer. A limit that an operator lowers below what is used keeps
every byte and refuses new ones.

None of `settle`, `release` and `refund` is idempotent: a number cannot tell whether it was counted already.
Whoever calls them first wins a compare-and-set on the row that owns the bytes (the upload, the version), and
calls them in the same transaction; then each byte is moved once, or not at all when the transaction fails.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from django.db import transaction
from django.db.models import BigIntegerField, F, OuterRef, Subquery, Value
from django.db.models.functions import Coalesce, Greatest

from accounts.models import DEFAULT_QUOTA, Plan, User
from prepared.change import Update
from prepared.query import Slot

logger = logging.getLogger(__name__)
MAX_BYTES = 2**63 - 1


class QuotaExceeded(Exception):
    """The bytes don't fit. All numbers are bytes; `needed` is what was asked for."""

    def __init__(self, *, limit: int, used: int, reserved: int, needed: int) -> None:
        self.limit, self.used, self.reserved, self.needed = limit, used, reserved, needed
        super().__init__(f"{needed} bytes do not fit: {used} used and {reserved} reserved of {limit}")


@dataclass(frozen=True)
class Usage:
    """What a user stores, may store and is just uploading, in bytes."""

    limit: int
    used: int
    reserved: int

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used - self.reserved)


def _limit() -> Coalesce:
    # A subquery on the plan alone. A join would turn the UPDATE's condition into `id IN (SELECT ... user ...)`,
    # which PostgreSQL does not check anew after it has waited for another transaction's update of the row.
    plan = Plan.objects.order_by().filter(pk=OuterRef("plan_id")).values("quota")
    return Coalesce(F("quota"), Subquery(plan), Value(DEFAULT_QUOTA), output_field=BigIntegerField())


_USER = Slot("user", User, "id")
_N = Slot("n", User, "reserved")
_RESERVE = Update(
    lambda: (
        User.objects.filter(pk=_USER)
        .annotate(room=_limit() - _N)
        .filter(room__gte=F("used") + F("reserved")),
        {"reserved": F("reserved") + _N},
    )
)
_MOVE = Update(
    lambda: (
        User.objects.filter(
            pk=_USER,
            reserved__gte=Slot("least_reserved", User, "reserved"),
            used__gte=Slot("least_used", User, "used"),
        ),
        {
            "reserved": F("reserved") + Slot("reserved", User, "reserved"),
            "used": F("used") + Slot("used", User, "used"),
        },
    )
)


def reserve(user_id: int, n: int) -> None:
    """Sets `n` bytes aside, or raises QuotaExceeded and changes nothing. Atomic under any number of callers.

    Reserving 0 bytes always succeeds, also for a user above the limit. Raises ValueError for a negative `n`
    and User.DoesNotExist for an unknown user. Pair each success with one `settle` or `release`.
    """
    _not_negative(n)
    if n == 0:
        return
    if n <= MAX_BYTES and _RESERVE(user=user_id, n=n):
        return
    now = usage(user_id)
    raise QuotaExceeded(limit=now.limit, used=now.used, reserved=now.reserved, needed=n)


def settle(user_id: int, *, reserved: int, used: int) -> None:
    """Ends a reservation of `reserved` bytes of which `used` became a version; the rest is free again.

    Must run in the transaction that makes the version (raises TransactionManagementError outside of one).
    Raises ValueError for negative numbers or `used > reserved`, User.DoesNotExist for an unknown user.
    """
    _not_negative(reserved, used)
    if used > reserved:
        raise ValueError(f"{used} bytes used of {reserved} reserved")
    if not transaction.get_connection().in_atomic_block:
        raise transaction.TransactionManagementError(
            "settle belongs into the transaction that makes the version"
        )
    if not _move(user_id, reserved=-reserved, used=used):
        raise User.DoesNotExist(f"no user {user_id}")


def release(user_id: int, reserved: int) -> None:
    """Gives a reservation of `reserved` bytes back, for an upload that ended without a version. ValueError when
    negative; nothing happens when the user is gone."""
    _not_negative(reserved)
    _move(user_id, reserved=-reserved)


def refund(user_id: int, n: int) -> None:
    """Takes `n` bytes of purged versions off `used`. ValueError when negative; nothing happens when the user is
    gone."""
    _not_negative(n)
    _move(user_id, used=-n)


def charge(user_id: int, n: int) -> None:
    """Adds `n` bytes to `used` whatever the limit is: for bytes that are there already and come back. ValueError when
    negative; nothing happens when the user is gone."""
    _not_negative(n)
    _move(user_id, used=n)


def usage(user: User | int) -> Usage:
    """What the database says now about a user (or a user's id). Raises User.DoesNotExist."""
    rows = User.objects.filter(pk=user.pk if isinstance(user, User) else user).annotate(limit=_limit())
    limit, used, reserved = rows.values_list("limit", "used", "reserved").get()
    return Usage(limit=limit, used=used, reserved=reserved)


def limit_of(user: User | int) -> int:
    """The user's limit in bytes: the own quota, else the plan's, else DEFAULT_QUOTA."""
    return usage(user).limit


def hold(user_id: int) -> None:
    """Makes every other change of this user's numbers wait until the caller's transaction ends, so that what
    is counted after this call and given to `set_recounted` is not stale. Raises outside of a transaction."""
    if not transaction.get_connection().in_atomic_block:
        raise transaction.TransactionManagementError("hold lasts as long as a transaction; there is none")
    User.objects.filter(pk=user_id).update(used=F("used"))  # a write locks on every database


def set_recounted(user_id: int, used: int, reserved: int) -> bool:
    """Writes freshly counted numbers; True when they differ from what stood there. Idempotent. Call `hold`
    first, count and write in one transaction."""
    _not_negative(used, reserved)
    rows = User.objects.filter(pk=user_id).exclude(used=used, reserved=reserved)
    return bool(rows.update(used=used, reserved=reserved))


def _not_negative(*numbers: int) -> None:
    if min(numbers) < 0:
        raise ValueError(f"a number of bytes is not negative: {min(numbers)}")


def _move(user_id: int, *, reserved: int = 0, used: int = 0) -> bool:
    """Adds to the numbers; False when there is no such user. A number that would become negative was wrong
    before: it becomes 0, and the log says so, because a wrong counter shall not keep a user from deleting."""
    if _MOVE(user=user_id, reserved=reserved, used=used, least_reserved=-reserved, least_used=-used):
        return True
    rows = User.objects.filter(pk=user_id)
    changed = rows.update(reserved=Greatest(F("reserved") + reserved, 0), used=Greatest(F("used") + used, 0))
    if changed:
        logger.error("The quota numbers of user %s were too small; run quota_recount", user_id)
    return bool(changed)
