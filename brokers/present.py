"""A broker as the commands print it: plain data, never a secret."""

from __future__ import annotations

from typing import Any

from brokers.models import Broker


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
        "health": str(broker.health),
        "reason": broker.health_reason,
        "detail": broker.health_detail,
        "since": broker.health_since.isoformat(),
        "checked_at": broker.checked_at.isoformat() if broker.checked_at else None,
        "latency_ms": broker.latency_ms,
        "total": broker.total,
        "used": broker.used,
        "available": broker.available,
        "marker": str(broker.marker),
    }


def as_line(broker: Broker) -> str:
    """One line for a terminal."""
    state = str(broker.health) if broker.enabled else "disabled"
    if broker.draining:
        state += ", draining"
    reason = f" ({broker.health_reason})" if broker.health_reason else ""
    room = "" if broker.available is None else f", {broker.available / 1e9:.1f} GB available"
    return f"{broker.name}: {broker.driver}, domain {broker.domain}, {state}{reason}{room}"
