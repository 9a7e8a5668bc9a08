"""Celery's way into the services of brokers. Each task may run twice, late or not at all without harm."""

from __future__ import annotations

from celery import shared_task

from brokers import alerts, degraded, health, history, limits


@shared_task
def poll_brokers() -> int:
    """Poll what is due. Running it twice or late does no harm."""
    return health.poll_due()


@shared_task
def watch_brokers() -> None:
    """Judge the brokers by their history and their limits, and note what is to be told."""
    degraded.watch()
    limits.watch_traffic()
    alerts.note_changes()


@shared_task
def send_alerts() -> int:
    """Tell what is to be told."""
    return alerts.send_due()


@shared_task
def compact_history() -> int:
    """Keep the history small, and drop alerts that were told long ago."""
    return history.compact() + alerts.expire()
