"""The memory of objects under way, used again: fresh pages for 8 MiB cost more than encrypting into them."""

from __future__ import annotations

import threading

from replication.seal import SEGMENT_SIZE, sealed_size

WHOLE = sealed_size(SEGMENT_SIZE)
# Below this much, memory of just the right size is quick enough.
SMALL = 256 * 1024
# Objects' worth of memory that is kept while nobody needs it.
KEPT = 4

_lock = threading.Lock()
_idle: list[bytearray] = []


def take(size: int) -> bytearray:
    """Memory for an object of `size` bytes; what it holds is anything. Give it back when the object is no longer
    needed, or just let go of it."""
    if size <= SMALL:
        return bytearray(size)
    with _lock:
        for index in range(len(_idle) - 1, -1, -1):
            if _free(_idle[index]):
                return _idle.pop(index)
    return bytearray(WHOLE)


def give_back(memory: bytearray) -> None:
    """The object is no longer needed. Calls of a broker that nobody waits for any more may still read it: it is used
    again only when the last view of it is gone."""
    if len(memory) == WHOLE:
        with _lock:
            _idle.append(memory)
            if len(_idle) > KEPT:
                del _idle[0]


def _free(memory: bytearray) -> bool:
    """Whether no view of it is left: Python refuses to resize a bytearray that anybody can see."""
    try:
        memory.append(memory.pop())
    except BufferError:
        return False
    return True
