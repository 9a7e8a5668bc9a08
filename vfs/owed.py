"""Uploads that could not be given back because the database was away: tried again until it is done.

The process that took an upload lives, so nobody else may give it back before it expires; this process owes it.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

from django.db import connections

log = logging.getLogger(__name__)

EVERY = 3.0  # seconds

_lock = threading.Lock()
_owed: set[uuid.UUID] = set()
_thread: threading.Thread | None = None
_hurry = threading.Event()


def later(upload_id: uuid.UUID, give_back: Callable[[uuid.UUID], object]) -> None:
    """Call `give_back(upload_id)` again and again, in the background, until the database takes it."""
    global _thread
    with _lock:
        _owed.add(upload_id)
        if _thread is None:
            _thread = threading.Thread(target=_work, args=(give_back,), name="owed", daemon=True)
            _thread.start()


def waiting() -> int:
    """How many uploads are owed."""
    with _lock:
        return len(_owed)


def forget() -> None:
    """Owe nothing any more; returns when the background is at rest. For tests: the rows expire by time."""
    with _lock:
        _owed.clear()
        thread = _thread
    if thread is not None:
        _hurry.set()
        thread.join()
        _hurry.clear()


def _work(give_back: Callable[[uuid.UUID], object]) -> None:
    global _thread
    while True:
        _hurry.wait(EVERY)
        with _lock:
            due = list(_owed)
        done = []
        try:
            for upload_id in due:
                give_back(upload_id)
                done.append(upload_id)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
            log.info("%s uploads wait for the database: %s", len(due) - len(done), type(error).__name__)
        finally:
            connections.close_all()
        with _lock:
            _owed.difference_update(done)
            if not _owed:
                _thread = None
                return
