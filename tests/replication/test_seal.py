"""Sealed segments: what goes in comes out, and nothing else does."""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid

import pytest

from replication.seal import (
    FRAME_SIZE,
    HEADER_SIZE,
    SEGMENT_SIZE,
    TAG_SIZE,
    Sealed,
    Sealer,
    SealError,
    frame_count,
    frame_span,
    open_frames,
    open_object,
    parse_header,
    seal,
    sealed_size,
)

pytestmark = pytest.mark.only_on("sqlite")

KEY = b"k" * 32
CONTENT = uuid.UUID(int=7)


def make(plain: bytes, *, position: int = 0, key: bytes = KEY, last: bool = True) -> Sealed:
    return seal(
        key,
        plain,
        content_id=CONTENT,
        position=position,
        offset=0,
        last=last,
        key_version=3,
        wrapped_key=b"w" * 60,
    )


SIZES = [0, 1, 2, FRAME_SIZE - 1, FRAME_SIZE, FRAME_SIZE + 1, 3 * FRAME_SIZE, SEGMENT_SIZE - 1, SEGMENT_SIZE]


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(size: int) -> None:
    plain = os.urandom(size)
    sealed = make(plain)
    assert open_object(KEY, sealed.data) == plain
    assert len(sealed.data) == sealed_size(size) < 8 * 1024 * 1024
    header = parse_header(sealed.data)
    assert (header.content_id, header.size, header.last, header.key_version) == (CONTENT, size, True, 3)
    assert sealed.header == bytes(sealed.data[:HEADER_SIZE])


def test_a_segment_never_exceeds_its_bound() -> None:
    with pytest.raises(ValueError, match="at most"):
        make(bytes(SEGMENT_SIZE + 1))


def test_the_same_bytes_never_seal_alike() -> None:
    plain = bytes(1000)
    first, second = make(plain), make(plain)
    assert first.header != second.header
    assert first.data[HEADER_SIZE:] != second.data[HEADER_SIZE:]


def test_no_plain_text_in_the_object() -> None:
    plain = b"a secret sentence" * 1000
    assert b"secret" not in bytes(make(plain).data)


def test_ranges_open_frame_by_frame() -> None:
    plain = os.urandom(3 * FRAME_SIZE + 17)
    sealed = make(plain)
    for first, last in itertools.combinations_with_replacement(range(frame_count(len(plain))), 2):
        start, length = frame_span(first, last, len(plain))
        found = b"".join(open_frames(KEY, sealed.header, first, sealed.data[start : start + length]))
        assert found == plain[first * FRAME_SIZE : (last + 1) * FRAME_SIZE]


@pytest.mark.parametrize("size", [0, 1, FRAME_SIZE + 5])
def test_every_header_byte_is_authenticated(size: int) -> None:
    sealed = make(os.urandom(size))
    for index in range(HEADER_SIZE):
        changed = bytearray(sealed.data)
        changed[index] ^= 1
        with pytest.raises(SealError):
            open_object(KEY, changed)


def test_any_change_of_the_frames_is_found() -> None:
    plain = os.urandom(2 * FRAME_SIZE + 100)
    sealed = make(plain)
    step = FRAME_SIZE + TAG_SIZE
    frames = [bytes(sealed.data[HEADER_SIZE + i * step : HEADER_SIZE + (i + 1) * step]) for i in range(3)]
    head = sealed.header
    for wrong in (
        head + frames[1] + frames[0] + frames[2],  # reordered
        head + frames[0] + frames[0] + frames[2],  # repeated
        head + frames[0] + frames[1],  # the last one cut off
        head + frames[0] + frames[1] + frames[2][:-1],  # truncated
        head + frames[0] + frames[1] + frames[2] + b"x",  # longer
        head,  # empty
        b"",
    ):
        with pytest.raises(SealError):
            open_object(KEY, wrong)
    for offset in range(HEADER_SIZE, len(sealed.data), FRAME_SIZE // 3):
        changed = bytearray(sealed.data)
        changed[offset] ^= 0x80
        with pytest.raises(SealError):
            open_object(KEY, changed)


def test_frames_of_another_segment_or_key_do_not_open() -> None:
    one, other = make(bytes(FRAME_SIZE)), make(bytes(FRAME_SIZE), position=1)
    swapped = bytes(one.data[:HEADER_SIZE]) + bytes(other.data[HEADER_SIZE:])
    with pytest.raises(SealError):
        open_object(KEY, swapped)
    with pytest.raises(SealError):
        open_object(b"x" * 32, one.data)


def test_a_cut_at_a_frame_border_is_found() -> None:
    """Two whole frames, of which the object keeps one: the last-frame flag tells."""
    sealed = make(os.urandom(2 * FRAME_SIZE))
    start, length = frame_span(0, 0, 2 * FRAME_SIZE)
    assert list(open_frames(KEY, sealed.header, 0, sealed.data[start : start + length]))
    with pytest.raises(SealError):
        open_object(KEY, sealed.data[: start + length])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("piece", [1000, FRAME_SIZE - 1, FRAME_SIZE, FRAME_SIZE + 1, 3 * FRAME_SIZE + 7])
def test_sealed_while_the_bytes_come(known: bool, piece: int) -> None:
    """However the bytes are cut, and in memory that held another object before."""
    plain = os.urandom(3 * FRAME_SIZE + 4321)
    room = bytearray(os.urandom(sealed_size(SEGMENT_SIZE)))
    sealer = Sealer(
        KEY, content_id=CONTENT, position=0, offset=0, key_version=3, wrapped_key=b"w" * 60,
        size=len(plain) if known else None, last=True, room=room,
    )  # fmt: skip
    for start in range(0, len(plain), piece):
        sealer.write(plain[start : start + piece])
    sealed = sealer.finish(last=True)
    assert open_object(KEY, sealed.data) == plain
    assert (len(sealed.data), sealed.checksum) == (
        sealed_size(len(plain)),
        hashlib.sha256(sealed.data).hexdigest(),
    )
    assert parse_header(sealed.data).last


def test_a_sealer_takes_what_was_announced() -> None:
    def sealer() -> Sealer:
        return Sealer(
            KEY, content_id=CONTENT, position=0, offset=0, key_version=3, wrapped_key=b"w" * 60, size=10
        )

    short, long = sealer(), sealer()
    short.write(b"123456789")
    with pytest.raises(ValueError, match="9 bytes came of 10"):
        short.finish()
    with pytest.raises(ValueError, match="11 bytes"):
        long.write(b"12345678901")
