"""The contract of `brokers/driver.py` as checks that run against a real place.

Each check stores a few objects under a random prefix and removes them again. In pytest:

    @pytest.mark.parametrize("name", conformance.names())
    def test_my_driver(name):
        check = Conformance(lambda: OpenBroker(MyBroker(options))).run_one(name)
        assert check.ok, check.detail

`manage.py broker_check NAME` runs all of them against a configured broker.

A driver that cannot keep a promise says so in `deviations`: check name -> reason. Such a check is reported as
declared; it fails when the driver keeps the promise after all.
"""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from brokers import clock, entropy
from brokers.driver import MAX_OBJECT_SIZE
from brokers.errors import BrokerError, InvalidKey, NotFound, RangeError, TooLarge
from brokers.open import OpenBroker
from brokers.testing import leaks, processes

MEBIBYTE = 1024 * 1024
LISTED = 25
PAGE = 5
THREADS = 8
LATE_SECONDS = 60.0  # for calls that nobody waits for any more: what they store must be removed, too
# How far a place's clock may be off before orphans would be judged too early (they wait for 48 hours).
CLOCK_TOLERANCE = timedelta(days=1)


@dataclass(frozen=True)
class Check:
    """One promise of the contract: `ok`, or `detail` says what happened instead. `seconds` it took.

    `deviation` is the driver's own reason where it declares that it does not keep the promise (then `ok`, when
    indeed it does not). `skipped`: the check needs what the caller did not give."""

    name: str
    ok: bool
    detail: str = ""
    seconds: float = 0.0
    deviation: str = ""
    skipped: bool = False


class ContractBroken(AssertionError):
    """A driver does not do what the contract says."""


class _Skipped(Exception):
    """The check needs what the caller did not give."""


def names() -> list[str]:
    """The checks, in the order in which they run."""
    return [name.removeprefix("check_") for name in vars(Conformance) if name.startswith("check_")]


def declared(driver: Any) -> dict[str, str]:
    """What a driver, or a class with the five methods behind its adapter, declares: check name -> reason."""
    found = dict(getattr(driver, "deviations", {}))
    inner = getattr(driver, "inner", None)
    return {**found, **declared(inner)} if inner is not None else found


def table(drivers: Mapping[str, Any]) -> str:
    """The Markdown table of docs/brokers.md: each driver (slug -> class) with what it declares."""
    rows = ["| driver | check | why it deviates |", "|---|---|---|"]
    for slug, driver in sorted(drivers.items()):
        its = declared(driver)
        rows += [f"| `{slug}` | `{name}` | {its[name]} |" for name in sorted(its)] or [
            f"| `{slug}` | none | |"
        ]
    return "\n".join(rows)


def _must(condition: object, what: str) -> None:
    if not condition:
        raise ContractBroken(what)


@contextmanager
def _raises(kind: type[BrokerError], what: str) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    except BrokerError as error:
        raise ContractBroken(f"{what} raised {type(error).__name__}, not {kind.__name__}") from error
    raise ContractBroken(f"{what} did not raise {kind.__name__}")


class Conformance:
    """The suite for one place. `connect` opens it anew each time, as another process would; `secrets` are texts
    that must not show up in what is printed, raised or logged. `vanished` opens a place of the same kind that is
    not there (a folder that was unmounted, a bucket that was removed)."""

    def __init__(
        self,
        connect: Callable[[], OpenBroker],
        *,
        secrets: tuple[str, ...] = (),
        largest: int = MAX_OBJECT_SIZE,
        vanished: Callable[[], OpenBroker] | None = None,
    ) -> None:
        self._connect = connect
        self._secrets = secrets
        self._largest = largest
        self._vanished = vanished
        self._prefix = f"cs-check/{entropy.token_hex(8)}/"
        self._stored: dict[str, None] = {}
        self._lock = threading.Lock()
        self._late, self.left = False, list[str]()

    def run(self) -> list[Check]:
        """Run every check, whatever the others say. At the end, also of an interrupted run, everything below the
        suite's prefix is removed. `left` says what could not be, and is the prefix where nobody can tell."""
        try:
            return [self.run_one(name) for name in names()]
        finally:
            self._sweep()

    def run_one(self, name: str) -> Check:
        """Run one check and remove what it stored. Never raises for what the driver does."""
        began = clock.monotonic()
        self._broker = self._connect()
        reason = declared(self._broker._driver).get(name, "")
        try:
            check = self._outcome(name)
        finally:
            self._late |= not self._broker.settle(LATE_SECONDS)
            left = self._clean_up()
            self._broker.retire()
        if reason and not check.skipped:
            check = replace(check, ok=not check.ok, deviation=reason)
            if not check.ok:
                check = replace(check, detail="declared as a deviation, but the promise is kept")
        if left and check.ok:
            check = replace(check, ok=False, detail=f"{left} objects could not be removed")
        return replace(check, seconds=round(clock.monotonic() - began, 3))

    def _outcome(self, name: str) -> Check:
        try:
            getattr(self, f"check_{name}")()
        except _Skipped as reason:
            return Check(name, True, str(reason), skipped=True)
        except (ContractBroken, BrokerError) as error:
            code = f"{error.code}: " if isinstance(error, BrokerError) else ""
            return Check(name, False, f"{code}{error}")
        except Exception as error:  # noqa: BLE001 - whatever a driver does is a result
            where = traceback.extract_tb(error.__traceback__)[-1]
            return Check(name, False, f"{type(error).__name__} in {where.name}")
        return Check(name, True)

    # -- helpers ------------------------------------------------------------------------------------------

    def _name(self, text: str = "") -> str:
        return f"{self._prefix}{text}{entropy.token_hex(16)}"

    def _put(self, data: bytes, name: str | None = None) -> str:
        locator = self._broker.put(self._name() if name is None else name, data)
        with self._lock:
            self._stored[locator] = None
        return locator

    def _sweep(self) -> None:
        """What the checks do not know of: a put may have stored and then failed."""
        self.left = [*self._stored, self._prefix]
        with suppress(BrokerError), self._another() as broker:
            self.left = [found.path for found in broker.list(self._prefix)]
            for locator in list(self.left):
                with suppress(BrokerError):
                    broker.delete(locator)
                    self.left.remove(locator)
            self._tidy(broker)
            self.left += [self._prefix] * self._late

    def _clean_up(self) -> int:
        for locator in list(self._stored):
            with suppress(BrokerError):
                self._broker.delete(locator)
                del self._stored[locator]
        self._tidy(self._broker)
        return len(self._stored)

    def _tidy(self, broker: OpenBroker) -> None:
        with suppress(BrokerError, OSError):
            broker._driver.tidy(self._prefix.partition("/")[0])

    @contextmanager
    def _another(self) -> Iterator[OpenBroker]:
        other = self._connect()
        try:
            yield other
        finally:
            other.retire()

    def _round_trip(self, size: int) -> None:
        data = entropy.token_bytes(size)
        locator = self._put(data)
        _must(self._broker.get(locator) == data, f"{size} bytes read back differently")
        found = self._broker.stat(locator)
        _must(found.size == size, f"stat says {found.size} bytes where {size} were stored")

    # -- the checks ---------------------------------------------------------------------------------------

    def check_probe(self) -> None:
        """The place takes and gives bytes."""
        self._broker.probe()

    def check_empty_object(self) -> None:
        self._round_trip(0)
        locator = self._put(b"")
        _must(self._broker.get(locator, 0, 10) == b"", "a range from 0 of an empty object is not empty")
        with _raises(RangeError, "a range from 1 of an empty object"):
            self._broker.get(locator, 1, 1)

    def check_one_byte(self) -> None:
        self._round_trip(1)

    def check_one_mebibyte(self) -> None:
        self._round_trip(MEBIBYTE)

    def check_largest_object(self) -> None:
        self._round_trip(self._largest)

    def check_too_large(self) -> None:
        """One byte more than an object may have is refused, and nothing of it is stored."""
        name = self._name()
        with _raises(TooLarge, "an object of one byte too many"):
            self._put(bytes(MAX_OBJECT_SIZE + 1), name)
        _must(not list(self._broker.list(name)), "something of an object that is too large was stored")

    def check_key_grammar(self) -> None:
        """All names that the product uses; one that begins with another is an object of its own."""
        stem = self._name()
        stored = {}
        for name in (stem, f"{stem}0", f"{stem}-x", self._name("ab/"), self._name("0-9/a/b/")):
            stored[self._put(name.encode(), name)] = name
        _must(len(stored) == 5, "two names share a locator")
        for locator, name in stored.items():
            _must(self._broker.get(locator) == name.encode(), "a name reads another one's bytes")
        for bad in ("", "x" * 501):
            with _raises(InvalidKey, f"a name of {len(bad)} characters"):
                self._put(b"", bad)

    def check_interrupted_put(self) -> None:
        """A process that dies within a put leaves the whole object or none, and the put can be repeated."""
        data = entropy.token_bytes(20_000)
        steps = processes.steps_of(self._connect, self._remember(self._name()), data)
        for step in processes.spread(steps):
            name = self._remember(self._name("cut/"))
            processes.die_within_put(self._connect, name, data, step)
            for found in list(self._broker.list(name)):
                self._stored[found.path] = None
                _must(self._broker.get(found.path) == data, "a put that was cut left a part of an object")
        _must(self._broker.get(self._put(data, name)) == data, "a put that was cut cannot be repeated")

    def _remember(self, name: str) -> str:
        """Have it removed at the end: a process that died cannot tell the locator, and most are the name."""
        self._stored[name] = None
        return name

    def check_fork(self) -> None:
        """A forked process opens the place for itself, and its parent goes on."""
        data, name = entropy.token_bytes(1000), self._name()
        locator = self._put(data)

        def work() -> bool:
            other = self._connect()
            mine = other.put(name, data)
            same = other.get(mine) == data
            other.delete(mine)
            return same

        _must(processes.in_child(work), "a forked process does not read what it wrote")
        _must(self._broker.get(locator) == data, "after a fork the parent reads other bytes")
        self._round_trip(1000)

    def check_read_after_write(self) -> None:
        """Another connection reads what this one wrote, at once."""
        data = entropy.token_bytes(1000)
        locator = self._put(data)
        with self._another() as other:
            _must(other.get(locator) == data, "another connection reads other bytes")
            other.delete(locator)
        with _raises(NotFound, "reading what another connection has deleted"):
            self._broker.get(locator)

    def check_same_again(self) -> None:
        """The same name and bytes again is success, and changes nothing."""
        data, name = entropy.token_bytes(1000), self._name()
        first, second = self._put(data, name), self._put(data, name)
        _must(self._broker.get(first) == data, "the first locator does not read back")
        _must(self._broker.get(second) == data, "the second locator does not read back")
        _must(len(list(self._broker.list(name))) == 1, "the name is listed more than once")

    def check_ranges(self) -> None:
        data = entropy.token_bytes(100_000)
        locator = self._put(data)
        for start, length in (
            (0, 1),
            (0, 100_000),
            (1, 1),
            (65_536, 1000),
            (99_999, 1),
            (5, None),
            (0, None),
        ):
            end = None if length is None else start + length
            got = self._broker.get(locator, start, length)
            _must(got == data[start:end], f"range {start}+{length} gave other bytes")
        _must(
            self._broker.get(locator, 99_990, 500) == data[99_990:], "a range over the end is not cut there"
        )
        _must(self._broker.get(locator, 10, 0) == b"", "a range of no length is not empty")
        for start in (100_000, 200_000):
            with _raises(RangeError, f"a range from {start} of 100000 bytes"):
                self._broker.get(locator, start, 10)

    def check_range_edges(self) -> None:
        """Every edge of a small object."""
        data = entropy.token_bytes(4)
        locator = self._put(data)
        for start in range(4):
            for length in (0, 1, 3, 4, 5, None):
                end = None if length is None else start + length
                got = self._broker.get(locator, start, length)
                _must(got == data[start:end], f"range {start}+{length} of 4 bytes gave other bytes")
        for start, length in ((4, None), (4, 0), (4, 1), (5, 1), (-1, 1), (0, -1)):
            with _raises(RangeError, f"range {start}+{length} of 4 bytes"):
                self._broker.get(locator, start, length)

    def check_absent(self) -> None:
        """What was never there is NotFound."""
        name = self._name()
        with _raises(NotFound, "get of an absent object"):
            self._broker.get(name)
        with _raises(NotFound, "a range of an absent object"):
            self._broker.get(name, 10, 10)
        with _raises(NotFound, "stat of an absent object"):
            self._broker.stat(name)

    def check_delete(self) -> None:
        """Deleting is final and can be repeated."""
        locator = self._put(b"to be deleted")
        for _ in range(2):
            self._broker.delete(locator)
        with _raises(NotFound, "get of a deleted object"):
            self._broker.get(locator)
        with _raises(NotFound, "stat of a deleted object"):
            self._broker.stat(locator)
        _must(not list(self._broker.list(self._prefix)), "a deleted object is still listed")
        self._broker.delete(self._name())

    def check_list(self) -> None:
        """Complete by prefix, with sizes, and nothing else."""
        stored = {self._put(b"x" * number, self._name("a/")): number for number in range(LISTED)}
        aside = self._put(b"aside", self._name("b/"))
        for prefix in (f"{self._prefix}a/", f"{self._prefix}a"):
            found = {f.path: f.size for f in self._broker.list(prefix)}
            _must(set(found) == set(stored), f"{len(found)} objects listed where {len(stored)} are")
            wrong = [p for p, size in found.items() if size not in (-1, stored[p])]
            _must(not wrong, f"{len(wrong)} sizes in the listing are wrong")
        _must(aside in {f.path for f in self._broker.list(self._prefix)}, "the listing above lacks an object")
        _must(not list(self._broker.list(self._name())), "something is listed under an unused prefix")

    def check_list_pages(self) -> None:
        """A listing of several pages is complete, and names nothing twice."""
        driver = self._broker._driver
        if driver.list_page is None:
            raise _Skipped("the driver's listings have no pages, or it does not say of which size")
        driver.list_page = PAGE
        stored = {self._put(b"x", self._name("p/")) for _ in range(2 * PAGE + 1)}
        found = [entry.path for entry in self._broker.list(f"{self._prefix}p/")]
        _must(set(found) == stored, f"{len(set(found))} objects listed where {len(stored)} are")
        _must(len(found) == len(stored), "an object is listed twice")

    def check_stat(self) -> None:
        """Size, checksum and time are those of the object."""
        data = entropy.token_bytes(5000)
        found = self._broker.stat(self._put(data))
        _must(found.size == 5000, f"stat says {found.size} bytes where 5000 were stored")
        if found.modified is not None:
            _must(found.modified.tzinfo is not None, "the time has no zone")
        if found.checksum is not None:
            kind, _colon, value = found.checksum.partition(":")
            _must(kind in ("sha256", "md5"), f"{kind!r} is not a kind of checksum")
            right = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
            _must(value == right, f"the {kind} is not that of the bytes")

    def check_clock(self) -> None:
        """The time of a new object is now."""
        locator = self._put(b"now")
        listed = [found for found in self._broker.list(self._prefix) if found.path == locator]
        times = [found.modified for found in (self._broker.stat(locator), *listed) if found.modified]
        if not times:
            raise _Skipped("the provider tells no times")
        off = max(abs(modified - clock.now()) for modified in times)
        _must(off < CLOCK_TOLERANCE, f"the place's clock is off by {off}")

    def check_vanished(self) -> None:
        """A place that is not there is an outage or a wrong option to every call: never absence, nor success."""
        if self._vanished is None:
            raise _Skipped("only tests can make a place vanish")
        gone = self._vanished()
        name = self._name()
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: gone.get(name),
            "a range": lambda: gone.get(name, 1, 1),
            "stat": lambda: gone.stat(name),
            "put": lambda: gone.put(name, b"x"),
            "delete": lambda: gone.delete(name),
            "list": lambda: list(gone.list(self._prefix)),
            "probe": gone.probe,
        }
        try:
            for what, call in calls.items():
                try:
                    call()
                except (NotFound, RangeError, InvalidKey) as error:
                    raise ContractBroken(f"{what} of a vanished place raised {error.code}") from error
                except BrokerError:
                    continue
                raise ContractBroken(f"{what} of a vanished place succeeded")
        finally:
            gone.retire()

    def check_threads(self) -> None:
        """Many calls at a time do not mix."""
        errors: list[str] = []

        def work(_number: int) -> None:
            try:
                for size in (10, 10_000, 300_000):
                    self._round_trip(size)
            except Exception as error:  # noqa: BLE001 - told by the caller's thread
                errors.append(f"{type(error).__name__}: {error}")

        with ThreadPoolExecutor(THREADS) as pool:  # waits for all of them, also when it is interrupted
            list(pool.map(work, range(THREADS)))
        _must(not errors, "; ".join(errors[:3]))

    def check_buffers(self) -> None:
        """Anything bytes-like is taken, and what comes back is bytes."""
        data = entropy.token_bytes(2000)
        for given in (bytearray(data), memoryview(data), memoryview(bytearray(b"x" + data))[1:]):
            got = self._broker.get(self._put(given))  # type: ignore[arg-type]
            _must(isinstance(got, bytes) and got == data, f"a {type(given).__name__} reads back differently")

    def check_storage_info(self) -> None:
        info = self._broker.info()
        _must(set(info) == {"total", "used", "available"}, "the capacity lacks total, used or available")
        total, used, available = info["total"], info["used"], info["available"]
        if total is not None and used is not None:
            _must(used <= total, "more is used than there is")
        if total is not None and available is not None:
            _must(available <= total, "more is available than there is")

    def check_no_secret_shown(self) -> None:
        """Nor in what is raised (with all causes and tracebacks) or logged while calls succeed and fail."""
        driver, name = self._broker._driver, self._name()
        with leaks.watch() as seen:
            seen.text(f"{self._broker!r} {driver!r} {driver}")
            locator = self._put(b"x")
            calls: list[Callable[[], object]] = [
                lambda: self._broker.get(name),
                lambda: self._broker.stat(name),
                lambda: self._broker.get(locator, 9, 1),
                lambda: self._broker.put("", b""),
                lambda: self._broker.delete(name),
                self._broker.probe,
            ]
            if self._vanished is not None:
                gone = self._vanished()
                calls += [
                    lambda: gone.get(name),
                    lambda: gone.put(name, b""),
                    lambda: list(gone.list()),
                    gone.retire,
                ]
            for call in calls:
                try:
                    call()
                except BrokerError as error:
                    seen.error(error)
        where = seen.find(self._secrets)
        _must(not where, f"a secret shows in {where}")
