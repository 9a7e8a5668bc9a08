"""Queue tasks. Running one twice, late or never loses nothing."""

from __future__ import annotations

from celery import shared_task


@shared_task
def expire_uploads() -> None:
    from vfs import upload

    upload.expire_uploads()
