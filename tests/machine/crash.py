"""The death of the process at a chosen effect: a call to a broker, or a commit.

Effects are counted before and after each. Once dead, nothing has an effect any more until `revive`: whatever runs
while the exception flies (`finally`, `except BaseException`) reaches no broker and commits nothing, as after a
kill -9. For one thread and its connection, inside a transaction of a test (each commit is then a savepoint's): cheap
enough for thousands of programs. The crash matrix, which visits each effect once, kills real processes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection
from django.db.transaction import Atomic

_WRITES = ("INSERT", "UPDATE", "DELETE")
_ENDS = ("ROLLBACK", "RELEASE", "SAVEPOINT")


class Crash(BaseException):
    """The process died here. Not an Exception: no handler of the product catches it."""


class Fuse:
    """Lets the process die at the n-th effect from now."""

    def __init__(self) -> None:
        self.dead = False
        self.left: int | None = None

    def arm(self, effects: int | None) -> None:
        """Die at this effect, from 1; None: live on."""
        self.left = effects

    def revive(self) -> None:
        self.dead, self.left = False, None

    def effect(self) -> None:
        """Something happens to the world here, or has just happened."""
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.dead, self.left = True, None
        if self.dead:
            raise Crash


def _product_blocks() -> list[Any]:
    return [block for block in connection.atomic_blocks if not getattr(block, "_from_testcase", False)]


@contextmanager
def watched(fuse: Fuse) -> Iterator[None]:
    """Inside, every commit of this thread's connection is an effect of `fuse`: the end of an outermost transaction,
    and a writing statement outside any."""
    enter, leave = Atomic.__enter__, Atomic.__exit__

    def entering(block: Atomic) -> None:
        # What would be a transaction of its own can be rolled back alone: here, to a savepoint.
        savepoint = block.savepoint
        if not getattr(block, "_from_testcase", False) and not _product_blocks():
            block.savepoint = True
        try:
            enter(block)
        finally:
            block.savepoint = savepoint

    def leaving(block: Atomic, kind: Any, error: Any, trace: Any) -> None:
        outermost = len(_product_blocks()) == 1 and not getattr(block, "_from_testcase", False)
        if kind is None and outermost:
            try:
                fuse.effect()
            except Crash as crash:
                leave(block, Crash, crash, crash.__traceback__)
                raise
        leave(block, kind, error, trace)
        if kind is None and outermost:
            fuse.effect()

    def executing(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        verb = sql.lstrip("( ")[:9].upper()
        if verb.startswith(_ENDS):
            return execute(sql, params, many, context)
        if fuse.dead:
            raise Crash
        if not verb.startswith(_WRITES) or _product_blocks():
            return execute(sql, params, many, context)
        fuse.effect()
        answer = execute(sql, params, many, context)
        fuse.effect()
        return answer

    Atomic.__enter__, Atomic.__exit__ = entering, leaving  # type: ignore[method-assign]
    try:
        with connection.execute_wrapper(executing):
            yield
    finally:
        Atomic.__enter__, Atomic.__exit__ = enter, leave  # type: ignore[method-assign]
