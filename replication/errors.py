"""What reading and writing contents can end in. `code` is stable and fit for responses."""

from __future__ import annotations

from typing import ClassVar


class ReplicationError(Exception):
    code: ClassVar[str] = "replication_error"


class WriteRefused(ReplicationError):
    """Not enough healthy domains took the bytes; nothing was acknowledged. Trying again later can help."""

    code = "not_enough_brokers"


class StateConflict(ReplicationError):
    """The row was no longer in the state that the change starts from (expired, collected, done by another)."""

    code = "state_conflict"


class ContentUnavailable(ReplicationError):
    """No broker that holds the bytes answers now. An outage, not a loss."""

    code = "content_unavailable"


class ContentDamaged(ReplicationError):
    """Every copy that could be read failed its verification, or is proven missing."""

    code = "content_damaged"
