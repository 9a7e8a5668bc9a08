"""The project: settings, URLs, the queue's application. No logic lives here."""

from cloudstore.celery import app as celery_app

__all__ = ["celery_app"]
