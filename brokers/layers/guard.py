"""No provider IO inside a transaction: a slow provider would hold locks, and an effect outlives a rollback."""

from __future__ import annotations

from typing import Any

from django.db import connections

from brokers.layers.call import Call, Handler


class IoInTransaction(RuntimeError):
    """A broker was called inside `transaction.atomic()`. A bug of the caller, never of a broker."""


def check() -> None:
    """Raise IoInTransaction when this thread is inside a transaction (one of a TestCase's own is none)."""
    for connection in connections.all(initialized_only=True):
        if any(not getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
            raise IoInTransaction("a broker must not be called inside a database transaction")


class Guard:
    def __init__(self, inner: Handler) -> None:
        self._inner = inner

    def __call__(self, call: Call) -> Any:
        check()
        return self._inner(call)
