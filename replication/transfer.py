"""The only caller of brokers: puts, fetches and removes objects, each verified.

Nothing here touches the database, so everything may run on a pool thread; what a failure means for the rows is
the caller's to decide, on its own thread.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from brokers import marker
from brokers.driver import Buffer, StoredFile
from brokers.errors import BrokerError, Corrupt, NotFound, Unavailable
from brokers.models import Broker
from brokers.open import forget, open_broker

POOL_THREADS = 16
# Pools that are kept; the one that was used longest ago goes first, and its threads end with their work.
POOLS = 64

_pools: OrderedDict[int | None, ThreadPoolExecutor] = OrderedDict()
_pools_pid = 0
_pools_lock = threading.Lock()


def pool(broker: Broker | None = None) -> ThreadPoolExecutor:
    """This process's threads for calls of one broker, so that one that hangs takes none of the others'; without a
    broker, those for work that waits for nobody. Started when needed, made anew after a fork."""
    global _pools, _pools_pid
    key = None if broker is None else broker.pk
    with _pools_lock:
        if _pools_pid != os.getpid():
            _pools, _pools_pid = OrderedDict(), os.getpid()
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="transfer")
            if len(_pools) > POOLS:
                _pools.popitem(last=False)
        _pools.move_to_end(key)
        return _pools[key]


def _check_told(found: StoredFile, data_size: int, data: Buffer | None, checksum: str) -> None:
    """Compare what the provider tells of an object with what it should hold. Raises Corrupt."""
    if found.size != data_size:
        raise Corrupt(f"{found.size} bytes stored where {data_size} were sent")
    kind, _colon, value = (found.checksum or "").partition(":")
    if kind == "sha256" and value != checksum:
        raise Corrupt("the provider tells another SHA-256")
    if kind == "md5" and data is not None and value != hashlib.md5(data, usedforsecurity=False).hexdigest():
        raise Corrupt("the provider tells another MD5")


def put(broker: Broker, key: str, data: Buffer, checksum: str) -> str:
    """Store an object under a fresh key and verify that it stands: -> its locator.

    Verified by asking the provider for what it now holds: size, and its own checksum where it tells one; a
    write that was accepted and lost, or cut short, does not pass. Raises BrokerError; the object may then exist
    or not. The bytes behind a memoryview must not change as long as anybody holds a view of them."""
    opened = open_broker(broker)
    locator = opened.put(key, data, lent=isinstance(data, memoryview))
    try:
        found = opened.stat(locator)
    except NotFound:
        raise Corrupt("accepted, but not there") from None
    _check_told(found, len(data), data, checksum)
    return locator


def put_small(broker: Broker, key: str, data: bytes) -> str:
    """`put` for a small object."""
    return put(broker, key, data, hashlib.sha256(data).hexdigest())


def connection(broker: Broker) -> object:
    """What stands for this process's connection to a broker: another one after the broker was opened anew."""
    return open_broker(broker)


def close(broker: Broker) -> None:
    """Close this process's connection to a broker. Idempotent."""
    forget(broker.pk)


def marker_of(broker: Broker) -> UUID | None:
    """The id in the marker that the place carries; None without a readable one. Raises BrokerError."""
    found = marker.find(open_broker(broker))
    return marker.parse(found[1]) if found else None


def fetch(broker: Broker, locator: str, start: int, length: int) -> bytes:
    """Exactly `length` bytes of an object from `start`; their content is not verified. Raises Corrupt for any
    other number of bytes, or what the broker raises."""
    data = open_broker(broker).get(locator, start, length)
    if len(data) != length:
        raise Corrupt(f"{len(data)} bytes came where {length} were asked for")
    return data


def fetch_all(broker: Broker, locator: str) -> bytes:
    """All bytes of an object, whatever they are; not verified. Raises BrokerError."""
    return open_broker(broker).get(locator)


def fetch_whole(broker: Broker, locator: str, size: int, checksum: str) -> bytes:
    """The whole object, proven by its SHA-256. A difference is read once more before it is believed, because
    a connection can lie as well as a disk. Raises Corrupt, or what the broker raises."""
    for _attempt in range(2):
        data = fetch_all(broker, locator)
        if len(data) == size and hashlib.sha256(data).hexdigest() == checksum:
            return data
    raise Corrupt("the stored bytes are not the ones that were sealed")


def has(broker: Broker, locator: str) -> bool:
    """Whether a broker gives the first byte of an object (objects are never empty). Raises BrokerError when it does
    not answer, or refuses."""
    try:
        return bool(open_broker(broker).get(locator, 0, 1))
    except NotFound:
        return False


def stat(broker: Broker, locator: str) -> StoredFile:
    """What the provider tells of an object. Raises NotFound, BrokerError."""
    return open_broker(broker).stat(locator)


def remove(broker: Broker, locator: str) -> None:
    """Delete an object and see that it is gone. Idempotent. Raises BrokerError, Unavailable when it is still
    there after the delete was accepted."""
    opened = open_broker(broker)
    opened.delete(locator)
    try:
        opened.stat(locator)
    except NotFound:
        return
    raise Unavailable("the object is still there after its delete")


def listing(broker: Broker, prefix: str) -> Iterator[StoredFile]:
    """Every object of a broker under a prefix, complete, or raises BrokerError."""
    return iter(open_broker(broker).list(prefix))


def latency(broker: Broker) -> float:
    """Seconds that a read of this broker has lately taken in this process; 0 when nothing is known."""
    try:
        return open_broker(broker).latency("get") or 0.0
    except BrokerError:
        return 0.0
