"""The ways in which a provider fails for some calls, by name: what the state machine and the tables draw from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brokers.driver import StorageInfo
from brokers.errors import (
    ClockSkewed,
    NotFound,
    OutOfSpace,
    RateLimited,
    ReadOnly,
    Timeout,
    Unauthorized,
    Unavailable,
)
from brokers.testing.faulty import FaultyBroker, Record

if TYPE_CHECKING:
    from tests.machine.world import Place

On = Callable[[Record], bool]


@dataclass(frozen=True)
class Script:
    """One fault as it is drawn: which calls (`on`), and a seed for what else there is to choose."""

    place: Place
    on: On
    dice: random.Random

    @property
    def driver(self) -> FaultyBroker:
        return self.place.driver

    def other(self) -> bytes:
        """The bytes of another object of this place, or of none."""
        held = self.place.held()
        return self.place.here[self.dice.choice(held)][0] if held else b"<html>Sorry!</html>"


def _late(script: Script) -> None:
    """The put times out, and lands later."""

    def catch(record: Record) -> bool:
        if not script.on(record):
            return False
        assert record.data is not None
        script.place.late.append((record.name, record.data))
        return True

    script.driver.fail("put", Timeout("no answer"), on=catch)


def _full(script: Script) -> None:
    script.driver.fail("put", OutOfSpace(), on=script.on)
    script.driver.fail("probe", OutOfSpace(), on=script.on)


def _read_only(script: Script) -> None:
    for operation in ("put", "delete", "probe"):
        script.driver.fail(operation, ReadOnly(), on=script.on)


def _half(script: Script) -> None:
    odd = script.dice.randrange(2)
    script.driver.hide(lambda path: sum(path.encode()) % 2 == odd, on=script.on)


def _limited(operation: str) -> Callable[[Script], None]:
    def limit(script: Script) -> None:
        pause = script.dice.choice([None, 0.5, 20.0, 90.0])
        script.driver.fail(operation, RateLimited("slow down", pause), on=script.on)

    return limit


def _fails(operation: str, error: Exception, *, after: bool = False) -> Callable[[Script], None]:
    return lambda s: s.driver.fail(operation, error, on=s.on, after=after)


# name -> (the operation whose calls are counted, the script)
FAULTS: dict[str, tuple[str, Callable[[Script], None]]] = {
    "put fails": ("put", _fails("put", Unavailable("down"))),
    "put fails after": ("put", _fails("put", Unavailable("reset"), after=True)),
    "put times out": ("put", _fails("put", Timeout("no answer"))),
    "put times out after": ("put", _fails("put", Timeout("lost"), after=True)),
    "put lands late": ("put", _late),
    "put truncated": ("put", lambda s: s.driver.truncate("put", s.dice.choice([0, 1, 136, 300]), on=s.on)),
    "put flipped": ("put", lambda s: s.driver.flip("put", s.dice.randrange(800), on=s.on)),
    "put of other bytes": ("put", lambda s: s.driver.swap("put", s.other(), on=s.on)),
    "put lost": ("put", lambda s: s.driver.lose(on=s.on)),
    "put refused": ("put", _fails("put", Unauthorized("revoked"))),
    "put limited": ("put", _limited("put")),
    "put breaks": ("put", _fails("put", RuntimeError("a bug in the SDK"))),
    "full": ("put", _full),
    "read-only": ("put", _read_only),
    "get fails": ("get", _fails("get", Unavailable("down"))),
    "get times out": ("get", _fails("get", Timeout("no answer"))),
    "get refused": ("get", _fails("get", Unauthorized("revoked"))),
    "get finds nothing": ("get", _fails("get", NotFound("no such key"))),
    "get limited": ("get", _limited("get")),
    "get breaks": ("get", _fails("get", ValueError("a bug in the SDK"))),
    "get truncated": ("get", lambda s: s.driver.truncate("get", s.dice.choice([0, 1, 100]), on=s.on)),
    "get flipped": ("get", lambda s: s.driver.flip("get", s.dice.randrange(800), on=s.on)),
    "get flipped at its end": ("get", lambda s: s.driver.flip("get", -1 - s.dice.randrange(20), on=s.on)),
    "get of other bytes": ("get", lambda s: s.driver.swap("get", s.other(), on=s.on)),
    "get slow": ("get", lambda s: s.driver.delay("get", 7.0, on=s.on)),
    "stat fails": ("stat", _fails("stat", Unavailable("down"))),
    "stat finds nothing": ("stat", _fails("stat", NotFound("no such key"))),
    "stat tells another size": ("stat", lambda s: s.driver.lie(size=7, on=s.on)),
    "stat tells another hash": ("stat", lambda s: s.driver.lie(checksum="sha256:" + "0" * 64, on=s.on)),
    "delete fails": ("delete", _fails("delete", Unavailable("down"))),
    "delete fails after": ("delete", _fails("delete", Timeout("lost"), after=True)),
    "delete does nothing": ("delete", lambda s: s.driver.keep(on=s.on)),
    "delete limited": ("delete", _limited("delete")),
    "list fails": ("list", _fails("list", Unavailable("down"))),
    "list hides all": ("list", lambda s: s.driver.hide(lambda _path: True, on=s.on)),
    "list hides half": ("list", _half),
    "info fails": ("info", _fails("info", Unavailable("down"))),
    "no space told": (
        "info",
        lambda s: s.driver.capacity(StorageInfo(total=10**9, used=10**9 - 5, available=5), on=s.on),
    ),
    "probe fails": ("probe", _fails("probe", Unavailable("down"))),
    "everything fails": ("*", _fails("*", Unavailable("down"))),
    "everything refused": ("*", _fails("*", Unauthorized("revoked"))),
    "everything skewed": ("*", _fails("*", ClockSkewed("the clocks differ"))),
}
# After these a broker may ask for a pause that outlasts them.
PAUSING = {name for name in FAULTS if name.endswith("limited")}
LONGEST_PAUSE = 90.0
DAMAGES = ("flip", "cut", "empty", "delete", "replace", "lengthen")


def damaged(how: str, data: bytes, other: bytes, dice: random.Random) -> bytes | None:
    """What a rotten disk makes of an object; None: nothing is left."""
    at = dice.randrange(len(data)) if data else 0
    match how:
        case "flip":
            return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :] if data else b"x"
        case "cut":
            return data[:at]
        case "empty":
            return b""
        case "replace":
            return other if other != data else b"<html>It works!</html>"
        case "lengthen":
            return data + b"\0"
    return None
