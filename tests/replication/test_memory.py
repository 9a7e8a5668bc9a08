"""Memory of objects is used again, and never while anybody can still see it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from replication import digest, memory
from replication.digest import Digest

pytestmark = pytest.mark.only_on("sqlite")


@pytest.fixture(autouse=True)
def _nothing_idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(memory, "_idle", [])
    yield


def test_used_again_when_the_last_view_is_gone() -> None:
    room = memory.take(memory.WHOLE)
    view = memoryview(room)[10:20].toreadonly()
    memory.give_back(room)
    other = memory.take(memory.WHOLE)
    assert other is not room, "a call that nobody waits for any more still reads it"
    del view
    assert memory.take(memory.WHOLE) is room
    assert len(room) == memory.WHOLE


def test_small_objects_get_what_they_need() -> None:
    room = memory.take(152)
    assert len(room) == 152
    memory.give_back(room)
    assert memory._idle == []


def test_only_some_is_kept() -> None:
    for room in [memory.take(memory.WHOLE) for _ in range(memory.KEPT + 3)]:
        memory.give_back(room)
    assert len(memory._idle) == memory.KEPT


def test_the_digest_is_that_of_all_pieces_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "BEHIND", digest.SMALL)
    pieces = [os.urandom(size) for size in (1, digest.SMALL, 0, 5 * digest.SMALL, 3, digest.SMALL + 1) * 5]
    found = Digest()
    for number, piece in enumerate(pieces):
        if number % 4:
            found.update(piece)
        else:
            buffer = bytearray(piece)
            found.update(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # the caller's own from now on
    assert found.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_a_digest_needs_no_free_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def submit(self, *_work: object) -> None:
            """Never comes to it."""

    monkeypatch.setattr(digest.transfer, "pool", Busy)
    monkeypatch.setattr(digest, "PATIENCE", 0.0)
    found, data = Digest(), os.urandom(4 * digest.BEHIND)
    for start in range(0, len(data), digest.BEHIND):
        found.update(data[start : start + digest.BEHIND])
    assert found.hexdigest() == hashlib.sha256(data).hexdigest()
