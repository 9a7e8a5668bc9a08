"""What can go wrong with a broker. The class says whether trying again can help.

An outage must never look like `NotFound`: a driver raises it only when the provider answered, for this very
place, that this object does not exist.
"""

from __future__ import annotations

from typing import ClassVar


class BrokerError(Exception):
    """Base of all. `code` is stable and fit for rows and responses; the message never carries a secret."""

    code: ClassVar[str] = "broker_error"
    temporary: ClassVar[bool] = False

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.code.replace("_", " "))


class PermanentError(BrokerError):
    """The same call will fail again until somebody changes something."""


class Misconfigured(PermanentError):
    code = "misconfigured"


class Unauthorized(PermanentError):
    code = "unauthorized"


class ClockSkewed(PermanentError):
    """The provider refuses signed requests because its clock and ours differ too much. The credentials are right."""

    code = "clock_skewed"


class NotFound(PermanentError):
    """The provider says that this object does not exist."""

    code = "not_found"


class RangeError(PermanentError):
    """The range begins at or after the end of the object."""

    code = "range"


class InvalidKey(PermanentError):
    code = "invalid_key"


class TooLarge(PermanentError):
    code = "too_large"


class Corrupt(PermanentError):
    """What came back is not what the provider or the contract promised (length, checksum)."""

    code = "corrupt"


class OutOfSpace(PermanentError):
    code = "out_of_space"


class ReadOnly(PermanentError):
    """The place can be read, but refuses writes."""

    code = "read_only"


class OverLimit(PermanentError):
    """The operator's own limit is reached: the broker was not asked."""

    code = "over_limit"


class TemporaryError(BrokerError):
    """Trying again later can help. Nothing is known of the effect."""

    temporary = True


class Unavailable(TemporaryError):
    code = "unavailable"


class Timeout(TemporaryError):
    code = "timeout"


class RateLimited(TemporaryError):
    """The provider asks to slow down; `retry_after` in seconds where it says for how long."""

    code = "rate_limited"

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
