"""Celery's way into `brokers.health`."""

from __future__ import annotations

from celery import shared_task

from brokers import health


@shared_task
def poll_brokers() -> int:
    """Poll what is due. Running it twice or late does no harm."""
    return health.poll_due()
