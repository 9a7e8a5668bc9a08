"""The Celery application. Tasks only make work sooner: the database alone says what is due."""

from __future__ import annotations

import logging
import logging.config
import os
import time
from typing import Any

from celery import Celery, Task
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

# After a failed send no other is tried for this long, so that a dead queue costs a web process at most one
# short time-out in it, not one for each request.
PAUSE_SECONDS = 5.0


class HintTask(Task):
    """A task whose sending never fails and never waits long: a hint that cannot be sent is dropped, because
    the sweeps find the same work in the database."""

    abstract = True
    _quiet_until = float("-inf")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the task, unless the database has another schema than this code: then the sweeps of a worker
        with the right code find the work."""
        if not self.request.called_directly:
            from cloudstore import schema

            if reason := schema.refusal():
                logger.error("%s is refused: %s", self.name, reason)
                return None
        return super().__call__(*args, **kwargs)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Sends the task; returns None when the queue cannot be reached."""
        if time.monotonic() < HintTask._quiet_until:
            return None
        try:
            return super().apply_async(*args, **kwargs)
        except (OperationalError, OSError) as error:
            HintTask._quiet_until = time.monotonic() + PAUSE_SECONDS
            logger.warning("The queue cannot be reached; sweeps will find the work later: %s", error)
            return None


@setup_logging.connect
def _use_our_logging(**_: Any) -> None:
    """Worker and scheduler log as the settings say; Celery then leaves the loggers alone."""
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)


@worker_process_init.connect
def _write_history(**_: Any) -> None:
    """Each process of the worker writes what it counts of the brokers' calls, on a thread of its own."""
    from brokers import history

    history.start()


@worker_process_shutdown.connect
def _write_last_history(**_: Any) -> None:
    from brokers import history

    history.stop()


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
app = Celery("cloudstore", task_cls="cloudstore.celery:HintTask")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
