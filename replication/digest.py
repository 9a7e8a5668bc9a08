"""The SHA-256 of a stream, worked out on another thread while the caller goes on."""

from __future__ import annotations

import hashlib
import threading
from collections import deque

from brokers.driver import Buffer
from replication import transfer

# Smaller pieces are hashed at once: another thread costs more than it spares.
SMALL = 64 * 1024
# How many bytes the other thread may lie behind.
BEHIND = 1024 * 1024
# Seconds that the caller waits for it before it helps, because the pool may have no thread free.
PATIENCE = 0.1


class Digest:
    """Pieces are hashed in the order of `update`. For one caller."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._pieces: deque[bytes] = deque()
        self._behind = 0
        self._running = False
        self._changed = threading.Condition()
        self._hashing = threading.Lock()

    def update(self, data: Buffer) -> None:
        """Take the next bytes. What is not `bytes` may change after this, so it is hashed before."""
        if not isinstance(data, bytes) or len(data) < SMALL:
            self._drain()
            self._sha256.update(data)
            return
        with self._changed:
            self._pieces.append(data)
            self._behind += len(data)
            start, self._running = not self._running, True
        if start:
            transfer.pool().submit(self._drain)
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._behind <= BEHIND, PATIENCE)
        if not in_time:
            self._drain()

    def hexdigest(self) -> str:
        """The hash of everything so far."""
        self._drain()
        return self._sha256.hexdigest()

    def _drain(self) -> None:
        """Hash all that waits; returns when nobody else is at it either."""
        with self._hashing:
            while True:
                with self._changed:
                    if not self._pieces:
                        self._running = False
                        return
                    piece = self._pieces.popleft()
                self._sha256.update(piece)
                with self._changed:
                    self._behind -= len(piece)
                    self._changed.notify()
