"""The contract between CloudStore and a kind of storage provider.

A driver is a class that subclasses `CloudBroker` and implements five methods; the other three have slow
defaults. It holds no database object and no policy: retries, deadlines, throttling and checks live in
`brokers/layers/`, and `brokers/open.py` alone constructs drivers. `brokers/testing/conformance.py` proves one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypedDict

from django import forms

from brokers.errors import NotFound

# A stored object stays below 8 MiB, so that every provider takes it in one request.
MAX_OBJECT_SIZE = 8 * 1024 * 1024 - 1

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object as the provider lists it: its locator, size in bytes, modification time (UTC) where known,
    and a checksum `"sha256:<hex>"` or `"md5:<hex>"` where the provider tells one that it verified itself.

    `size` is -1 only in listings of five-method classes whose entries are bare names."""

    path: str
    size: int
    modified: datetime | None = None
    checksum: str | None = None


class StorageInfo(TypedDict):
    """Bytes; None where the provider won't say. Never a guess."""

    total: int | None
    used: int | None
    available: int | None


class NoOptions(forms.Form):
    """The options form of a driver that needs none."""


class CloudBroker:
    """Base class of all drivers. Methods raise `brokers.errors.BrokerError` subclasses only."""

    slug: ClassVar[str] = ""
    label: ClassVar[str] = ""
    # The options as a Django form: the admin's page and the API's validation.
    OptionsForm: ClassVar[type[forms.Form]] = NoOptions
    # Names of the options that are sealed at rest and never shown again.
    secret_options: ClassVar[frozenset[str]] = frozenset()
    # How many calls may run at the same time.
    concurrency: ClassVar[int] = 8
    # Whether `upload_file` takes any bytes-like object, and keeps none of it when it has returned. Else it gets bytes.
    takes_views: ClassVar[bool] = False
    # Promises of the contract that this kind of place cannot keep: name of the check in
    # `brokers/testing/conformance.py` -> why, for operators. docs/brokers.md shows them.
    deviations: ClassVar[Mapping[str, str]] = {}
    # Entries that a listing asks for at a time; None where listings have no pages. The conformance suite lowers it.
    list_page: int | None = None

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options: dict[str, Any] = dict(options or {})

    # -- the five methods a new driver must have ------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        """Store the whole object durably and return its locator, which the other methods take.

        Returns only when the object is complete and readable; never leaves a partial object under the name.
        The same name with the same bytes again is success and returns an equivalent locator."""
        raise NotImplementedError

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `start` (fewer only where the object ends), or all of the rest for None.

        Raises NotFound when the object is not there, RangeError when `start` is at or after its end
        (`start=0` of an empty object is b"")."""
        raise NotImplementedError

    def delete_file(self, storage_path: str) -> None:
        """Remove the object and free its space (no provider trash). Deleting what is not there is success."""
        raise NotImplementedError

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        """Every object whose name starts with `path`, complete, or raises. Order is the driver's own."""
        raise NotImplementedError

    def get_storage_info(self) -> StorageInfo:
        """Capacity in bytes; None where the provider won't say."""
        raise NotImplementedError

    # -- with slow defaults ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the place ready (create the folder) when the operator adds the broker. Idempotent."""

    def probe(self) -> None:
        """Raise unless the place takes and gives bytes with these credentials.

        ReadOnly and OutOfSpace say that it only gives them. May write and remove an object `cs-probe`."""
        self.get_storage_info()

    def stat_file(self, storage_path: str) -> StoredFile:
        """Size and, where the provider tells it, checksum of one object, or NotFound."""
        for found in self.list_files(storage_path):
            if found.path == storage_path:
                return found
        raise NotFound(storage_path)

    def tidy(self, folder: str) -> None:
        """Remove the empty folders in `folder`, and itself when it is empty. For places where an object leaves
        the folders of its name behind; only the conformance suite asks for it. Idempotent."""

    def close(self) -> None:
        """Release connections. A call that was already on its way may still come."""

    def __repr__(self) -> str:  # never the options: they hold secrets
        return f"<{type(self).__name__}>"
