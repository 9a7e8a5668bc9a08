"""The one source of randomness for domain code. Keys and salts come from the operating system's generator;
tests may install a seeded source to make placement and jitter repeatable."""

from __future__ import annotations

import random
import secrets
from typing import Protocol


class Source(Protocol):
    def token_bytes(self, count: int) -> bytes: ...

    def random(self) -> float: ...


class SystemSource:
    _random = random.SystemRandom()

    def token_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def random(self) -> float:
        return self._random.random()


_source: Source = SystemSource()


def install(source: Source) -> Source:
    """Make `source` the process's source; returns the one before it."""
    global _source
    before, _source = _source, source
    return before


def token_bytes(count: int) -> bytes:
    """`count` unpredictable bytes."""
    return _source.token_bytes(count)


def token_hex(count: int) -> str:
    """`count` unpredictable bytes as `2 * count` lowercase hex digits."""
    return _source.token_bytes(count).hex()


def uniform() -> float:
    """A number in [0, 1)."""
    return _source.random()
