"""What an operator allows a broker: capacity, rates, monthly traffic."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from brokers import clock, history
from brokers.models import Broker, BrokerEvent

log = logging.getLogger(__name__)

# The fields of a broker that are limits, and whether a limit may be absent.
FIELDS: Mapping[str, bool] = {
    "capacity_limit": True,
    "reserve": False,
    "max_concurrency": True,
    "max_rate": True,
    "max_requests": True,
    "monthly_traffic": True,
    "monthly_counts": False,
    "monthly_hard": False,
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\Z", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from "500", "1.5G" (powers of 1000) or "64Mi" (powers of 1024). Raises ValueError."""
    found = _SIZE.match(text.strip())
    if not found or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is no size; write it as 500000000, 500M or 2Gi")
    units = _BINARY if found[3] else _UNITS
    return int(float(found[1]) * units[found[2].lower()])


def of(broker: Broker) -> dict[str, Any]:
    """A broker's limits as plain data."""
    return {name: getattr(broker, name) for name in FIELDS}


def apply(broker: Broker, limits: Mapping[str, Any]) -> list[str]:
    """Put limits into an (unsaved) row: -> the names of those that differ. None removes a limit; for one that must be
    there it stands for the default. Raises ValueError for a name that is none."""
    changed = []
    for name, value in limits.items():
        if name not in FIELDS:
            raise ValueError(f"there is no limit {name!r}")
        if value is None and not FIELDS[name]:
            value = getattr(Broker(), name)
        if value != getattr(broker, name):
            setattr(broker, name, value)
            changed.append(name)
    return changed


def watch_traffic() -> int:
    """Note which brokers have used up this month's traffic, and which have not (any more): -> how many changed."""
    now = clock.now()
    changed = 0
    for broker in Broker.objects.filter(enabled=True):
        limit = broker.monthly_traffic
        used = 0 if limit is None else history.traffic(broker.pk, now, broker.monthly_counts)
        over = limit is not None and used >= limit
        if over == broker.over_traffic:
            continue
        until = history.month_of(now)[1] if over else None
        with transaction.atomic():
            mine = Broker.objects.filter(
                pk=broker.pk, traffic_over_until=broker.traffic_over_until, monthly_traffic=limit
            )
            if not mine.update(traffic_over_until=until):
                continue
            words = f"{used} of {limit} bytes" if over else ""
            kind = "traffic_used_up" if over else "traffic_again"
            BrokerEvent.objects.create(broker=broker, at=now, kind=kind, detail=words)
        changed += 1
        log.info("broker %s: %s %s", broker.name, kind, words)
    return changed
