"""What an operator allows a broker: capacity with a reserve, calls at a time, rates, traffic in a month."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from brokers import health, history, limits
from brokers.errors import OverLimit, RateLimited
from brokers.layers.call import Call
from brokers.layers.metrics import Metrics
from brokers.layers.retry import Retry
from brokers.layers.throttle import RATE_PATIENCE, Allowance, Throttle, allowance_of
from brokers.models import Broker, BrokerEvent, BrokerSample, Health
from brokers.open import LIMITS, open_broker
from brokers.services import InvalidOptions, add_broker, update_broker
from tests.brokers.conftest import faulty
from tests.brokers.test_layers import Script

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
MB = 1024 * 1024


@pytest.fixture(autouse=True)
def one_process(settings) -> None:
    settings.CLOUDSTORE_LIMIT_SHARES = 1


@pytest.fixture
def broker(clock, memory_broker) -> Broker:
    history.forget()
    return memory_broker


def now_of(broker: Broker) -> Broker:
    return Broker.objects.get(pk=broker.pk)


# -- sizes and fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("500", 500), ("1.5G", 1_500_000_000), ("64Mi", 64 * MB), ("2 TiB", 2 * 2**40), ("3kb", 3000)],
)
def test_sizes_as_people_write_them(text, size):
    assert limits.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.2.3", "5 apples", "1i"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="no size"):
        limits.parse_size(text)


def test_limits_are_set_and_removed_by_commands(broker):
    call_command(
        "broker_set", "Memory", "--capacity-limit", "2G", "--reserve", "100Mi", "--max-rate", "5M",
        "--max-requests", "2.5", "--max-concurrency", "4", "--monthly-traffic", "1T",
        "--monthly-counts", "both", "--monthly-hard", "yes", verbosity=0,
    )  # fmt: skip
    row = now_of(broker)
    assert limits.of(row) == {
        "capacity_limit": 2 * 10**9, "reserve": 100 * MB, "max_concurrency": 4, "max_rate": 5_000_000,
        "max_requests": 2.5, "monthly_traffic": 10**12, "monthly_counts": "both", "monthly_hard": True,
    }  # fmt: skip
    assert row.revision == broker.revision + 1, "open connections are replaced"
    assert "max_rate" in BrokerEvent.objects.filter(kind="changed").latest("id").detail
    call_command("broker_set", "Memory", "--max-rate", "none", "--reserve", "none", verbosity=0)
    row = now_of(broker)
    assert row.max_rate is None and row.reserve == 64 * MB and row.max_concurrency == 4
    for option, value in (("--max-rate", "fast"), ("--max-concurrency", "0"), ("--reserve", "-5")):
        with pytest.raises(CommandError):
            call_command("broker_set", "Memory", f"{option}={value}", verbosity=0)
    with pytest.raises(InvalidOptions, match="there is no limit"):
        update_broker(broker.pk, allowed={"name": "x"})


def test_limits_come_with_a_new_broker(clock):
    row = add_broker("New", "memory", "d", {"space": "new"}, allowed={"capacity_limit": 10**9, "max_rate": 7})
    assert (row.capacity_limit, row.max_rate) == (10**9, 7)


# -- capacity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "cap", "held", "used", "room"),
    [
        (None, None, None, None, None),
        (1000, None, None, None, 900),
        (None, 500, 100, None, 300),
        (1000, 500, 100, None, 300),
        (250, 500, 100, None, 150),
        (None, 500, None, 300, 100),  # not counted yet: all that is used may be ours
        (None, 500, 600, None, 0),
        (50, None, None, None, 0),
    ],
)
def test_room_is_what_is_left_of_both_without_the_reserve(available, cap, held, used, room):
    row = Broker(available=available, capacity_limit=cap, held=held, used=used, reserve=100)
    assert row.room == room


def test_a_cap_makes_it_full_and_a_margin_ends_that(broker):
    update_broker(broker.pk, allowed={"capacity_limit": 1000 * MB, "reserve": 100 * MB})

    def polled(held: int) -> Broker:
        Broker.objects.update(held=held * MB)
        return health.poll(broker.pk)

    assert polled(890).health == Health.ONLINE
    row = polled(901)
    assert row.health == Health.FULL and not row.writable and row.readable
    assert "left of the 1048576000 that it may hold" in row.health_detail
    for _ in range(3):
        assert polled(899).health == Health.FULL, "a little room is not enough to come back"
    assert polled(830).health == Health.FULL, "nor is one good poll"
    assert polled(830).health == Health.ONLINE


def test_the_reserve_holds_for_what_the_provider_tells(broker):
    with faulty(broker) as driver:
        driver.capacity({"total": 10**10, "used": 0, "available": 300 * MB})
        assert health.poll(broker.pk).health == Health.ONLINE
        Broker.objects.update(reserve=400 * MB)
        assert health.poll(broker.pk).health == Health.FULL


# -- calls at a time, and rates ------------------------------------------------------------------------------


def throttle(allowance: Allowance, *steps: object, concurrency: int = 8) -> tuple[Throttle, Script]:
    script = Script(*steps)
    return Throttle(script, concurrency, allowance), script


def test_a_rate_holds_over_many_calls(clock):
    layer, _script = throttle(Allowance(bytes_per_second=1 * MB), *(["ok"] * 20))
    for number in range(20):
        layer(Call("put", (f"k{number}", b"x" * MB), 30.0))
    assert clock.monotonic() == pytest.approx(19, abs=0.01), "20 MiB, the first at once"


def test_reads_are_counted_by_what_came(clock):
    layer, _script = throttle(Allowance(bytes_per_second=1 * MB), b"x" * 5 * MB, b"y")
    layer(Call("get", ("k", 0, None), 30.0))
    assert clock.monotonic() == 0
    layer(Call("get", ("k", 0, 1), 30.0))
    assert clock.monotonic() == pytest.approx(4, abs=0.01)


def test_requests_in_a_second(clock):
    layer, _script = throttle(Allowance(requests_per_second=2), *(["ok"] * 9))
    for _ in range(9):
        layer(Call("stat", ("k",), 15.0))
    assert clock.monotonic() == pytest.approx(3.5, abs=0.01)


def test_unused_rate_is_not_saved_up(clock):
    layer, _script = throttle(Allowance(requests_per_second=1), *(["ok"] * 3))
    clock.advance(hours=5)
    for _ in range(3):
        layer(Call("stat", ("k",), 15.0))
    assert sum(clock.slept) == pytest.approx(2, abs=0.01)


def test_waiting_for_the_rate_takes_nothing_of_the_calls_time_and_is_no_latency(clock):
    layer, script = throttle(Allowance(bytes_per_second=1 * MB), "ok", "ok")
    seen: list[Any] = []
    metrics = Metrics(Retry(layer, LIMITS, "x"), lambda *told: seen.append(told))
    for _ in range(2):
        metrics(Call("put", ("k", b"x" * 60 * MB), 0))
    assert clock.monotonic() == pytest.approx(60, abs=0.01)
    assert script.timeouts == [30, 30]
    assert [(name, seconds, error, up) for name, seconds, error, up, _down in seen] == [
        ("put", 0.0, None, 60 * MB)
    ] * 2


def test_more_than_can_be_waited_for_is_refused_at_once_and_is_no_failure_of_the_broker(clock):
    layer, script = throttle(Allowance(bytes_per_second=1000), "ok")
    seen: list[Any] = []
    metrics = Metrics(Retry(layer, LIMITS, "x"), lambda *told: seen.append(told))
    metrics(Call("put", ("k", b"x" * 1000 * int(RATE_PATIENCE + 5)), 0))
    with pytest.raises(OverLimit):
        metrics(Call("put", ("k", b"x"), 0))
    assert len(script.calls) == 1 and len(seen) == 1 and clock.slept == []


def test_health_is_never_held_back(clock):
    layer, _script = throttle(Allowance(1, 1.0, 0.001), "ok", b"m", None, None)
    layer(Call("put", ("k", b"x" * 100), 30.0))
    for operation in ("peek", "probe", "info"):
        layer(Call(operation, ("m",), 10.0))
    assert clock.slept == []


def test_a_pause_of_the_provider_holds_beside_the_rate(clock):
    layer, _script = throttle(Allowance(requests_per_second=100), RateLimited(retry_after=3), "ok")
    with pytest.raises(RateLimited):
        layer(Call("stat", ("k",), 15.0))
    layer(Call("stat", ("k",), 15.0))
    assert clock.monotonic() == pytest.approx(3, abs=0.05)


def test_calls_at_a_time(memory_broker):
    update_broker(memory_broker.pk, allowed={"max_concurrency": 2})
    with faulty(now_of(memory_broker)) as driver:
        driver.hang("get")
        opened = open_broker(now_of(memory_broker))
        threads = [threading.Thread(target=opened.get, args=("cs-marker",)) for _ in range(5)]
        for thread in threads:
            thread.start()
        while driver.count("get") < 2:
            threads[0].join(0.01)
        assert not opened._throttle._slots.acquire(blocking=False), "no third one gets through"
        assert driver.count("get") == 2 and opened.hanging == 2
        driver.clear()
        for thread in threads:
            thread.join()
        assert driver.count("get") == 5


def test_processes_share_the_limits(settings):
    settings.CLOUDSTORE_LIMIT_SHARES = 4
    row = Broker(max_concurrency=6, max_rate=1000, max_requests=2.0)
    assert allowance_of(row) == Allowance(1, 250, 0.5)
    assert allowance_of(Broker(max_concurrency=2)).concurrency == 1
    assert allowance_of(Broker()) == Allowance()


def test_an_open_broker_has_the_limits_of_its_row(broker, clock):
    row = update_broker(broker.pk, allowed={"max_rate": 1 * MB})
    opened = open_broker(row)
    for name in ("cs/a", "cs/b", "cs/c"):
        opened.put(name, b"x" * MB)
    assert sum(clock.slept) == pytest.approx(2, abs=0.01)


# -- the month -----------------------------------------------------------------------------------------------


def read(broker: Broker, size: int) -> None:
    history.note(broker.pk, "get", 0.1, None, 0, size)
    history.flush()


def test_the_months_traffic_is_used_up_until_the_next_month(broker, clock):
    update_broker(broker.pk, allowed={"monthly_traffic": 1000})
    read(broker, 999)
    assert limits.watch_traffic() == 0 and not now_of(broker).over_traffic
    read(broker, 1)
    assert limits.watch_traffic() == 1 and limits.watch_traffic() == 0
    row = now_of(broker)
    assert row.over_traffic and row.traffic_over_until == datetime(2030, 2, 1, tzinfo=UTC)
    assert row.reluctant and row.readable and row.writable
    assert open_broker(row).peek("cs-marker"), "users still read"
    clock.advance(days=31)
    assert not now_of(broker).over_traffic and limits.watch_traffic() == 0
    kinds = list(BrokerEvent.objects.filter(kind__startswith="traffic").values_list("kind", flat=True))
    assert kinds == ["traffic_used_up"]


def test_a_higher_limit_ends_it(broker, clock):
    update_broker(broker.pk, allowed={"monthly_traffic": 1000})
    read(broker, 1000)
    limits.watch_traffic()
    assert not update_broker(broker.pk, allowed={"monthly_traffic": 5000}).over_traffic
    assert limits.watch_traffic() == 0
    update_broker(broker.pk, allowed={"monthly_traffic": 500})
    assert limits.watch_traffic() == 1
    update_broker(broker.pk, allowed={"monthly_traffic": None})
    assert not now_of(broker).over_traffic


def test_uploads_count_when_told(broker, clock):
    update_broker(broker.pk, allowed={"monthly_traffic": 1000, "monthly_counts": "up"})
    read(broker, 5000)
    assert limits.watch_traffic() == 0
    open_broker(now_of(broker)).put("cs/a", b"x" * 1000)
    history.flush()
    assert limits.watch_traffic() == 1


def test_a_hard_limit_refuses_objects_and_lets_health_be_asked(broker, clock):
    opened = open_broker(update_broker(broker.pk, allowed={"monthly_traffic": 10, "monthly_hard": True}))
    locator = opened.put("cs/a", b"x" * 100)
    assert opened.get(locator) == b"x" * 100
    history.flush()
    limits.watch_traffic()
    row = now_of(broker)
    with faulty(row) as driver:
        for call in (lambda: open_broker(row).get(locator), lambda: open_broker(row).put("cs/b", b"y")):
            with pytest.raises(OverLimit):
                call()
        assert driver.calls == [], "the provider was not asked"
        assert health.poll(row.pk).health == Health.ONLINE
    history.flush()
    assert sum(BrokerSample.objects.values_list("failures", flat=True)) == 0
    clock.advance(days=31)
    assert open_broker(now_of(broker)).get(locator) == b"x" * 100


def test_a_refusal_by_the_operators_limit_causes_no_poll(broker, clock):
    before = now_of(broker).check_at
    health.note_failure(broker.pk, OverLimit())
    assert now_of(broker).check_at == before
