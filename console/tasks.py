"""Queue tasks. Running one twice, late or never loses nothing."""

from __future__ import annotations

import logging

from celery import shared_task

log = logging.getLogger(__name__)


@shared_task
def snapshot() -> None:
    """Make a snapshot of the metadata and drop the ones that are no longer kept."""
    from console import snapshot as snapshots_of_metadata
    from replication import snapshots, vault

    try:
        snapshots_of_metadata.make()
    except vault.SnapshotRefused as error:
        log.warning("no snapshot of the metadata was made: %s", error)
    snapshots.retain()


@shared_task
def advance_epoch() -> None:
    from replication import epoch

    epoch.advance()


@shared_task
def run_jobs() -> None:
    """Go on with every job that nobody works at."""
    from console import jobs

    jobs.run_due()


@shared_task
def run_job(job_id: int) -> None:
    from console import jobs

    jobs.run(job_id, seconds=jobs.TURN)
