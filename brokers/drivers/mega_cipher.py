"""How MEGA encrypts a file, and the proof of work that it asks for.

A file has a key of 128 bits, a nonce of 64 bits and a MAC of 64 bits; the three together are its *node key*,
which is stored encrypted with the account's master key. The bytes go through AES in counter mode; the MAC is a
CBC-MAC over the CBC-MACs of its chunks (`mega.crypto.get_chunks`). Source: MEGA's SDK (`crypto/`, `hashcash.cpp`)
and mega.py; the library's own loops over files go wrong for a last chunk of 16 bytes or fewer, and for none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from Crypto.Cipher import AES

from brokers import entropy
from brokers.drivers.mega_library import crypto

BLOCK = 16
_ZEROS = bytes(BLOCK)
# The challenge's token is repeated to 12 MiB, so that a try costs memory bandwidth as well.
TOKEN_BYTES = 48
TOKEN_TIMES = 262_144


@dataclass(frozen=True, slots=True)
class FileKey:
    """`aes` (16 bytes), `nonce` (8) and, once the bytes are known, `mac` (8)."""

    aes: bytes
    nonce: bytes
    mac: bytes = b""

    @classmethod
    def fresh(cls) -> FileKey:
        """A new key from the operating system's generator."""
        return cls(entropy.token_bytes(16), entropy.token_bytes(8))

    @classmethod
    def opened(cls, sealed: str, master_key: tuple[int, ...]) -> FileKey:
        """From a node key as MEGA stores it. Raises ValueError for what is none."""
        words = crypto.base64_to_a32(sealed)
        if len(words) != 8:
            raise ValueError("a file's node key has 32 bytes")
        node: bytes = crypto.a32_to_str(crypto.decrypt_key(words, master_key))
        return cls(bytes(a ^ b for a, b in zip(node[:16], node[16:], strict=True)), node[16:24], node[24:])

    def sealed(self, master_key: tuple[int, ...]) -> str:
        """The node key encrypted with the master key: 43 characters of URL-safe base64."""
        last = self.nonce + self.mac
        node = bytes(a ^ b for a, b in zip(self.aes, last, strict=True)) + last
        text: str = crypto.a32_to_base64(crypto.encrypt_key(crypto.str_to_a32(node), master_key))
        return text

    @property
    def words(self) -> tuple[int, ...]:
        """The AES key as mega.crypto takes it."""
        found: tuple[int, ...] = crypto.str_to_a32(self.aes)
        return found

    def crypt(self, data: bytes, start: int = 0) -> bytes:
        """Encrypt or decrypt (it is the same) bytes that begin at `start` of the file."""
        stream = AES.new(self.aes, AES.MODE_CTR, nonce=self.nonce, initial_value=start // BLOCK)
        if start % BLOCK:
            stream.encrypt(bytes(start % BLOCK))
        return stream.encrypt(data)

    def mac_of(self, plain: bytes) -> bytes:
        """The MAC of a whole file's bytes; eight zeros for an empty one."""
        view = memoryview(plain)
        whole = _ZEROS
        if view:
            for start, size in crypto.get_chunks(len(view)):
                whole = _cbc(self.aes, whole, self._chunk_mac(view[start : start + size]))
        first, second, third, fourth = struct.unpack(">4I", whole)
        return struct.pack(">2I", first ^ second, third ^ fourth)

    def _chunk_mac(self, chunk: memoryview) -> bytes:
        """The last block of the chunk in CBC mode, filled up with zeros."""
        cipher = AES.new(self.aes, AES.MODE_CBC, iv=self.nonce * 2)
        even = len(chunk) - len(chunk) % BLOCK
        last = cipher.encrypt(chunk[:even])[-BLOCK:] if even else b""
        if even < len(chunk):
            last = cipher.encrypt(bytes(chunk[even:]).ljust(BLOCK, b"\0"))
        return last


def _cbc(key: bytes, before: bytes, block: bytes) -> bytes:
    return AES.new(key, AES.MODE_CBC, iv=before).encrypt(block)


def attributes(name: str, key: tuple[int, ...]) -> str:
    """A node's encrypted attributes."""
    text: str = crypto.base64_url_encode(crypto.encrypt_attr({"n": name}, key))
    return text


def name_in(sealed: object, key: tuple[int, ...]) -> str | None:
    """The name in a node's encrypted attributes; None when the key does not open them."""
    try:
        raw = crypto.base64_url_decode(sealed)
        found = crypto.decrypt_attr(raw, key)
    except (ValueError, TypeError, AttributeError):
        return None
    name = found.get("n") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def prove(challenge: str, check: Callable[[], object]) -> str:
    """The answer to an `X-Hashcash` header (`1:<easiness>:<time>:<token>`): SHA-256 over a prefix of four bytes
    and the repeated token must begin with a number not above the threshold. `check` is called before each try
    and raises when it takes too long. Raises ValueError for a challenge of another kind."""
    version, easiness_text, _time, token = challenge.strip().split(":")
    easiness = int(easiness_text)
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error as error:
        raise ValueError("the token is not base64") from error
    if version != "1" or len(raw) != TOKEN_BYTES or not 0 <= easiness <= 255:
        raise ValueError("an unknown kind of challenge")
    threshold = (((easiness & 63) << 1) + 1) << ((easiness >> 6) * 7 + 3)
    area = bytearray(4) + raw * TOKEN_TIMES
    for number in range(1 << 32):
        check()
        area[:4] = prefix = number.to_bytes(4, "big")
        # Lets other threads run meanwhile: hashlib gives the interpreter free for large inputs.
        if int.from_bytes(hashlib.sha256(area).digest()[:4], "big") <= threshold:
            return f"1:{token}:{base64.urlsafe_b64encode(prefix).decode('ascii').rstrip('=')}"
    raise ValueError("the challenge has no answer")
