"""The one word for a broker, and when it is "degraded"."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import call_command

from brokers import degraded, health, history
from brokers.errors import ReadOnly, Timeout, Unauthorized, Unavailable
from brokers.models import Broker, BrokerEvent
from brokers.services import set_draining, set_enabled
from brokers.state import State, state_of, words_of
from tests.brokers.conftest import faulty

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]


@pytest.fixture
def broker(clock, memory_broker) -> Broker:
    history.forget()
    return memory_broker


def now_of(broker: Broker) -> Broker:
    return Broker.objects.get(pk=broker.pk)


# -- states --------------------------------------------------------------------------------------------------


def test_every_state_by_what_really_happens(broker, clock):
    assert state_of(broker) == State.UP and words_of(broker) == "up"
    with faulty(broker) as driver:
        for error, operation, state in (
            (ReadOnly("ro"), "probe", State.READ_ONLY),
            (Timeout("slow"), "get", State.DOWN),
            (Unauthorized("revoked"), "get", State.UNAUTHORIZED),
        ):
            driver.fail(operation, error)
            row = health.poll(broker.pk)
            assert state_of(row) == state and words_of(row) == f"{state.label} ({error.code})"
            driver.clear()
            health.poll(broker.pk)
            assert state_of(health.poll(broker.pk)) == State.UP
        driver.capacity({"total": 10**9, "used": 10**9, "available": 0})
        assert state_of(health.poll(broker.pk)) == State.FULL
    health.poll(broker.pk)
    health.poll(broker.pk)
    set_draining(broker.pk, True)
    assert state_of(now_of(broker)) == State.DRAINING
    set_draining(broker.pk, False)
    Broker.objects.update(degraded_since=clock.now(), degraded_reason="slow", degraded_detail="get takes 9 s")
    assert words_of(now_of(broker)) == "degraded (slow)" and now_of(broker).writable
    assert state_of(set_enabled(broker.pk, False)) == State.DISABLED
    assert state_of(set_enabled(broker.pk, True)) == State.UP, "what was known before is old"
    assert {*State} - {State.UNKNOWN} == {
        "up", "degraded", "down", "read_only", "full", "unauthorized", "draining", "disabled",
    }  # fmt: skip
    assert state_of(Broker()) == State.UNKNOWN


def test_being_away_is_told_before_being_emptied(broker):
    set_draining(broker.pk, True)
    with faulty(broker) as driver:
        driver.fail("get", Unavailable("gone"))
        health.poll(broker.pk)
    out = io.StringIO()
    call_command("broker_list", stdout=out)
    assert out.getvalue().startswith("Memory: memory, domain memory, down (unavailable), draining")


def test_commands_print_state_room_and_limits(broker):
    out = io.StringIO()
    call_command("broker_list", "--json", stdout=out)
    [row] = json.loads(out.getvalue())
    assert (row["state"], row["health"], row["incident"]) == ("up", "online", None)
    assert row["limits"]["reserve"] == 64 * 1024 * 1024 and row["limits"]["max_rate"] is None


# -- degraded ------------------------------------------------------------------------------------------------


def calls(broker: Broker, count: int, seconds: float = 0.05, error=None, operation: str = "get") -> None:
    for _ in range(count):
        history.note(broker.pk, operation, seconds, error, 0, 0)
    history.flush()


def minutes(broker: Broker, clock, count: int, *work: tuple) -> None:
    """So many minutes of a worker, in each of which these calls are made."""
    for _ in range(count):
        for arguments in work:
            calls(broker, *arguments)
        clock.advance(minutes=1)
        degraded.watch()


FINE_READS = (10, 0.05)
SLOW_READS = (10, 4.0)
FAILING = (5, 0.05, Unavailable())


def changes() -> list[str]:
    kinds = BrokerEvent.objects.filter(kind__in=("degraded", "well_again")).order_by("id")
    return list(kinds.values_list("kind", flat=True))


def test_errors_make_it_degraded_after_a_dwell_and_well_again_after_a_longer_one(broker, clock):
    minutes(broker, clock, 20, FINE_READS)
    assert state_of(now_of(broker)) == State.UP
    minutes(broker, clock, 6, FINE_READS, FAILING)
    assert state_of(now_of(broker)) == State.UP, "the verdict is young"
    minutes(broker, clock, 4, FINE_READS, FAILING)
    row = now_of(broker)
    assert (state_of(row), row.degraded_reason) == (State.DEGRADED, "errors")
    assert "calls failed within 15 minutes" in row.degraded_detail
    assert row.readable and row.writable and row.reluctant
    minutes(broker, clock, 20, FINE_READS)
    assert state_of(now_of(broker)) == State.DEGRADED, "the window still has errors, or the dwell is not over"
    minutes(broker, clock, 20, FINE_READS)
    row = now_of(broker)
    assert state_of(row) == State.UP and row.degraded_reason == "" and not row.reluctant
    assert changes() == ["degraded", "well_again"]


def test_slow_against_its_own_past(broker, clock):
    minutes(broker, clock, 60, FINE_READS)
    minutes(broker, clock, 30, SLOW_READS)
    row = now_of(broker)
    assert (state_of(row), row.degraded_reason) == (State.DEGRADED, "slow")
    assert row.degraded_detail.startswith("get takes ") and "0.05 s in the week before" in row.degraded_detail
    minutes(broker, clock, 40, FINE_READS)
    assert state_of(now_of(broker)) == State.UP


def test_what_was_always_slow_is_not_degraded(broker, clock):
    minutes(broker, clock, 90, SLOW_READS)
    assert state_of(now_of(broker)) == State.UP and changes() == []


def test_polls_alone_show_a_slow_broker(broker, clock):
    for seconds, polls in ((0.05, 60), (2.0, 20)):
        for _ in range(polls):
            calls(broker, 1, seconds, None, "peek")
            clock.advance(minutes=5)
            degraded.watch()
    row = now_of(broker)
    assert state_of(row) == State.DEGRADED and row.degraded_detail.startswith("peek takes ")


def test_few_calls_prove_nothing(broker, clock):
    minutes(broker, clock, 30, (1, 9.0, Unavailable()))
    assert state_of(now_of(broker)) == State.UP


def test_one_bad_minute_changes_nothing(broker, clock):
    minutes(broker, clock, 20, FINE_READS)
    minutes(broker, clock, 1, (30, 0.05, Unavailable()))
    minutes(broker, clock, 3, (200, 0.05))
    minutes(broker, clock, 40, FINE_READS)
    assert changes() == []


def test_flapping_makes_no_storm(broker, clock):
    """A day in which every other quarter of an hour is bad."""
    for quarter in range(96):
        for _ in range(3):
            calls(broker, 40, 0.05, Unavailable() if quarter % 2 else None)
            clock.advance(minutes=5)
            degraded.watch()
    assert 1 <= len(changes()) <= 4, changes()


def test_of_two_that_judge_at_once_one_writes(broker, clock):
    Broker.objects.update(turning_since=clock.now())
    stale = now_of(broker)
    clock.advance(minutes=10)
    assert degraded._settle(stale, ("errors", "many")) is True
    assert degraded._settle(stale, ("errors", "many")) is False
    assert changes() == ["degraded"]


def test_a_broker_that_is_away_is_not_judged(broker, clock):
    with faulty(broker) as driver:
        driver.fail("get", Unavailable("gone"))
        health.poll(broker.pk)
    minutes(broker, clock, 20, (10, 0.05, Unavailable()))
    assert changes() == []
