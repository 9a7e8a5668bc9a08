"""What users should know about the brokers, in words."""

from __future__ import annotations

from brokers.models import Broker, Health
from brokers.state import State, state_of

_AWAY = "files stay available from their other copies."
_REFUSES = "new files go to other brokers."
_WORDS = {State.DOWN: _AWAY, State.UNAUTHORIZED: _AWAY, State.READ_ONLY: _REFUSES, State.FULL: _REFUSES}


def notices() -> list[str]:
    """A sentence for each broker that is in trouble now (one query)."""
    rows = Broker.objects.filter(enabled=True).exclude(health__in=(Health.ONLINE, Health.UNKNOWN))
    found = [(broker.name, state_of(broker)) for broker in rows.order_by("name")]
    return [f"{name} is {state.label}: {_WORDS[state]}" for name, state in found if state in _WORDS]
