"""The web server: `python -m cloudstore.web` (Granian, WSGI, threads). Used by `make run` and by docker/."""

from __future__ import annotations

import logging
import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
# Fewer malloc arenas keep the memory of many threads that stream from piling up. Read when a process starts,
# so it holds for the worker process that Granian spawns.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")


def main() -> None:
    from django.conf import settings
    from granian import Granian
    from granian.constants import Interfaces

    server = Granian(
        "cloudstore.wsgi:application",
        address=settings.HOST,
        port=settings.PORT,
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=settings.WEB_THREADS,
        backlog=1024,
        websockets=False,
        log_access=False,
        log_dictconfig=log_config(settings.LOGGING),
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=10,
        working_dir=settings.BASE_DIR,
    )
    server.serve()


def log_config(ours: dict[str, Any]) -> dict[str, Any]:
    """Our logging for Granian too, without its advice on threads: ours wait for providers, not for a CPU."""
    filters = {"advice": {"()": "cloudstore.web.NoThreadAdvice"}}
    loggers = {"_granian": {"level": "INFO", "filters": ["advice"]}}
    return {**ours, "filters": filters, "loggers": {**ours["loggers"], **loggers}}


class NoThreadAdvice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "Python threads" not in record.getMessage()


if __name__ == "__main__":
    main()
