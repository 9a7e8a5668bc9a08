"""One call to a broker on its way through the layers, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limit:
    """Seconds: `attempt` for one try, `total` for all tries together with the waits between them."""

    attempt: float
    total: float


# A stored object is below 8 MiB, so that even a slow line moves it within one attempt.
LIMITS: Mapping[str, Limit] = {
    "put": Limit(30, 60),
    "get": Limit(30, 60),
    "stat": Limit(15, 60),
    "delete": Limit(15, 60),
    "list": Limit(60, 120),
    "list_more": Limit(60, 60),
    "info": Limit(10, 10),
    "probe": Limit(10, 10),
    "prepare": Limit(30, 30),
    "peek": Limit(10, 10),
}


@dataclass(slots=True)
class Call:
    """`operation` with its arguments; `timeout` is what this attempt may still take, in seconds. `waited` are the
    seconds that it was held back by the operator's own limits, which say nothing of the broker."""

    operation: str
    arguments: tuple[Any, ...]
    timeout: float
    waited: float = 0.0


Handler = Callable[[Call], Any]
