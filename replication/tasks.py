"""Queue tasks. Each takes one id or nothing, re-reads, and acts through the services; running one twice, late or
never changes nothing but the time: the sweep finds all due work from the database alone."""

from __future__ import annotations

import uuid

from celery import shared_task


@shared_task
def reconcile_segment(segment_id: int) -> None:
    from replication import reconcile

    reconcile.reconcile_segment(segment_id)


@shared_task
def reconcile_content(content_id: str) -> None:
    from replication import reconcile

    reconcile.reconcile_content(uuid.UUID(content_id))


@shared_task
def sweep() -> None:
    from replication import reconcile

    reconcile.sweep(seconds=25)


@shared_task
def scrub() -> None:
    from replication import scrub

    scrub.scrub()


@shared_task
def collect() -> None:
    from replication import collect

    collect.collect()


@shared_task
def find_orphans() -> None:
    from replication import orphans

    orphans.scan()


def hint(content_id: uuid.UUID) -> None:
    """Make the reconciler look at a content soon. Call it after the commit. Never raises, never waits long."""
    reconcile_content.delay(str(content_id))


def hint_segment(segment_id: int) -> None:
    """The same for one segment."""
    reconcile_segment.delay(segment_id)
