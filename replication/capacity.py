"""What our copies take on a broker that may hold only so much."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Q, Sum

from brokers import clock
from brokers.models import Broker
from replication.models import Replica

# A count is good for so long.
COUNTED = timedelta(seconds=60)


def measure(*, everything: bool = False) -> int:
    """Count the sealed bytes of every broker that has a cap, when the last count is a minute old: -> how many were
    counted. What is planned and what is still to be deleted counts too. Every sweep calls it; `everything` counts
    at once, and brokers without a cap as well."""
    now = clock.now()
    rows = Broker.objects.all()
    if not everything:
        old = Q(held_at=None) | Q(held_at__lte=now - COUNTED) | Q(held_at__gt=now)
        rows = rows.filter(old, capacity_limit__isnull=False)
    counted = 0
    for pk in rows.values_list("pk", flat=True):
        counted += Broker.objects.filter(pk=pk).update(held=held(pk), held_at=now)
    return counted


def held(broker_id: int) -> int:
    """Bytes of all objects on a broker that have a row."""
    size = Replica.objects.filter(broker=broker_id).aggregate(size=Sum("segment__sealed_size"))["size"]
    return int(size or 0)
