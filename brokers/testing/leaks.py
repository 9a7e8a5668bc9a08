"""Collects what a driver prints, raises and logs, to look for secrets in it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote


class Seen(logging.Handler):
    """Everything that was shown, by kind."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._texts: list[tuple[str, str]] = []

    def text(self, text: str) -> None:
        """What printing something gave."""
        self._texts.append(("what is printed", text))

    def error(self, error: BaseException) -> None:
        """An exception with all its causes, contexts, arguments and the text of its tracebacks."""
        done: set[int] = set()
        rest: list[BaseException | None] = [error]
        while rest:
            one = rest.pop()
            if one is None or id(one) in done:
                continue
            done.add(id(one))
            shown = "".join(traceback.format_exception(one, chain=False))
            self._texts.append((f"an exception ({type(one).__name__})", f"{shown} {one!r} {one.args!r}"))
            rest += [one.__cause__, one.__context__]

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append((f"the log ({record.name})", self.format(record)))
        if record.exc_info and record.exc_info[1] is not None:
            self.error(record.exc_info[1])

    def find(self, secrets: Iterable[str]) -> str:
        """Where one of the secrets shows, as it is or quoted for an address; "" for nowhere."""
        forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""))}
        return next((where for where, text in self._texts if any(form in text for form in forms)), "")


@contextmanager
def watch() -> Iterator[Seen]:
    """Everything that is logged at INFO or above meanwhile, and what it is told, is kept for `find`."""
    seen, root = Seen(), logging.getLogger()
    level = root.level
    root.addHandler(seen)
    root.setLevel(min(level, logging.INFO))
    try:
        yield seen
    finally:
        root.setLevel(level)
        root.removeHandler(seen)
