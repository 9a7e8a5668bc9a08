"""The stored format: what was sealed by a released version opens for ever, and docs/format.md's own reader, which
shares no code with the product, opens what the product seals."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from django.conf import settings

from brokers.keyring import Keyring
from replication.seal import FRAME_SIZE, SEGMENT_SIZE, open_object, parse_header
from tests.replication.kit import Objects, memory_broker, replicas, store

# An object of format version 1: master key 1 is bytes 0..31, the content key bytes 100..131.
GOLDEN = base64.b64decode(
    "Q1NUTwEBARIBI0VniavN7wEjRWeJq83vAAAAAAAAAAAAAAAAAAAAJwAAAAElJicoKSorLC0uLzAuG5Gqy4wUdUA4yPIb2CZAChbMTOx9e/6cH849"
    "IhRmNt1jpKv5YFYiS4LcLqwp/NlKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaUO58D/hyWlqaHZ3Id1VV/2mzoE0hMtJjoKLIRlhMSWB"
    "0reTQOnSMLAH594o8WBcqwVqJjUHtFc="
)
PLAIN = b"What was sealed once is read for ever.\n"
SCRIPT = Path(settings.BASE_DIR) / "scripts" / "open_object.py"


def script(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, check=False, timeout=60
    )


def keys_file(folder: Path, keys: dict[int, bytes]) -> str:
    text = ",".join(f"{version}:{base64.b64encode(key).decode()}" for version, key in keys.items())
    path = folder / "secrets.env"
    path.write_text(f"SECRET_KEY=unused\nCLOUDSTORE_MASTER_KEYS={text}\n")
    return str(path)


def test_the_golden_object_opens() -> None:
    header = parse_header(GOLDEN)
    assert header.content_id == uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    ring = Keyring({1: bytes(range(32))})
    key = ring.open(b"content key", header.key_version, header.wrapped_key, header.content_id.bytes)
    assert key == bytes(range(100, 132))
    assert open_object(key, GOLDEN) == PLAIN
    assert hashlib.sha256(GOLDEN).hexdigest().startswith("b349d815d863e467")


def test_the_script_opens_the_golden_object(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(GOLDEN)
    keys = keys_file(tmp_path, {1: bytes(range(32)), 2: bytes(32)})
    done = script("--keys", keys, str(tmp_path / "object"))
    assert (done.returncode, done.stdout) == (0, PLAIN)
    shown = json.loads(script("--keys", keys, "--header", str(tmp_path / "object")).stdout)
    assert (shown["position"], shown["size"], shown["last"]) == (0, len(PLAIN), True)


@pytest.mark.parametrize("offset", [0, 4, 5, 6, 10, 30, 38, 43, 50, 110, 140, -1])
def test_the_script_opens_nothing_that_was_changed(tmp_path: Path, offset: int) -> None:
    changed = bytearray(GOLDEN)
    changed[offset] ^= 1
    (tmp_path / "object").write_bytes(changed)
    done = script("--keys", keys_file(tmp_path, {1: bytes(range(32))}), str(tmp_path / "object"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.django_db
@pytest.mark.parametrize("size", [0, 1, FRAME_SIZE, SEGMENT_SIZE + FRAME_SIZE + 7])
def test_the_script_opens_what_the_product_seals(tmp_path: Path, size: int) -> None:
    for name in "ab":
        memory_broker(name)
    data = os.urandom(size)
    content = store(data)
    objects = []
    for replica in replicas(content)[::2]:
        path = tmp_path / f"object-{replica.segment.position}"
        path.write_bytes(Objects(replica.broker)[replica.locator])
        objects.append(str(path))
    done = script("--keys", keys_file(tmp_path, settings.CLOUDSTORE_MASTER_KEYS), *objects)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


@pytest.mark.django_db(transaction=True)
def test_the_script_opens_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/format.md is enough: the script shares no code with the product."""
    from console.snapshot import make
    from replication import vault

    monkeypatch.setattr(vault, "SEGMENT_SIZE", 700)
    brokers = [memory_broker(name) for name in "ab"]
    content = store(b"some bytes")
    made = make()
    assert made.parts > 2
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name, data in Objects(brokers[1]).items():
        if name.startswith("cs-meta/snapshot-"):
            (folder / name.rpartition("/")[2]).write_bytes(data)
    keys = keys_file(tmp_path, settings.CLOUDSTORE_MASTER_KEYS)
    done = script("--keys", keys, "--snapshot", str(folder))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert lines[0]["format"] == "cloudstore metadata" and lines[0]["id"] == str(made.pk)
    assert lines[-1]["end"]["replication.Replica"] == 2
    assert any(isinstance(line, list) and content.sha256 in line for line in lines)
    for broken in ("000001", "manifest"):
        data = (folder / broken).read_bytes()
        (folder / broken).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        done = script("--keys", keys, "--snapshot", str(folder))
        assert done.returncode == 1 and b"Traceback" not in done.stderr
        (folder / broken).write_bytes(data)
    (folder / "000002").unlink()
    assert script("--keys", keys, "--snapshot", str(folder)).returncode == 1
