"""Broker "memory": objects in this process's memory. For tests and for trying things out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django import forms

from brokers import clock
from brokers.driver import CloudBroker, StorageInfo, StoredFile
from brokers.errors import NotFound, OutOfSpace, RangeError


class MemoryOptions(forms.Form):
    space = forms.CharField(max_length=100, help_text="Brokers with the same space share their objects.")
    capacity = forms.IntegerField(
        required=False, min_value=0, help_text="Bytes that fit in; empty: no limit."
    )


@dataclass
class Space:
    """Objects by name: (bytes, stored at)."""

    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_spaces: dict[str, Space] = {}
_spaces_lock = threading.Lock()


def space(name: str) -> Space:
    """The space of that name; tests look into it."""
    with _spaces_lock:
        return _spaces.setdefault(name, Space())


def clear(name: str | None = None) -> None:
    """Empty one space, or forget all of them."""
    with _spaces_lock:
        if name is None:
            _spaces.clear()
        elif name in _spaces:
            _spaces[name].objects.clear()


class MemoryBroker(CloudBroker):
    slug = "memory"
    label = "Memory (lost at restart)"
    OptionsForm = MemoryOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._name = str(self.options["space"])
        self._capacity: int | None = self.options.get("capacity")

    @property
    def _space(self) -> Space:
        return space(self._name)

    def upload_file(self, file_data: bytes, filename: str) -> str:
        place = self._space
        data = bytes(file_data)
        with place.lock:
            used = sum(len(d) for name, (d, _at) in place.objects.items() if name != filename)
            if self._capacity is not None and used + len(data) > self._capacity:
                raise OutOfSpace(f"{self._capacity} bytes are all this space has")
            place.objects[filename] = (data, clock.now())
        return filename

    def _read(self, storage_path: str) -> tuple[bytes, datetime]:
        place = self._space
        with place.lock:
            try:
                return place.objects[storage_path]
            except KeyError:
                raise NotFound(storage_path) from None

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        data, _at = self._read(storage_path)
        if start and start >= len(data):
            raise RangeError(f"{storage_path} has {len(data)} bytes")
        return data[start:] if length is None else data[start : start + length]

    def delete_file(self, storage_path: str) -> None:
        place = self._space
        with place.lock:
            place.objects.pop(storage_path, None)

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        place = self._space
        with place.lock:
            found = [(n, len(d), at) for n, (d, at) in place.objects.items() if n.startswith(path)]
        for name, size, at in found:
            yield StoredFile(name, size, at)

    def stat_file(self, storage_path: str) -> StoredFile:
        data, at = self._read(storage_path)
        return StoredFile(storage_path, len(data), at, "sha256:" + hashlib.sha256(data).hexdigest())

    def get_storage_info(self) -> StorageInfo:
        place = self._space
        with place.lock:
            used = sum(len(d) for d, _at in place.objects.values())
        if self._capacity is None:
            return StorageInfo(total=None, used=used, available=None)
        return StorageInfo(total=self._capacity, used=used, available=max(0, self._capacity - used))

    def probe(self) -> None:
        """A space is always there."""
