"""Makes the data folder and its secrets once: `python -m cloudstore.secretfile`. With `--add-master-key` it adds a
master key to the secrets' file (docs/operations.md, "A new master key").

Works without Django's settings, because those need the secrets. Never changes an existing file, and makes no
new master key beside an existing database: it could not open what the old one sealed.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import sys
from pathlib import Path

from cloudstore.config import MASTER_KEY_BYTES, WrongConfiguration, keys_in_file, load, parse_master_keys

NAMES = ("SECRET_KEY", "CLOUDSTORE_MASTER_KEYS")
KEYS_LINE = re.compile(r"""^(\s*(?:export\s+)?CLOUDSTORE_MASTER_KEYS\s*=\s*["']?)([^"'\s]+)""", re.MULTILINE)
HEAD = """\
# CloudStore's secrets, made at the first start. Keep a copy elsewhere: without CLOUDSTORE_MASTER_KEYS
# nobody can read what CloudStore has stored. Never put this file into version control.
"""


def ensure(data: Path, target: Path) -> str | None:
    """Makes `data` (0700) and, unless the environment or `target` holds the secrets, `target` (0600).

    Returns what it did, or None when nothing was to do. Safe to run twice at the same time: one of the two
    writes the file, whole or not at all. Raises WrongConfiguration where an old key is missing.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if target.exists():
        if target.stat().st_mode & 0o077:
            return f"Warning: others may read {target}; run: chmod 600 {target}"
        return None
    if all(os.environ.get(name) for name in NAMES):
        return None
    if (data / "cloudstore.sqlite3").exists() or (data / "brokers").exists():
        raise WrongConfiguration(
            f"{data} holds data of CloudStore, but {target} is missing. A new master key could not open\n"
            f"what the old one sealed, so none is made. Put the file back from its copy, or, to start anew\n"
            f"with nothing, move {data} away."
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()
    content = f"{HEAD}SECRET_KEY={secrets.token_urlsafe(48)}\nCLOUDSTORE_MASTER_KEYS=1:{key}\n"
    return f"Made {target}: keep a copy of it elsewhere" if _write_once(target, content.encode()) else None


def _write_once(target: Path, content: bytes) -> bool:
    """Writes the file durably under its name, whole or not at all; False when somebody else was first."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, target)
        except FileExistsError:
            return False
    finally:
        part.unlink()
    _sync(target.parent)
    return True


def add_master_key(target: Path) -> int:
    """Adds a new master key to the secrets' file, above the others: -> its version. The file is replaced whole and
    durably, 0600; the old keys stay in it. Raises WrongConfiguration when the keys come from elsewhere."""
    text = target.read_text(encoding="utf-8") if target.is_file() else ""
    found = KEYS_LINE.search(text)
    if found is None:
        raise WrongConfiguration(
            f"{target} does not hold CLOUDSTORE_MASTER_KEYS: they come from the environment or .env. Add a key there: "
            "a comma, the next version, a colon, and 32 random bytes in base64 (.env.example has the command)"
        )
    try:
        keys = parse_master_keys(found[2])
    except ValueError as error:
        raise WrongConfiguration(f"{target}: CLOUDSTORE_MASTER_KEYS: {error}") from None
    version = max(keys) + 1
    key = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()
    changed = f"{text[: found.end(2)]},{version}:{key}{text[found.end(2) :]}"
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(changed.encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(target.parent)
    return version


def _sync(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def say(message: object) -> None:
    sys.stderr.write(f"{message}\n")


def main(arguments: list[str]) -> int:
    try:
        config, data, target = load()
        config.finish()
        if arguments == ["--add-master-key"]:
            if keys_in_file(target) and config.master_keys("CLOUDSTORE_MASTER_KEYS") != keys_in_file(target):
                raise WrongConfiguration(
                    f"the environment or .env gives other master keys than {target}; add one there"
                )
            done: str | None = (
                f"Added master key {add_master_key(target)} to {target}. Now: copy the file to your other place; end\n"
                "CloudStore and start it again, every process; then run manage.py rotate_master_key"
            )
        elif arguments:
            say("usage: python -m cloudstore.secretfile [--add-master-key]")
            return 2
        else:
            done = ensure(data, target)
    except WrongConfiguration as error:
        say(error)
        return 1
    except OSError as error:
        say(f"cannot prepare the data folder: {error}")
        return 1
    if done:
        say(done)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
