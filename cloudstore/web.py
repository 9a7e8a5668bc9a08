"""The web server: `python -m cloudstore.web` (Granian, WSGI, threads). Used by `make run` and by docker/."""

from __future__ import annotations

import os

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


def log_config(ours: dict[str, object]) -> dict[str, object]:
    """Our logging, with Granian's own loggers going the same way."""
    loggers = {"_granian": {"level": "WARNING"}, "granian.access": {"level": "INFO"}}
    return {**ours, "loggers": {**dict(ours["loggers"]), **loggers}}  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
