"""The marker: an object in each place that says which broker the place is.

It tells a wrong or vanished place from a right one, so that an outage is never taken for a loss, and two
brokers never stand for the same place.
"""

from __future__ import annotations

import re
from uuid import UUID

from brokers.errors import Corrupt, NotFound
from brokers.names import MARKER_NAME, OBJECT_PREFIX
from brokers.open import OpenBroker

_LINE = re.compile(rb"^broker ([0-9a-f-]{36})$", re.MULTILINE)


def content(marker: UUID) -> bytes:
    return f"CloudStore keeps objects here. Do not change or remove this file.\nbroker {marker}\n".encode(
        "ascii"
    )


def parse(data: bytes) -> UUID | None:
    """The id in a marker; None when it is none."""
    found = _LINE.search(data)
    try:
        return UUID(found.group(1).decode("ascii")) if found else None
    except ValueError:
        return None


def write(opened: OpenBroker, marker: UUID) -> str:
    """Write the marker and read it back: -> its locator. Raises BrokerError."""
    locator = opened.put(MARKER_NAME, content(marker))
    if opened.peek(locator) != content(marker):
        raise Corrupt("the marker reads back differently from how it was written")
    return locator


def find(opened: OpenBroker) -> tuple[str, bytes] | None:
    """The locator and bytes of whatever marker the place has, or None. Raises BrokerError."""
    try:
        return MARKER_NAME, opened.peek(MARKER_NAME)
    except NotFound:
        pass
    # Where locators are not names, only the listing knows it.
    for found in opened.list(MARKER_NAME):
        if found.path.endswith(MARKER_NAME):
            try:
                return found.path, opened.peek(found.path)
            except NotFound:
                continue
    return None


def has_objects(opened: OpenBroker) -> bool:
    """Whether anything of ours is stored there. Raises BrokerError."""
    return next(opened.list(OBJECT_PREFIX), None) is not None
