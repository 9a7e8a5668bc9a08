"""Slows down the guessing of passwords, with counters in the database that all processes share.

An attempt is counted before the password is looked at and forgotten when it was right, so a hundred attempts
at once get no further than one after another. Nobody is locked out: the wait is bound to the address that
fails, and grows to some minutes only.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Case, F, Q, Value, When
from django.utils import timezone

from accounts.models import SignInAttempts

WINDOW = timedelta(minutes=15)
KEPT = timedelta(days=1)


class Throttled(Exception):
    """Too many failures; try again in `retry_after` seconds (at least 1)."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"too many failed attempts; try again in {retry_after} seconds")


@dataclass(frozen=True)
class Rule:
    """`free` failures within WINDOW of each other cost nothing; that one and those after it cost `waits` seconds."""

    free: int
    waits: tuple[int, ...]


PAIR = Rule(free=5, waits=(30, 60, 120, 240, 480))
# Behind one address there may be a whole office: more failures are free, and waits stay short.
ADDRESS = Rule(free=50, waits=(30, 60))


@dataclass(frozen=True)
class Claim:
    """One attempt that was let through and is counted as failed until `forgive` or `take_back`."""

    pair: str
    address: str


def claim(account: str, address: str) -> Claim:
    """Counts one attempt to sign in as `account` from `address`, or raises Throttled and counts nothing."""
    now = timezone.now()
    granted = Claim(
        pair=_key("pair", _folded(account), _network(address)), address=_key("address", _network(address))
    )
    if not SignInAttempts.objects.filter(pk=granted.pair).exists():
        SignInAttempts.objects.filter(last_at__lt=now - KEPT).delete()
    with transaction.atomic():
        _count(granted.address, ADDRESS, now)
        _count(granted.pair, PAIR, now)
    return granted


def forgive(granted: Claim) -> None:
    """The password was right: the failures of this account from this address are forgotten."""
    with transaction.atomic():
        _uncount(granted.address, ADDRESS)
        SignInAttempts.objects.filter(pk=granted.pair).delete()


def take_back(granted: Claim) -> None:
    """The password was not looked at: this attempt, and only this one, is not counted."""
    with transaction.atomic():
        _uncount(granted.address, ADDRESS)
        _uncount(granted.pair, PAIR)


def _count(key: str, rule: Rule, now: datetime) -> None:
    open_now = Q(blocked_until__isnull=True) | Q(blocked_until__lte=now)
    recent = Q(last_at__gte=now - WINDOW)
    # One statement, whose row count decides. `failures` is the number before this attempt.
    waits = [
        When(recent & Q(failures__gte=rule.free - 1 + step), then=Value(now + timedelta(seconds=wait)))
        for step, wait in reversed(list(enumerate(rule.waits)))
    ]
    changes = {
        "failures": Case(When(recent, then=F("failures") + 1), default=Value(1)),
        "blocked_until": Case(*waits, default=Value(None)),
        "last_at": now,
    }
    until = now
    for _ in range(3):  # again when there is no row yet, or a success elsewhere has just deleted it
        if SignInAttempts.objects.filter(open_now, pk=key).update(**changes):
            return
        found = SignInAttempts.objects.filter(pk=key).values_list("blocked_until", flat=True)
        until = found.first() or now
        if until > now:
            break
        SignInAttempts.objects.bulk_create([SignInAttempts(key=key, last_at=now)], ignore_conflicts=True)
    raise Throttled(max(1, math.ceil((until - now).total_seconds())))


def _uncount(key: str, rule: Rule) -> None:
    rows = SignInAttempts.objects.filter(pk=key, failures__gte=1)
    rows.update(
        failures=F("failures") - 1,
        blocked_until=Case(When(failures__lte=rule.free, then=Value(None)), default=F("blocked_until")),
    )


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _folded(account: str) -> str:
    return unicodedata.normalize("NFKC", account).casefold().strip()


def _network(address: str) -> str:
    """IPv6 customers own at least a /64, so that is one address here."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))
