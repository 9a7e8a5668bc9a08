"""Configuration from the environment and `.env`, checked before anything starts.

Every value is read through `Config`, which collects what is wrong and names all of it at once, so that an
operator mends a configuration in one go. The list of variables with their meaning is `.env.example`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import logging
import os
import re
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
MASTER_KEY_BYTES = 32
# What a unix socket's path may be: the system's limit is 107 bytes (103 on macOS), and kombu takes the path
# out of a URL without decoding it.
PLAIN_SOCKET_PATH = re.compile(r"/[A-Za-z0-9/._-]{1,98}")
ENV_LINE = re.compile(r"\s*(export\s+)?[A-Za-z_][A-Za-z0-9_]*\s*=")


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


def queue_socket(data: Path) -> Path:
    """Where the embedded queue of this data folder listens: in the folder, or, when its path is too long or
    too strange for a socket, in a private folder under /tmp that only the path decides."""
    socket = data / "queue" / "valkey.sock"
    if PLAIN_SOCKET_PATH.fullmatch(str(socket)):
        return socket
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(f"/tmp/cloudstore-{os.getuid()}-{digest}/valkey.sock")  # noqa: S108 - supervise checks it


def keys_in_file(path: Path) -> dict[int, bytes]:
    """The master keys that a secrets' file holds now; none when there is no such file or no such line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in lines:
        name, _equals, value = line.strip().removeprefix("export ").partition("=")
        if name.strip() == "CLOUDSTORE_MASTER_KEYS":
            try:
                return parse_master_keys(value.strip().strip("\"'"))
            except ValueError:
                return {}
    return {}


class WrongConfiguration(ImproperlyConfigured):
    """What an operator has to mend before anything can start; its text is for him, without a traceback."""


class _EnvFile(environ.Env):
    """Parses one file of NAME=VALUE lines into its own dictionary."""

    ENVIRON: dict[str, str] = {}


class Config:
    """Reads typed values from the environment; `finish()` raises one error that names every wrong one.

    A file's value counts where the environment gives none, or an empty one.
    """

    def __init__(self, *env_files: Path) -> None:
        self.env = environ.Env()
        self.problems: list[str] = []
        for path in env_files:
            self.read_file(path)

    def read_file(self, path: Path) -> None:
        if not path.is_file():
            return
        _EnvFile.ENVIRON = {}
        log = logging.getLogger("environ.environ")
        silent, log.disabled = log.disabled, True  # it would quote the line that it does not understand
        try:
            text = path.read_text(encoding="utf-8")
            _EnvFile.read_env(path, encoding="utf-8")
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self.problems.append(f"{path} is not UTF-8 text")
        else:
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip() and not line.lstrip().startswith("#") and not ENV_LINE.match(line):
                    self.problems.append(f"{path.name} line {number} is not NAME=VALUE")
        finally:
            log.disabled = silent
        for name, value in _EnvFile.ENVIRON.items():
            if not os.environ.get(name):
                os.environ[name] = value

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

    def networks(self, name: str) -> list[str]:
        """IP networks, or single addresses, with commas between them."""

        def parse(raw: str) -> list[str]:
            return [str(ipaddress.ip_network(part.strip())) for part in raw.split(",") if part.strip()]

        return list(self._read(name, parse, []))

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

    def seconds(self, name: str, default: int, *, low: int, high: int) -> timedelta:
        return timedelta(seconds=self.integer(name, default, low=low, high=high))

    def path(self, name: str, default: Path) -> Path:
        """A path; a relative one counts from the project's folder, wherever the command was started."""

        def parse(raw: str) -> Path:
            try:
                return (BASE_DIR / Path(raw).expanduser()).resolve()
            except (RuntimeError, OSError) as error:
                raise ValueError(str(error)) from None

        return Path(self._read(name, parse, default))

    def choice(self, name: str, default: str, words: set[str]) -> str:
        def parse(raw: str) -> str:
            if raw.upper() not in words:
                raise ValueError(f"{raw!r} is not one of {', '.join(sorted(words))}")
            return raw.upper()

        return str(self._read(name, parse, default))

    def database(self, name: str, default: Path) -> dict[str, Any]:
        """Django's settings of the database; without a value an SQLite file at `default`."""

        def parse(raw: str) -> dict[str, Any]:
            hint = "use sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME"
            try:
                with warnings.catch_warnings(action="ignore"):  # they quote the URL
                    found = dict(self.env.db_url_config(raw))
            except Exception:  # noqa: BLE001 - whatever it is, it may quote the URL with its password
                raise ValueError(hint) from None
            engine, name = found.get("ENGINE"), found.get("NAME")
            if engine == "django.db.backends.sqlite3" and name and name != ":memory:":
                found["NAME"] = str(BASE_DIR / Path(name).expanduser())
            elif engine != "django.db.backends.postgresql" or not name:
                raise ValueError(hint)
            return found

        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(default)}
        return dict(self._read(name, parse, sqlite))

    def mail(self, name: str, default: str) -> dict[str, Any]:
        """Django's settings of the mail server."""

        def parse(raw: str) -> dict[str, Any]:
            hint = "use smtp://USER:PASSWORD@HOST:PORT, or smtp+tls:// or smtp+ssl://"
            try:
                found = dict(self.env.email_url_config(raw))
            except Exception:  # noqa: BLE001 - whatever it is, it may quote the URL with its password
                raise ValueError(hint) from None
            if not raw.startswith(("smtp://", "smtp+tls://", "smtp+ssl://")) or not found.get("EMAIL_HOST"):
                raise ValueError(hint)
            return found

        return dict(self._read(name, parse, parse(default)))

    def url(self, name: str, default: str, schemes: set[str], *, secret: bool = False) -> str:
        """An address without its last slash. A `secret` one is kept as it is."""

        def parse(raw: str) -> str:
            parts = urlsplit(raw)
            if parts.scheme not in schemes:
                raise ValueError(f"use one of {', '.join(sorted(schemes))} as the scheme")
            if not parts.hostname and not parts.path.strip("/"):
                raise ValueError("names no host")
            return raw if secret else raw.rstrip("/")

        return str(self._read(name, parse, default))

    def master_keys(self, name: str) -> dict[int, bytes]:
        return dict(self._read(name, parse_master_keys, {}))

    def finish(self) -> None:
        if self.problems:
            raise WrongConfiguration("wrong configuration:\n  " + "\n  ".join(self.problems))


def load() -> tuple[Config, Path, Path]:
    """-> (configuration, data folder, secrets' file), with `.env` and the secrets' file read.

    ENV_FILE, in the environment only, names another file than the project's `.env`.
    """
    config = Config(BASE_DIR / (os.environ.get("ENV_FILE") or ".env"))
    data = config.path("CLOUDSTORE_DATA", BASE_DIR / "var")
    secrets = config.path("CLOUDSTORE_SECRETS", data / "secrets.env")
    config.read_file(secrets)
    return config, data, secrets
