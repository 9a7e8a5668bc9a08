"""The web server: `python -m cloudstore.web` (Granian, WSGI, threads). Used by `make run` and by docker/.

`python -m cloudstore.web --check` asks a running one and ends with 0 when it answers.
"""

from __future__ import annotations

import http.client
import logging
import os
import sys
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
# Fewer malloc arenas keep the memory of many threads that stream from piling up. Read when a process starts,
# so it holds for the worker process that Granian spawns.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")
# Pieces of a stream (2 MiB at most) come from memory that was used before: fresh pages cost more than decrypting
# into them.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 * 1024 * 1024))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(32 * 1024 * 1024))


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


def answer() -> int | None:
    """The status of the running server's /healthz, or None when nothing answers within 2 s."""
    from django.conf import settings

    host, port = settings.HOST, settings.PORT
    name = next((name for name in settings.ALLOWED_HOSTS if name[0] not in "*.["), "localhost")
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", "/healthz", headers={"Host": f"{name}:{port}"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def check() -> int:
    return 0 if (answer() or 500) < 500 else 1


def log_config(ours: dict[str, Any]) -> dict[str, Any]:
    """Our logging for Granian too, without its advice on threads: ours wait for providers, not for a CPU."""
    filters = {"advice": {"()": "cloudstore.web.NoThreadAdvice"}}
    loggers = {"_granian": {"level": "INFO", "filters": ["advice"]}}
    return {**ours, "filters": filters, "loggers": {**ours["loggers"], **loggers}}


class NoThreadAdvice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "Python threads" not in record.getMessage()


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(check())
    main()
