"""What users should know about the brokers, in words."""

from __future__ import annotations

from brokers.models import Broker, Health

_WORDS = {
    Health.OFFLINE: "is offline: files stay available from their other copies.",
    Health.READ_ONLY: "is read-only: new files go to other brokers.",
    Health.FULL: "is full: new files go to other brokers.",
}


def notices() -> list[str]:
    """A sentence for each broker that is in trouble now (one query)."""
    troubled = Broker.objects.filter(enabled=True, health__in=list(_WORDS)).order_by("name")
    return [f"{broker.name} {_WORDS[Health(broker.health)]}" for broker in troubled]
