"""Opens objects that CloudStore stored, with nothing but the master key (docs/format.md describes the format).

    python scripts/open_object.py --keys var/secrets.env OBJECT... > plain
    python scripts/open_object.py --keys var/secrets.env --snapshot FOLDER > lines.json

The first writes the plain bytes of the objects, in the order given; `--header` prints what their headers say instead.
The second writes the lines of a snapshot of the metadata, all of whose objects (`manifest`, `000000`, ...) are in the
folder. Needs Python 3.11 and the package `cryptography`, and no other file of CloudStore. Exit status 1 when anything
does not open: what was written until then is not whole.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import struct
import sys
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEADER = struct.Struct(">4sBBBB16sIQII60s32s")
FRAME, TAG = 1 << 18, 16


class CannotOpen(Exception):
    """Why an object does not open."""


def hkdf(key: bytes, length: int, info: bytes, salt: bytes | None = None) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def master_keys(path: Path) -> dict[int, bytes]:
    """The master keys in a secrets' file, by version."""
    found = re.search(r"^CLOUDSTORE_MASTER_KEYS=[\"']?([^\"'\s]+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise CannotOpen(f"{path} has no CLOUDSTORE_MASTER_KEYS")
    pairs = (part.split(":", 1) for part in found[1].split(",") if part)
    return {int(version): base64.b64decode(key) for version, key in pairs}


def header_of(data: bytes) -> dict[str, Any]:
    """What the header of an object says. Raises CannotOpen."""
    if len(data) < HEADER.size:
        raise CannotOpen("it is shorter than a header")
    magic, version, algorithm, flags, exponent, content, position, offset, size, key, wrapped, salt = (
        HEADER.unpack_from(data)
    )
    if (magic, version, algorithm, exponent) != (b"CSTO", 1, 1, 18):
        raise CannotOpen("it is not a sealed segment of version 1")
    return {
        "content": uuid.UUID(bytes=content),
        "position": position,
        "offset": offset,
        "size": size,
        "last": bool(flags & 1),
        "master_key": key,
        "wrapped": wrapped,
        "salt": salt,
    }


def open_object(data: bytes, keys: dict[int, bytes], purpose: bytes = b"content key") -> bytes:
    """The plain bytes of a whole object. Raises CannotOpen unless every byte of it verifies."""
    found = header_of(data)
    if found["master_key"] not in keys:
        raise CannotOpen(f"master key {found['master_key']} is not given")
    header, frames = data[: HEADER.size], max(1, -(-found["size"] // FRAME))
    if len(data) != HEADER.size + found["size"] + frames * TAG:
        raise CannotOpen("it does not have the size that its header says")
    try:
        wrapping = AESGCM(hkdf(keys[found["master_key"]], 32, b"cloudstore " + purpose))
        wrapped = found["wrapped"]
        content_key = wrapping.decrypt(wrapped[:12], wrapped[12:], found["content"].bytes)
        derived = hkdf(content_key, 39, b"cloudstore segment v1", found["salt"])
        cipher, prefix = AESGCM(derived[:32]), derived[32:]
        plain = []
        for number in range(frames):
            start = HEADER.size + number * (FRAME + TAG)
            nonce = prefix + number.to_bytes(4, "big") + (b"\1" if number == frames - 1 else b"\0")
            plain.append(cipher.decrypt(nonce, data[start : start + FRAME + TAG], header))
    except InvalidTag:
        raise CannotOpen("it was changed, or this is not its master key") from None
    return b"".join(plain)


def open_snapshot(folder: Path, keys: dict[int, bytes], write: Callable[[bytes], object]) -> None:
    """Write the lines of a snapshot. Raises CannotOpen unless it is whole."""
    sealed = (folder / "manifest").read_bytes()
    manifest = json.loads(open_object(sealed, keys, b"snapshot key"))
    if (manifest["format"], manifest["version"]) != ("cloudstore snapshot", 1):
        raise CannotOpen("it is not a snapshot of version 1")
    ids = {header_of(sealed)["content"]}
    digest, unpack = hashlib.sha256(), zlib.decompressobj(31)
    for position, (size, checksum) in enumerate(manifest["parts"]):
        data = (folder / f"{position:06d}").read_bytes()
        if len(data) != size or hashlib.sha256(data).hexdigest() != checksum:
            raise CannotOpen(f"part {position} is not the one that the manifest names")
        ids.add(header_of(data)["content"])
        plain = open_object(data, keys, b"snapshot key")
        digest.update(plain)
        write(unpack.decompress(plain))
    write(unpack.flush())
    if ids != {uuid.UUID(manifest["id"])} or digest.hexdigest() != manifest["sha256"] or not unpack.eof:
        raise CannotOpen("its parts do not belong together")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keys", type=Path, required=True, help="file with CLOUDSTORE_MASTER_KEYS=...")
    parser.add_argument("--header", action="store_true", help="print the headers as JSON, a line each")
    parser.add_argument("--snapshot", type=Path, metavar="FOLDER", help="print a snapshot of the metadata")
    parser.add_argument("objects", nargs="*", type=Path)
    options = parser.parse_args()
    if bool(options.objects) == bool(options.snapshot):
        parser.error("give objects, or --snapshot FOLDER")
    try:
        keys = master_keys(options.keys)
        if options.snapshot:
            path = options.snapshot
            open_snapshot(path, keys, sys.stdout.buffer.write)
        for path in options.objects:
            data = path.read_bytes()
            if options.header:
                shown = {k: v for k, v in header_of(data).items() if k not in {"wrapped", "salt"}}
                print(json.dumps(shown, default=str))
            else:
                sys.stdout.buffer.write(open_object(data, keys))
    except (CannotOpen, OSError, ValueError) as error:
        print(f"{path if 'path' in locals() else options.keys}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
