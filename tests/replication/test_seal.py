"""Sealed segments: what goes in comes out, and nothing else does."""

from __future__ import annotations

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
    SealError,
    frame_count,
    frame_span,
    open_frames,
    open_object,
    parse_header,
    seal,
    sealed_size,
)

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
    swapped = one.data[:HEADER_SIZE] + other.data[HEADER_SIZE:]
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
