"""Between the layers and the driver: makes a full driver of a class that has only the five methods, and checks
that what a driver returns is what the contract promises."""

from __future__ import annotations

import errno
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from brokers import entropy
from brokers.driver import MAX_OBJECT_SIZE, CloudBroker, StorageInfo, StoredFile
from brokers.errors import (
    BrokerError,
    Corrupt,
    InvalidKey,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RangeError,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from brokers.layers.call import Call
from brokers.names import PROBE_NAME

Batch = list[StoredFile]
LIST_BATCH = 1000
LONGEST_KEY = 500
_BUGS = (TypeError, AttributeError, NameError, NotImplementedError, ImportError)


def complete(driver: Any) -> CloudBroker:
    """The driver itself, or a full driver around a class that has only the five methods."""
    return driver if isinstance(driver, CloudBroker) else FiveMethods(driver)


class FiveMethods(CloudBroker):
    """Fills in what a class with only `upload_file, download_file, delete_file, list_files` and
    `get_storage_info` does not have: ranges by cutting, `stat` by reading, `probe` by writing."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self._ranges = False
        try:
            parameters = inspect.signature(inner.download_file).parameters
        except (TypeError, ValueError, AttributeError):
            return
        self._ranges = {"start", "length"} <= set(parameters)

    def upload_file(self, file_data: bytes, filename: str) -> str:
        locator = self.inner.upload_file(file_data, filename)
        # Many such classes return nothing: the name is then the only locator there can be.
        return filename if locator is None else locator

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        if self._ranges:
            return self.inner.download_file(storage_path, start=start, length=length)
        data = self.inner.download_file(storage_path)
        if not isinstance(data, bytes | bytearray | memoryview):
            return data
        if start and start >= len(data):
            raise RangeError("the range begins after the end of the object")
        return bytes(data[start:] if length is None else data[start : start + length])

    def delete_file(self, storage_path: str) -> None:
        try:
            self.inner.delete_file(storage_path)
        except (NotFound, FileNotFoundError):
            return

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        # Such a class may take `path` for a folder: everything is asked for and cut here.
        for entry in self.inner.list_files():
            found = as_stored_file(entry)
            if not path or found.path.startswith(path) or f"/{path}" in found.path:
                yield found

    def get_storage_info(self) -> StorageInfo:
        return self.inner.get_storage_info()

    def stat_file(self, storage_path: str) -> StoredFile:
        if hasattr(self.inner, "stat_file"):
            return as_stored_file(self.inner.stat_file(storage_path))
        data = self.download_file(storage_path)
        if not isinstance(data, bytes):
            raise Corrupt(f"download_file returned {type(data).__name__}, not bytes")
        return StoredFile(storage_path, len(data), None, "sha256:" + hashlib.sha256(data).hexdigest())

    def probe(self) -> None:
        if hasattr(self.inner, "probe"):
            self.inner.probe()
            return
        payload = entropy.token_bytes(16)
        locator = self.upload_file(payload, PROBE_NAME)
        if bytes(self.download_file(locator)) != payload:
            raise Corrupt("a probe read back differently")
        self.delete_file(locator)

    def prepare(self) -> None:
        if hasattr(self.inner, "prepare"):
            self.inner.prepare()

    def close(self) -> None:
        if hasattr(self.inner, "close"):
            self.inner.close()


def as_stored_file(entry: Any) -> StoredFile:
    """A listing's entry, whatever form a driver gives it: StoredFile, a dict, a (path, size) pair or a name.
    `size` is -1 where the entry does not say. Raises Corrupt for anything else."""
    if isinstance(entry, StoredFile):
        return entry
    if isinstance(entry, str):
        return StoredFile(entry, -1)
    if (
        isinstance(entry, tuple)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], int)
    ):
        return StoredFile(entry[0], entry[1])
    if isinstance(entry, Mapping):
        path = next((entry[k] for k in ("path", "storage_path", "name", "filename") if k in entry), None)
        if isinstance(path, str):
            size, modified = entry.get("size"), entry.get("modified")
            if isinstance(modified, datetime) and modified.tzinfo is None:
                modified = modified.replace(tzinfo=UTC)
            return StoredFile(
                path,
                size if isinstance(size, int) else -1,
                modified if isinstance(modified, datetime) else None,
                entry.get("checksum"),
            )
    raise Corrupt(f"list_files gave an entry of type {type(entry).__name__}")


def as_broker_error(error: Exception) -> BrokerError:
    """Name what a driver let through. The original message may hold a secret and is left out."""
    if isinstance(error, BrokerError):
        return error
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return NotFound("the driver says that the file is not there")
    if isinstance(error, PermissionError):
        return Unauthorized("the driver was refused permission")
    if isinstance(error, TimeoutError):
        return Timeout("the driver's own time ran out")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace("no space left")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return ReadOnly("the place is read-only")
    if isinstance(error, _BUGS):
        return Misconfigured(f"the driver is broken ({name})")
    return Unavailable(f"the driver failed ({name})")


class Adapt:
    """The innermost layer: calls the driver's method and checks its answer."""

    def __init__(self, driver: CloudBroker) -> None:
        self.driver = driver

    def __call__(self, call: Call) -> Any:
        try:
            return getattr(self, call.operation)(*call.arguments)
        except BrokerError:
            raise
        except Exception as error:  # callers see BrokerError only
            raise as_broker_error(error) from error

    def put(self, key: str, data: bytes) -> str:
        if not key or len(key) > LONGEST_KEY:
            raise InvalidKey("a key has 1 to 500 characters")
        if len(data) > MAX_OBJECT_SIZE:
            raise TooLarge(f"an object has at most {MAX_OBJECT_SIZE} bytes")
        locator = self.driver.upload_file(data, key)
        if not isinstance(locator, str) or not locator:
            raise Corrupt(f"upload_file returned {type(locator).__name__}, not a locator")
        if len(locator) > LONGEST_KEY:
            raise Corrupt(f"upload_file returned a locator of {len(locator)} characters")
        return locator

    def get(self, locator: str, start: int, length: int | None) -> bytes:
        if start < 0 or (length is not None and length < 0):
            raise RangeError("a range has no negative numbers")
        if length == 0:
            size = self.driver.stat_file(locator).size
            if start and start >= size:
                raise RangeError("the range begins after the end of the object")
            return b""
        data = self.driver.download_file(locator, start, length)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise Corrupt(f"download_file returned {type(data).__name__}, not bytes")
        most = MAX_OBJECT_SIZE - start if length is None else length
        if len(data) > most:
            raise Corrupt(f"{len(data)} bytes came where at most {most} were asked for")
        return data if isinstance(data, bytes) else bytes(data)

    def peek(self, locator: str) -> bytes:
        return self.get(locator, 0, None)

    def stat(self, locator: str) -> StoredFile:
        found = as_stored_file(self.driver.stat_file(locator))
        if found.size < 0:
            raise Corrupt("stat_file tells no size")
        return found

    def delete(self, locator: str) -> None:
        self.driver.delete_file(locator)

    def list(self, prefix: str) -> tuple[Batch, Iterator[Any]]:
        """The first part of a listing, and what `list_more` needs to go on."""
        entries = self.driver.list_files(prefix)
        if not isinstance(entries, Iterable):
            raise Corrupt(f"list_files returned {type(entries).__name__}, not something to iterate over")
        rest = iter(entries)
        return self.list_more(rest), rest

    def list_more(self, rest: Iterator[Any]) -> Batch:
        return [as_stored_file(entry) for entry in islice(rest, LIST_BATCH)]

    def info(self) -> StorageInfo:
        found = self.driver.get_storage_info()
        if not isinstance(found, Mapping):
            raise Corrupt(f"get_storage_info returned {type(found).__name__}, not a mapping")
        return StorageInfo(
            total=_bytes(found.get("total")),
            used=_bytes(found.get("used")),
            available=_bytes(found.get("available", found.get("free"))),
        )

    def probe(self) -> None:
        self.driver.probe()

    def prepare(self) -> None:
        self.driver.prepare()


def _bytes(value: Any) -> int | None:
    """A number of bytes, or None for what is none (a guess is worse than no answer)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return None
    return int(value)
