"""A file of many segments whose first two copies lie or fail in every way that a read can: each answer is compared with
what was stored, byte for byte, whole and by ranges."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from accounts.models import User
from brokers.errors import NotFound, RangeError, Timeout, Unauthorized, Unavailable
from replication import policy, transfer
from replication.models import Replica, Segment
from tests.kit import counters
from tests.machine.drive import Drive, bytes_of
from tests.machine.rest import sha256
from tests.machine.test_machine import quiet
from tests.machine.world import SEGMENT, Driver, World
from vfs.tree import root_of

__all__ = ["quiet"]
SEGMENTS = 40
ROUNDS = 3
PATH = ("file",)

Corrupt = Callable[[Driver], None]
CORRUPT: dict[str, Corrupt] = {
    **{f"bit at {n}": lambda d, n=n: d.flip("get", n) for n in (0, 1, 99, 300, 599, -1, -8, -16, -17, -99)},  # type: ignore[misc]
    **{f"cut to {n}": lambda d, n=n: d.truncate("get", n) for n in (0, 1, 15, 16, 17, 300, -16, -1)},  # type: ignore[misc]
    "zeros": lambda d: d.swap("get", bytes(SEGMENT + 16)),
    "noise": lambda d: d.swap("get", bytes_of(SEGMENT + 16, 1)),
    "longer": lambda d: d.swap("get", bytes_of(9 * SEGMENT, 1)),
    "an apology": lambda d: d.swap("get", b"<html>Sorry, please try again later</html>"),
    "no answer": lambda d: d.fail("get", Unavailable()),
    "too late": lambda d: d.fail("get", Timeout(), after=True),
    "not found": lambda d: d.fail("get", NotFound()),
    "no such range": lambda d: d.fail("get", RangeError()),
    "refused": lambda d: d.fail("get", Unauthorized()),
    "a bug": lambda d: d.fail("get", ZeroDivisionError()),
}


def test_there_are_enough_ways_to_lie() -> None:
    assert len(CORRUPT) >= 20


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.usefixtures("quiet")
def test_no_lie_is_ever_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "latency", lambda _broker: 0.0)  # else who fails slowly is asked last
    dice = random.Random(1)
    data = bytes_of(SEGMENTS * SEGMENT, 7)
    world = World(1)
    with world.running():
        user = User.objects.create_user("alice")
        root_of(user)
        drive = Drive(user)
        policy.change(copies=3, ack_copies=3)
        assert drive.put(PATH, data).done
        counters.add(counters.ACKNOWLEDGED, len(data))
        assert Replica.objects.filter(state="stored").count() == 3 * Segment.objects.count() == 3 * SEGMENTS
        for name, corrupt in CORRUPT.items():
            for place in world.places[:2]:
                corrupt(place.driver)
            for _round in range(ROUNDS):
                before = counters.value(counters.FAULTS)
                spans = [(0, len(data))]
                for _ in range(2):
                    start = dice.randrange(len(data))
                    spans.append((start, dice.randrange(start, len(data)) + 1))
                for start, end in spans:
                    doubted = Replica.objects.exclude(state=Replica.State.STORED, check_at=None, attempts=0)
                    doubted.update(state=Replica.State.STORED, check_at=None, attempts=0)
                    read = drive.get(PATH, "" if end - start == len(data) else f"bytes={start}-{end - 1}")
                    if read.body != data[start:end]:
                        counters.add(counters.WRONG, len(read.body))
                    assert (read.whole, read.body) == (True, data[start:end]), name
                assert drive.head(PATH) == (200, sha256(data))
                assert counters.value(counters.FAULTS) - before >= SEGMENTS / 4, name
            for place in world.places:
                world.calm(place)
