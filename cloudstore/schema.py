"""Whether the database has the schema that this code was written for.

A process whose code is older or newer than the database refuses work until it is restarted with the right code or
`manage.py migrate` has run: half of an upgrade must not write rows that the other half misreads.
"""

from __future__ import annotations

import threading

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from brokers import clock

# A process asks the database so often, in seconds.
EVERY = 10.0

_lock = threading.Lock()
_known: tuple[float, str] | None = None
_ours: tuple[set[tuple[str, str]], set[str]] | None = None


def _expected() -> tuple[set[tuple[str, str]], set[str]]:
    """The migrations on disk (those that a squashed one replaces count as its own), and their apps."""
    global _ours
    if _ours is None:
        loader = MigrationLoader(None)
        _ours = set(loader.disk_migrations), loader.migrated_apps
    return _ours


def mismatch() -> str:
    """What differs, in words for the operator; "" when the schema is the right one. Raises DatabaseError."""
    expected, apps = _expected()
    applied = set(MigrationRecorder(connections[DEFAULT_DB_ALIAS]).applied_migrations())
    missing = sorted(expected - applied)
    if missing:
        return f"the database lacks {_names(missing)}: run manage.py migrate"
    newer = sorted(key for key in applied - expected if key[0] in apps)
    if newer:
        return f"the database has {_names(newer)}, which this code does not know: update it, or restart it"
    return ""


def _names(keys: list[tuple[str, str]]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(".".join(key) for key in keys[:3]) + more


def refusal() -> str:
    """`mismatch`, asked at most every 10 s in a process."""
    global _known
    now = clock.monotonic()
    with _lock:
        if _known is not None and now - _known[0] < EVERY:
            return _known[1]
    found = mismatch()
    with _lock:
        _known = now, found
    return found


def forget() -> None:
    """Ask anew next time."""
    global _known
    with _lock:
        _known = None
