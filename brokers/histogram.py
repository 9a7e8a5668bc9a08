"""Latencies in few numbers: how many calls fell into each of some forty steps, each √2 times the one before.

Histograms of many processes and spans add up, which percentiles do not; a percentile read from one is right to
about a fifth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FIRST = 0.001  # seconds: the upper bound of step 0
LAST = 40  # about 1,000 s

# Index of the step -> calls. JSON makes strings of the indices.
Histogram = dict[str, int]


def step_of(seconds: float) -> str:
    """The step that a latency falls into."""
    if seconds <= FIRST:
        return "0"
    return str(min(LAST, math.ceil(2 * math.log2(seconds / FIRST) - 1e-9)))


def quantile(steps: Mapping[str, int], part: float) -> float | None:
    """Seconds that `part` (0..1) of the calls took at most: the middle of their step. None without calls."""
    total = sum(steps.values())
    if not total:
        return None
    rank, seen, found = max(1, math.ceil(part * total)), 0, 0
    for found in sorted(map(int, steps)):
        seen += steps[str(found)]
        if seen >= rank:
            break
    return float(FIRST * 2 ** ((found - 0.5) / 2))


def add(to: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add counts to counts, histograms by operation to histograms by operation."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            add(to.setdefault(name, {}), value)
        else:
            to[name] = to.get(name, 0) + value
