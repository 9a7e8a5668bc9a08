"""The operator's rules for bytes: reading and changing them."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import transaction

from brokers import clock
from prepared.query import Query, columns, instances
from replication.models import Content, Policy

CHANGEABLE = ("copies", "ack_copies", "allow_degraded", "scrub_days")


_ROW = Query(lambda: Policy.objects.filter(pk=1).values_list(*columns(Policy)))


def current() -> Policy:
    """The policy now (one query). The row is made with its defaults at first use."""
    for row in _ROW():
        (found,) = instances(row, Policy)
        return found
    return Policy.objects.get_or_create(pk=1)[0]


def held() -> Policy:
    """The policy, kept from changing until the caller's transaction ends."""
    return Policy.objects.select_for_update().get(pk=1)


def change(**values: int | bool) -> Policy:
    """Change some of `CHANGEABLE`; effective at once everywhere. Raises ValidationError and changes nothing."""
    unknown = set(values) - set(CHANGEABLE)
    if unknown:
        raise ValidationError(f"no such setting: {', '.join(sorted(unknown))}")
    current()
    with transaction.atomic():
        policy = held()
        before = policy.copies
        for name, value in values.items():
            setattr(policy, name, value)
        policy.full_clean()
        if policy.copies != before:
            policy.copies_changed_at = clock.now()
        policy.save(update_fields=[*CHANGEABLE, "copies_changed_at"])
    return policy


def copies_of(content: Content, policy: Policy) -> int:
    """How many replicas every segment of this content shall have."""
    return content.copies or policy.copies


def acknowledged_after(copies: int, policy: Policy) -> int:
    """W: verified copies on distinct domains before an upload of so many copies is acknowledged."""
    return min(copies, policy.ack_copies)
