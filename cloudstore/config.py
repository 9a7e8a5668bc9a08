"""Configuration from the environment and `.env`, checked before anything starts.

Every value is read through `Config`, which collects what is wrong and names all of it at once, so that an
operator mends a configuration in one go. The list of variables with their meaning is `.env.example`.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

MASTER_KEY_BYTES = 32


def parse_master_keys(text: str) -> dict[int, bytes]:
    """`"1:BASE64,2:BASE64"` -> {version: 32 key bytes}. Raises ValueError, never quoting key material."""
    keys: dict[int, bytes] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        version, colon, encoded = part.partition(":")
        if not colon or not version.isdecimal() or int(version) < 1:
            raise ValueError("each master key is written VERSION:BASE64, with a version from 1")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"master key {version} is not base64") from None
        if len(key) != MASTER_KEY_BYTES:
            raise ValueError(f"master key {version} has {len(key)} bytes, not {MASTER_KEY_BYTES}")
        if int(version) in keys:
            raise ValueError(f"master key {version} is given twice")
        keys[int(version)] = key
    if not keys:
        raise ValueError("at least one master key is needed")
    return keys


class Config:
    """Reads typed values from the environment; `finish()` raises one error that names every wrong one."""

    def __init__(self, *env_files: Path) -> None:
        self.env = environ.Env()
        self.problems: list[str] = []
        for path in env_files:
            if path.is_file():
                environ.Env.read_env(path)

    def _read(self, name: str, parse: Callable[[str], Any], default: Any) -> Any:
        raw = os.environ.get(name, "")
        if raw == "":
            return default
        try:
            return parse(raw)
        except (ValueError, ImproperlyConfigured) as error:
            self.problems.append(f"{name}: {error}")
            return default

    def text(self, name: str, default: str = "") -> str:
        return str(self._read(name, str, default))

    def items(self, name: str, default: list[str]) -> list[str]:
        return list(self._read(name, lambda raw: [p.strip() for p in raw.split(",") if p.strip()], default))

    def flag(self, name: str, default: bool) -> bool:
        def parse(raw: str) -> bool:
            word = raw.strip().lower()
            if word in {"1", "true", "yes", "on"}:
                return True
            if word in {"0", "false", "no", "off"}:
                return False
            raise ValueError(f"{raw!r} is neither true nor false")

        return bool(self._read(name, parse, default))

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        def parse(raw: str) -> int:
            try:
                value = int(raw)
            except ValueError:
                raise ValueError(f"{raw!r} is not a whole number") from None
            if not low <= value <= high:
                raise ValueError(f"{value} is not between {low} and {high}")
            return value

        return int(self._read(name, parse, default))

    def path(self, name: str, default: Path) -> Path:
        return Path(self._read(name, lambda raw: Path(raw).expanduser().resolve(), default))

    def database(self, name: str, default: str) -> dict[str, Any]:
        def parse(raw: str) -> dict[str, Any]:
            found = dict(self.env.db_url_config(raw))
            engine = found.get("ENGINE", "")
            if engine not in {"django.db.backends.sqlite3", "django.db.backends.postgresql"}:
                raise ValueError("use sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")
            return found

        return dict(self._read(name, parse, None) or parse(default))

    def url(self, name: str, default: str, schemes: set[str]) -> str:
        def parse(raw: str) -> str:
            if urlsplit(raw).scheme not in schemes:
                raise ValueError(f"use one of {', '.join(sorted(schemes))} as the scheme")
            return raw.rstrip("/")

        return str(self._read(name, parse, default))

    def master_keys(self, name: str) -> dict[int, bytes]:
        return dict(self._read(name, parse_master_keys, {}))

    def finish(self) -> None:
        if self.problems:
            raise ImproperlyConfigured("wrong configuration:\n  " + "\n  ".join(self.problems))
