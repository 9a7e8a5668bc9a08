"""A class with only the five methods that the README promises, as somebody outside would write it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar


class CustomBroker:
    deviations: ClassVar = {
        "interrupted_put": "writes in place",
        "vanished": "a folder that is not there looks empty",
    }

    def __init__(self, folder, api_token="", deep: bool = False):
        self.folder = Path(folder)
        self.api_token = api_token

    def upload_file(self, file_data, filename):
        path = self.folder / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_data)
        return filename

    def download_file(self, storage_path):
        return (self.folder / storage_path).read_bytes()

    def delete_file(self, storage_path):
        (self.folder / storage_path).unlink()

    def list_files(self, path=""):
        return [
            {"path": str(p.relative_to(self.folder)), "size": p.stat().st_size}
            for p in (self.folder / path).rglob("*")
            if p.is_file()
        ]

    def get_storage_info(self):
        usage = shutil.disk_usage(self.folder)
        return {"total": usage.total, "used": usage.used, "available": usage.free}


class NamesOnly(CustomBroker):
    """Returns no locator, and lists bare names."""

    def upload_file(self, file_data, filename):
        super().upload_file(file_data, filename)

    def list_files(self, path=""):
        return [entry["path"] for entry in super().list_files(path)]


class Incomplete:
    def upload_file(self, file_data, filename): ...
