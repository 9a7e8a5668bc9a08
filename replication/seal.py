"""The sealed form of a segment: one self-describing object of authenticated frames.

An object is a header of 136 bytes followed by frames of 256 KiB of plain bytes, AES-256-GCM each, in the
manner of Tink's streaming AEAD (AES-GCM-HKDF-STREAMING): the segment's key and nonce prefix are derived with
HKDF-SHA256 (RFC 5869) from the content key and a fresh random salt; the nonce carries a frame counter and a
last-frame flag; the header is the associated data of every frame. So a range costs the frames that it touches,
nothing can be reordered, truncated or swapped unnoticed, and sealing the same bytes again never repeats a
nonce. docs/format.md describes the layout byte by byte.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from brokers import entropy
from brokers.driver import MAX_OBJECT_SIZE, Buffer

MAGIC = b"CSTO"
VERSION = 1
ALGORITHM_AES_256_GCM = 1
FLAG_LAST = 1  # the content ends with this segment
FRAME_EXPONENT = 18
FRAME_SIZE = 1 << FRAME_EXPONENT
TAG_SIZE = 16
SALT_SIZE = 32
KEY_SIZE = 32
WRAPPED_KEY_SIZE = 12 + KEY_SIZE + TAG_SIZE
NONCE_PREFIX_SIZE = 7

# magic, version, algorithm, flags, frame exponent, content id, position, offset, size, master key version,
# wrapped content key, salt; big-endian.
_HEADER = struct.Struct(f">4sBBBB16sIQII{WRAPPED_KEY_SIZE}s{SALT_SIZE}s")
HEADER_SIZE = _HEADER.size

# The most plain bytes whose object stays within what every provider takes in one request: 31 frames.
SEGMENT_SIZE = (MAX_OBJECT_SIZE - HEADER_SIZE) // (FRAME_SIZE + TAG_SIZE) * FRAME_SIZE


class SealError(Exception):
    """The bytes are not what was sealed: changed, cut, moved, or of an unknown format."""


@dataclass(frozen=True, slots=True)
class Header:
    content_id: uuid.UUID
    position: int
    offset: int
    size: int
    last: bool
    key_version: int
    wrapped_key: bytes
    salt: bytes

    def pack(self) -> bytes:
        return _HEADER.pack(
            MAGIC,
            VERSION,
            ALGORITHM_AES_256_GCM,
            FLAG_LAST if self.last else 0,
            FRAME_EXPONENT,
            self.content_id.bytes,
            self.position,
            self.offset,
            self.size,
            self.key_version,
            self.wrapped_key,
            self.salt,
        )


def parse_header(data: Buffer) -> Header:
    """The header of an object. Raises SealError for anything that this version cannot open."""
    if len(data) < HEADER_SIZE:
        raise SealError("shorter than a header")
    (
        magic,
        version,
        algorithm,
        flags,
        exponent,
        content,
        position,
        offset,
        size,
        key_version,
        wrapped,
        salt,
    ) = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise SealError("not a sealed segment")
    if (version, algorithm, exponent) != (
        VERSION,
        ALGORITHM_AES_256_GCM,
        FRAME_EXPONENT,
    ) or flags & ~FLAG_LAST:
        raise SealError(f"unknown format: version {version}, algorithm {algorithm}, flags {flags}")
    return Header(
        uuid.UUID(bytes=content), position, offset, size, bool(flags & FLAG_LAST), key_version, wrapped, salt
    )


def frame_count(size: int) -> int:
    """Frames of a segment of `size` plain bytes; an empty one has a single empty frame."""
    return max(1, -(-size // FRAME_SIZE))


def sealed_size(size: int) -> int:
    """Bytes of the object that seals `size` plain bytes."""
    return HEADER_SIZE + size + frame_count(size) * TAG_SIZE


def frame_span(first: int, last: int, size: int) -> tuple[int, int]:
    """Where frames `first..last` (inclusive) of a segment of `size` plain bytes stand: -> (start, length)."""
    start = _start_of(first)
    end = min(_start_of(last + 1), sealed_size(size))
    return start, end - start


class _Frames:
    """The cipher of one segment: its derived key, and the nonce of each frame."""

    def __init__(self, content_key: bytes, salt: bytes, header: bytes, size: int) -> None:
        derived = HKDF(
            algorithm=SHA256(), length=KEY_SIZE + NONCE_PREFIX_SIZE, salt=salt, info=b"cloudstore segment v1"
        ).derive(content_key)
        self.aead = AESGCM(derived[:KEY_SIZE])
        self._prefix = derived[KEY_SIZE:]
        self.header = header
        self._last = frame_count(size) - 1

    def nonce(self, frame: int) -> bytes:
        return self._prefix + frame.to_bytes(4, "big") + (b"\1" if frame == self._last else b"\0")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed segment: the whole object, its header, and the SHA-256 of the object."""

    data: Buffer
    header: bytes
    checksum: str


class Sealer:
    """Seals one segment while its bytes come, straight into the memory of the object. Every one draws a fresh salt.

    With `size` each frame is encrypted as soon as it is whole. Without, the plain bytes wait at their places until
    `finish` says how many they are (at most `most`), because every frame is bound to the size. `room`, when given,
    is the memory to use: at least as long as the object. For one thread."""

    def __init__(self, content_key: bytes, *, content_id: uuid.UUID, position: int, offset: int, key_version: int,
                 wrapped_key: bytes, size: int | None = None, last: bool = False, most: int = SEGMENT_SIZE,
                 room: bytearray | None = None) -> None:  # fmt: skip
        most = most if size is None else size
        if most > SEGMENT_SIZE:
            raise ValueError(f"a segment holds at most {SEGMENT_SIZE} bytes")
        self.size = 0
        self._most = most
        self._known = size is not None
        self._key = content_key
        self._facts = (content_id, position, offset)
        self._wrapped = (key_version, bytes(wrapped_key))
        self._object = memoryview(bytearray(sealed_size(most)) if room is None else room)
        self._next = 0  # the first frame that is not encrypted
        if size is not None:
            self._begin(size, last)

    @property
    def space(self) -> int:
        """How many bytes still go in."""
        return self._most - self.size

    def _begin(self, size: int, last: bool) -> None:
        content_id, position, offset = self._facts
        salt = entropy.token_bytes(SALT_SIZE)
        self._header = Header(content_id, position, offset, size, last, *self._wrapped, salt).pack()
        self._frames = _Frames(self._key, salt, self._header, size)
        self._total = size
        self._object[:HEADER_SIZE] = self._header
        self._checksum = hashlib.sha256(self._header)

    def write(self, data: Buffer) -> None:
        """Take the next bytes, in pieces of any size. Raises ValueError for more than `space`."""
        view = memoryview(data)
        if len(view) > self.space:
            raise ValueError(f"{len(view)} bytes where {self.space} go in")
        while len(view):
            frame, within = divmod(self.size, FRAME_SIZE)
            whole = min(FRAME_SIZE, self._most - frame * FRAME_SIZE)
            piece = view[: whole - within]
            view = view[len(piece) :]
            self.size += len(piece)
            if self._known and len(piece) == whole:
                self._encrypt(piece)
                continue
            start = _start_of(frame) + within
            self._object[start : start + len(piece)] = piece
            if self._known and within + len(piece) == whole:
                self._encrypt(self._plain(frame, whole))

    def finish(self, *, last: bool = False) -> Sealed:
        """The sealed segment; `last` counts where the size was not known before. Raises ValueError when fewer
        bytes came than were announced."""
        if not self._known:
            self._begin(self.size, last)
        elif self.size != self._total:
            raise ValueError(f"{self.size} bytes came of {self._total}")
        for frame in range(self._next, frame_count(self._total)):
            self._encrypt(self._plain(frame, min(FRAME_SIZE, self._total - frame * FRAME_SIZE)))
        data = self._object[: sealed_size(self._total)].toreadonly()
        return Sealed(data, self._header, self._checksum.hexdigest())

    def _plain(self, frame: int, size: int) -> bytes:
        """Plain bytes that wait in the object: a copy, since no cipher promises to work in place."""
        start = _start_of(frame)
        return bytes(self._object[start : start + size])

    def _encrypt(self, plain: Buffer) -> None:
        start = _start_of(self._next)
        place = self._object[start : start + len(plain) + TAG_SIZE]
        self._frames.aead.encrypt_into(self._frames.nonce(self._next), plain, self._header, place)
        self._checksum.update(place)  # now, while the bytes lie in the processor's cache
        self._next += 1


def _start_of(frame: int) -> int:
    return HEADER_SIZE + frame * (FRAME_SIZE + TAG_SIZE)


def seal(content_key: bytes, plain: Buffer, *, content_id: uuid.UUID, position: int, offset: int, last: bool,
         key_version: int, wrapped_key: bytes) -> Sealed:  # fmt: skip
    """Seal one segment of at most SEGMENT_SIZE plain bytes at once."""
    sealer = Sealer(content_key, content_id=content_id, position=position, offset=offset, key_version=key_version,
                    wrapped_key=wrapped_key, size=len(memoryview(plain)), last=last)  # fmt: skip
    sealer.write(plain)
    return sealer.finish()


def open_frames(content_key: bytes, header: bytes, first: int, data: Buffer) -> Iterator[bytes]:
    """Verify and decrypt consecutive frames of one segment, given its header and the bytes of the object that
    `frame_span` names, yielding the plain bytes of each. Raises SealError at the first frame that fails."""
    parsed = parse_header(header)
    frames = _Frames(content_key, parsed.salt, header, parsed.size)
    view = memoryview(data)
    number = first
    while len(view):
        piece = view[: FRAME_SIZE + TAG_SIZE]
        try:
            yield frames.aead.decrypt(frames.nonce(number), piece, header)
        except (InvalidTag, ValueError):
            raise SealError(f"frame {number} does not verify") from None
        view = view[len(piece) :]
        number += 1


def open_object(content_key: bytes, data: Buffer) -> bytes:
    """The plain bytes of a whole object. Raises SealError unless every byte of it verifies."""
    parsed = parse_header(data)
    if len(data) != sealed_size(parsed.size):
        raise SealError(f"{len(data)} bytes where {sealed_size(parsed.size)} were sealed")
    view = memoryview(data)
    header = bytes(view[:HEADER_SIZE])
    return b"".join(open_frames(content_key, header, 0, view[HEADER_SIZE:]))
