"""Each layer by itself, and the order of all of them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest
from django.db import transaction

from brokers import entropy
from brokers.drivers.memory import MemoryBroker
from brokers.errors import (
    BrokerError,
    Corrupt,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RangeError,
    RateLimited,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from brokers.layers.call import LIMITS, Call, Limit
from brokers.layers.deadline import Deadline, Workers
from brokers.layers.guard import IoInTransaction
from brokers.layers.metrics import Metrics
from brokers.layers.retry import ATTEMPTS, Retry
from brokers.layers.throttle import Throttle
from brokers.open import CONCURRENCY, SPARE_THREADS, OpenBroker
from brokers.testing.faulty import FaultyBroker
from tests.brokers.conftest import SHORT

pytestmark = pytest.mark.only_on("sqlite")

SHORT_LIMITS = {name: Limit(SHORT, SHORT) for name in LIMITS}


@pytest.fixture
def broken():
    driver = FaultyBroker(MemoryBroker({"space": "layers"}))
    yield driver
    driver.clear()


@pytest.fixture
def opened(broken) -> OpenBroker:
    return OpenBroker(broken, "layered")


class Script:
    """A handler that does what a list says: an error is raised, anything else returned."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.calls: list[Call] = []
        self.timeouts: list[float] = []

    def __call__(self, call: Call) -> object:
        self.calls.append(call)
        self.timeouts.append(call.timeout)
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step


# -- guard -------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_guard_refuses_io_inside_a_transaction(opened, broken):
    opened.put("a", b"1")
    with transaction.atomic(), pytest.raises(IoInTransaction):
        opened.get("a")
    with transaction.atomic():
        with transaction.atomic(), pytest.raises(IoInTransaction):
            opened.put("b", b"1")
        with pytest.raises(IoInTransaction):
            list(opened.list())
    assert opened.get("a") == b"1"
    assert [c.operation for c in broken.calls] == ["put", "get"]


@pytest.mark.django_db(transaction=True)
def test_guard_sees_transactions_of_real_life_too(opened):
    with transaction.atomic(), pytest.raises(IoInTransaction):
        opened.info()
    opened.info()


# -- retry -------------------------------------------------------------------------------------------------


def retry(*steps: object, limits=LIMITS) -> tuple[Retry, Script]:
    script = Script(*steps)
    return Retry(script, limits, "x"), script


def test_temporary_errors_are_tried_again_with_growing_waits(clock):
    layer, script = retry(Unavailable(), Timeout(), Unavailable(), "ok")
    assert layer(Call("get", (), 0)) == "ok"
    assert len(script.calls) == 4 and len(clock.slept) == 3
    for slept, (low, high) in zip(clock.slept, [(0.1, 0.2), (0.2, 0.4), (0.4, 0.8)], strict=True):
        assert low <= slept <= high


def test_jitter_spreads_the_waits(clock):
    class Source(entropy.SystemSource):
        values = iter([0.0, 1.0])

        def random(self) -> float:
            return next(self.values)

    before = entropy.install(Source())
    try:
        layer, _script = retry(Unavailable(), Unavailable(), "ok")
        layer(Call("get", (), 0))
    finally:
        entropy.install(before)
    assert clock.slept == [0.1, 0.4]


@pytest.mark.parametrize(
    "error",
    [
        NotFound(),
        OutOfSpace(),
        ReadOnly(),
        Unauthorized(),
        Misconfigured(),
        Corrupt(),
        RangeError(),
        TooLarge(),
    ],
)
def test_permanent_errors_are_not_tried_again(clock, error):
    layer, script = retry(error)
    with pytest.raises(type(error)):
        layer(Call("get", (), 0))
    assert len(script.calls) == 1 and not clock.slept


def test_the_last_error_comes_out_when_tries_run_out(clock):
    layer, script = retry(*[Unavailable(str(n)) for n in range(10)])
    with pytest.raises(Unavailable, match=str(ATTEMPTS - 1)):
        layer(Call("get", (), 0))
    assert len(script.calls) == ATTEMPTS


def test_the_provider_says_how_long_to_wait(clock):
    layer, _script = retry(RateLimited("slow down", retry_after=7), "ok")
    assert layer(Call("get", (), 0)) == "ok" and clock.slept == [7]


def test_a_wait_beyond_the_deadline_is_not_begun(clock):
    layer, script = retry(RateLimited("slow down", retry_after=61))
    with pytest.raises(RateLimited):
        layer(Call("get", (), 0))
    assert not clock.slept and len(script.calls) == 1


def test_attempts_share_the_total_deadline(clock):
    class Slow(Script):
        def __call__(self, call: Call) -> object:
            clock.advance(seconds=call.timeout)
            return super().__call__(call)

    script = Slow(Timeout(), Timeout(), Timeout(), Timeout())
    with pytest.raises(Timeout):
        Retry(script, LIMITS, "x")(Call("put", (), 0))
    assert script.timeouts[0] == 30 and 29 < script.timeouts[1] < 30
    assert len(script.calls) == 2 and clock.monotonic() == pytest.approx(60)


def test_an_upload_whose_answer_was_lost_is_safe_to_repeat(clock, opened, broken):
    broken.fail("put", Timeout("answer lost"), on=1, after=True)
    locator = opened.put("cs/ab/key", b"bytes")
    assert opened.get(locator) == b"bytes" and [f.path for f in opened.list()] == ["cs/ab/key"]
    assert broken.count("put") == 2


# -- throttle ----------------------------------------------------------------------------------------------


def test_only_so_many_calls_run_at_a_time():
    running, most, lock, full = 0, 0, threading.Lock(), threading.Event()
    gate = threading.Event()

    def handler(call: Call) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 3:
                full.set()
        gate.wait(5)
        with lock:
            running -= 1

    layer = Throttle(handler, 3)
    threads = [threading.Thread(target=layer, args=(Call("get", (), 5),)) for _ in range(9)]
    for thread in threads:
        thread.start()
    assert full.wait(5)
    with pytest.raises(Unavailable, match="too many calls"):
        layer(Call("get", (), 0.01))
    gate.set()
    for thread in threads:
        thread.join()
    assert most == 3


def test_a_pause_holds_all_calls_back(clock):
    script = Script(RateLimited("slow down", retry_after=5), "ok", "ok")
    layer = Throttle(script, 2)
    with pytest.raises(RateLimited):
        layer(Call("get", (), 10))
    assert layer(Call("get", (), 10)) == "ok" and clock.slept == [5]
    assert script.timeouts[1] == 5
    assert layer(Call("get", (), 10)) == "ok" and clock.slept == [5]


def test_a_pause_longer_than_the_call_may_take_is_told_at_once(clock):
    layer = Throttle(Script(RateLimited("slow down", retry_after=100)), 2)
    with pytest.raises(RateLimited):
        layer(Call("get", (), 10))
    clock.advance(seconds=40)
    with pytest.raises(RateLimited) as caught:
        layer(Call("get", (), 10))
    assert caught.value.retry_after == 60 and not clock.slept


# -- deadline ----------------------------------------------------------------------------------------------


def test_a_hanging_call_times_out_and_its_thread_is_counted():
    gate = threading.Event()
    layer = Deadline(lambda call: gate.wait(10), 2, "x")
    for _ in range(2):
        with pytest.raises(Timeout):
            layer(Call("get", (), 0.05))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="2 calls to this broker hang"):
        layer(Call("get", (), 10))
    assert time.monotonic() - began < 1
    gate.set()
    for _ in range(200):
        if layer.workers.busy == 0:
            break
        time.sleep(0.01)
    assert layer(Call("get", (), 5)) is True


def test_errors_come_through_as_they_are():
    for error in (NotFound("x"), KeyError("bug")):
        with pytest.raises(type(error)):
            Deadline(Script(error), 1, "x")(Call("get", (), 5))


def test_threads_are_reused_and_never_keep_the_process():
    names = set()
    layer = Deadline(
        lambda call: names.add(threading.current_thread().name) or threading.get_ident(), 4, "one"
    )
    idents = {layer(Call("get", (), 5)) for _ in range(50)}
    assert len(idents) == 1 and names == {"broker one"}
    assert all(t.daemon for t in threading.enumerate() if t.name == "broker one")


def test_idle_threads_end_and_come_back(monkeypatch):
    monkeypatch.setattr("brokers.layers.deadline.IDLE_SECONDS", 0.02)
    workers = Workers(4, "idle")
    for _ in range(20):
        futures = [f for f in (workers.submit(lambda: 1) for _ in range(4)) if f]
        assert [f.result(5) for f in futures] == [1] * len(futures)
        time.sleep(0.02)
    workers.close()
    future = workers.submit(lambda: 2)
    assert future is not None and future.result(5) == 2


def test_the_thread_hop_costs_little():
    layer = Deadline(lambda call: None, 2, "x")
    layer(Call("get", (), 5))
    began = time.perf_counter()
    for _ in range(500):
        layer(Call("get", (), 5))
    assert (time.perf_counter() - began) / 500 < 0.005


def test_a_hanging_broker_does_not_stop_the_others(broken):
    hung = OpenBroker(broken, "hung", SHORT_LIMITS)
    well = OpenBroker(MemoryBroker({"space": "well"}), "well")
    broken.hang("get")
    with pytest.raises(Timeout):
        hung.get("a")
    assert well.put("a", b"1") == "a" and well.get("a") == b"1"
    assert hung.hanging >= 1


def test_when_all_threads_hang_the_answer_comes_at_once(clock, broken):
    hung = OpenBroker(broken, "hung", {name: Limit(0.02, 0.02) for name in LIMITS})
    broken.hang("get")
    threads = CONCURRENCY + SPARE_THREADS
    for _ in range(threads):
        with pytest.raises((Timeout, Unavailable)):
            hung.get("a")
    assert hung.hanging == threads
    with pytest.raises(Unavailable, match="hang"):
        hung.get("a")
    assert broken.count("get") == threads


# -- all of them -------------------------------------------------------------------------------------------


def test_a_listing_is_complete_or_raises(clock, broken):
    for number in range(2500):
        broken.inner.upload_file(b"", f"cs/{number:04}")
    opened = OpenBroker(broken)
    assert len({f.path for f in opened.list("cs/")}) == 2500
    broken.fail("list", Unavailable("first try"), on=2)
    assert len(list(opened.list("cs/"))) == 2500

    class Breaks(MemoryBroker):
        def list_files(self, path=""):
            for number, entry in enumerate(super().list_files(path)):
                if number == 1500:
                    raise Unavailable("between two pages")
                yield entry

    seen = []
    with pytest.raises(Unavailable):
        seen.extend(OpenBroker(Breaks({"space": "layers"})).list("cs/"))


def test_bytes_in_flight_do_not_change_when_the_caller_reuses_the_buffer(broken):
    opened = OpenBroker(broken, limits=SHORT_LIMITS)
    gate = broken.hang("put")
    buffer = bytearray(b"first")
    with pytest.raises((Timeout, Unavailable)):
        opened.put("a", memoryview(buffer))
    buffer[:] = b"other"
    gate.set()
    for _ in range(200):
        if opened.hanging == 0:
            break
        time.sleep(0.01)
    assert opened.get("a") == b"first"


def test_latency_follows_what_callers_wait(clock, broken):
    opened = OpenBroker(broken)
    assert opened.latency("get") is None
    opened.put("a", b"1")
    broken.delay("get", 1.0)
    opened.get("a")
    assert opened.latency("get") == 1.0
    broken.clear()
    opened.get("a")
    assert opened.latency("get") == pytest.approx(0.8)
    broken.fail("get", Unauthorized("quick refusal"))
    with pytest.raises(Unauthorized):
        opened.get("a")
    assert opened.latency("get") == pytest.approx(0.8)


def test_failures_are_counted_by_code(clock):
    layer = Metrics(Script("ok", NotFound(), NotFound(), Unavailable(), ValueError("bug")))
    for _ in range(5):
        with suppress(BrokerError, ValueError):
            layer(Call("get", (), 1))
    assert layer.operations["get"].calls == 5
    assert dict(layer.operations["get"].errors) == {"not_found": 2, "unavailable": 1}
