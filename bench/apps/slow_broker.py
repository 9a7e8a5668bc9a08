"""A local broker that can be made slow while the product runs, and that counts its reads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from brokers.driver import StorageInfo, StoredFile
from brokers.drivers.local import LocalBroker


class SlowLocalBroker(LocalBroker):
    """A folder as a broker. The file `<root>.slow`, beside the root, holds the seconds that each call waits
    first; every read adds one byte to `<root>.reads`. Both are looked at and written by all processes."""

    slug = "slow"
    label = "A slow folder"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._beside = Path(str(self.options["root"]))

    def _wait(self) -> None:
        with suppress(FileNotFoundError):
            time.sleep(float(self._beside.with_suffix(".slow").read_text()))

    def upload_file(self, file_data: bytes, filename: str) -> str:
        self._wait()
        return super().upload_file(file_data, filename)

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        reads = os.open(self._beside.with_suffix(".reads"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(reads, b".")
        finally:
            os.close(reads)
        self._wait()
        return super().download_file(storage_path, start, length)

    def delete_file(self, storage_path: str) -> None:
        self._wait()
        super().delete_file(storage_path)

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        self._wait()
        return super().list_files(path)

    def get_storage_info(self) -> StorageInfo:
        self._wait()
        return super().get_storage_info()

    def stat_file(self, storage_path: str) -> StoredFile:
        self._wait()
        return super().stat_file(storage_path)
