"""A broker as the commands print it: plain data, never a secret."""

from __future__ import annotations

from typing import Any

from brokers import limits
from brokers.models import Broker
from brokers.state import State, detail_of, reason_of, state_of, words_of


def as_dict(broker: Broker) -> dict[str, Any]:
    """Everything an operator may see of a broker, fit for JSON. Secrets are named nowhere."""
    return {
        "id": broker.pk,
        "name": broker.name,
        "driver": broker.driver,
        "domain": broker.domain,
        "options": broker.options,
        "weight": broker.weight,
        "enabled": broker.enabled,
        "draining": broker.draining,
        "state": str(state_of(broker)),
        "health": str(broker.health),
        "reason": reason_of(broker),
        "detail": detail_of(broker),
        "since": broker.health_since.isoformat(),
        "degraded_since": broker.degraded_since.isoformat() if broker.degraded_since else None,
        "incident": broker.incident or None,
        "checked_at": broker.checked_at.isoformat() if broker.checked_at else None,
        "latency_ms": broker.latency_ms,
        "total": broker.total,
        "used": broker.used,
        "available": broker.available,
        "held": broker.held,
        "room": broker.room,
        "limits": limits.of(broker),
        "traffic_used_up": broker.over_traffic,
        "marker": str(broker.marker),
    }


def as_line(broker: Broker) -> str:
    """One line for a terminal."""
    state = words_of(broker)
    if broker.draining and state_of(broker) != State.DRAINING:
        state += ", draining"
    if broker.over_traffic:
        state += ", monthly traffic used up"
    room = "" if broker.room is None else f", room for {broker.room / 1e9:.1f} GB"
    return f"{broker.name}: {broker.driver}, domain {broker.domain}, {state}{room}"
