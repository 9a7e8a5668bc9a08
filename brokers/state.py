"""A broker's state: the one word that people and programs are told."""

from __future__ import annotations

from django.db.models import TextChoices

from brokers.errors import Unauthorized
from brokers.models import Broker, Health

# Reasons of an incident: why a broker whose place answers counts as away (health.note_incident).
OBJECTS_MISSING = "objects_missing"
OBJECTS_REFUSED = "objects_refused"


class State(TextChoices):
    UP = "up", "up"
    DEGRADED = "degraded", "degraded"
    DOWN = "down", "down"
    READ_ONLY = "read_only", "read-only"
    FULL = "full", "full"
    UNAUTHORIZED = "unauthorized", "unauthorized"
    DRAINING = "draining", "draining"
    DISABLED = "disabled", "disabled"
    UNKNOWN = "unknown", "not polled yet"


def state_of(broker: Broker) -> State:
    """The state of a row. What the operator has to know first comes first: that it is out of use, that it is away,
    that it is being emptied; then what it cannot do."""
    if not broker.enabled:
        return State.DISABLED
    if broker.health == Health.OFFLINE:
        refused = broker.health_reason in (Unauthorized.code, OBJECTS_REFUSED)
        return State.UNAUTHORIZED if refused else State.DOWN
    if broker.draining:
        return State.DRAINING
    if broker.health == Health.UNKNOWN:
        return State.UNKNOWN
    if broker.health == Health.FULL:
        return State.FULL
    if broker.health == Health.READ_ONLY:
        return State.READ_ONLY
    return State.DEGRADED if broker.degraded else State.UP


def reason_of(broker: Broker) -> str:
    """Why it is in its state, as a code; empty when there is nothing to say."""
    if state_of(broker) == State.DEGRADED:
        return broker.degraded_reason
    return broker.health_reason if broker.enabled else ""


def detail_of(broker: Broker) -> str:
    """The same in words."""
    return broker.degraded_detail if state_of(broker) == State.DEGRADED else broker.health_detail


def words_of(broker: Broker) -> str:
    """State and reason for people, as "down (timeout)"."""
    reason = reason_of(broker)
    return f"{state_of(broker).label} ({reason})" if reason else str(state_of(broker).label)
