"""Keyset pages: a cursor names the last row of a page, so that rows that come or go shift nothing."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from django.db.models import QuerySet

from vfs.errors import BadCursor
from vfs.models import Node

PAGE = 200
PAGE_MOST = 1000


@dataclass(frozen=True, slots=True)
class Page:
    nodes: list[Node] = field(default_factory=list)
    cursor: str | None = None  # of the next page; None on the last one


def page(nodes: QuerySet[Node], limit: int, key: Callable[[Node], tuple[str, ...]]) -> Page:
    """The first `limit` of `nodes` (at most PAGE_MOST). `key` are the sort values of a node."""
    limit = max(1, min(limit, PAGE_MOST))
    rows = list(nodes[: limit + 1])
    if len(rows) <= limit:
        return Page(rows)
    return Page(rows[:limit], encode(key(rows[limit - 1])))


def encode(values: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def decode(cursor: str, count: int) -> list[str]:
    """The sort values in a cursor. Raises BadCursor."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise BadCursor from None
    if not isinstance(values, list) or len(values) != count:
        raise BadCursor
    for value in values:
        # What no database takes as text cannot come from a listing.
        if not isinstance(value, str) or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise BadCursor
    return values
