"""The history: counted in memory, merged from many processes, folded as it ages."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, connections
from django.test.utils import CaptureQueriesContext

from brokers import histogram, history
from brokers.commands import JsonCommand
from brokers.errors import NotFound, OutOfSpace, Unauthorized, Unavailable
from brokers.history import DAY, FINE, HOUR
from brokers.models import Broker, BrokerSample
from brokers.open import open_broker
from tests.brokers.conftest import faulty

pytestmark = pytest.mark.django_db


@pytest.fixture
def broker(clock, memory_broker) -> Broker:
    history.forget()
    return memory_broker


def note(broker: Broker, seconds: float = 0.1, error=None, up: int = 0, down: int = 0, operation="get"):
    history.note(broker.pk, operation, seconds, error, up, down)


# -- histograms ----------------------------------------------------------------------------------------------


def test_a_percentile_is_right_to_a_fifth():
    for seconds in (0.0004, 0.001, 0.0123, 0.5, 1.0, 3.7, 59.0, 900.0):
        found = histogram.quantile({histogram.step_of(seconds): 1}, 0.95)
        if seconds > 0.001:
            assert abs(math.log2(found / seconds)) <= 0.26, seconds
    assert histogram.quantile({}, 0.5) is None
    assert int(histogram.step_of(10**9)) == histogram.LAST


def test_percentiles_of_a_mixture():
    steps: dict[str, int] = {}
    for number in range(100):
        histogram.add(steps, {histogram.step_of(0.01 if number < 90 else 2.0): 1})
    assert histogram.quantile(steps, 0.5) == pytest.approx(0.01, rel=0.2)
    assert histogram.quantile(steps, 0.9) == pytest.approx(0.01, rel=0.2)
    assert histogram.quantile(steps, 0.95) == pytest.approx(2.0, rel=0.2)


# -- counting and writing ------------------------------------------------------------------------------------


def test_calls_of_a_broker_are_counted_and_cost_no_query(broker):
    opened = open_broker(broker)
    with CaptureQueriesContext(connection) as queries:
        locator = opened.put("cs/a", b"x" * 1000)
        assert opened.get(locator, 10, 100) == b"x" * 100
        with pytest.raises(NotFound):
            opened.get("cs/none")
    assert len(queries) == 0 and not BrokerSample.objects.exists()
    assert history.flush() == 1 and history.flush() == 0
    row = BrokerSample.objects.get()
    assert (row.span, row.start, row.broker_id) == (FINE, datetime(2030, 1, 1, tzinfo=UTC), broker.pk)
    assert (row.calls, row.bytes_up, row.bytes_down) == (3, 1000, 100)
    assert (row.failures, row.errors) == (0, {"not_found": 1}), "a missing object is no failure of the broker"
    assert sum(row.latency["get"].values()) == 2 and sum(row.latency["put"].values()) == 1


def test_errors_by_kind_and_what_speaks_against_a_broker(broker):
    for error in (Unavailable(), Unavailable(), Unauthorized(), OutOfSpace(), NotFound(), None):
        note(broker, error=error)
    history.flush()
    row = BrokerSample.objects.get()
    assert (row.calls, row.failures) == (6, 3)
    assert row.errors == {"unavailable": 2, "unauthorized": 1, "out_of_space": 1, "not_found": 1}


def test_a_failing_call_is_counted_once_with_all_its_tries(broker):
    with faulty(broker) as driver:
        driver.fail("get", Unavailable())
        with pytest.raises(Unavailable):
            open_broker(broker).get("cs/a")
        assert driver.count("get") > 1
    history.flush()
    assert BrokerSample.objects.get().errors == {"unavailable": 1}


def test_room_is_kept_with_the_poll(broker, clock):
    history.note_capacity(broker.pk, 10, 90)
    history.flush()
    history.note_capacity(broker.pk, 11, 89)
    note(broker)
    history.flush()
    row = BrokerSample.objects.get()
    assert (row.used, row.available, row.calls) == (11, 89, 1)


def test_each_five_minutes_have_a_row(broker, clock):
    for _ in range(3):
        note(broker)
        clock.advance(minutes=5)
    assert history.flush() == 3
    assert [row.start.minute for row in BrokerSample.objects.order_by("start")] == [0, 5, 10]


def test_two_that_write_the_same_row_at_once_both_count(broker, monkeypatch):
    """The other process writes between this one's read and its write."""
    note(broker, down=1)
    real = history.Counts.add
    met = []

    def add(self, other):
        if isinstance(other, BrokerSample) and not met:
            met.append(other.revision)
            BrokerSample.objects.filter(pk=other.pk).update(revision=7, calls=10, bytes_down=100)
        real(self, other)

    monkeypatch.setattr(history.Counts, "add", add)
    history.flush()
    row = BrokerSample.objects.get()
    assert met == [0] and (row.calls, row.bytes_down, row.revision) == (11, 101, 8)


@pytest.mark.django_db(transaction=True)
def test_many_processes_add_up(clock):
    broker = Broker.objects.create(name="m", driver="memory", domain="d")
    writers, rounds = 4, 10
    barrier = threading.Barrier(writers)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            barrier.wait()
            for _ in range(rounds):
                counts = history.Counts(calls=1, bytes_up=3, errors={"timeout": 1}, latency={"get": {"4": 1}})
                while True:
                    try:
                        history._merge(broker.pk, FINE, history.start_of(clock.now(), FINE), counts)
                        break
                    except DatabaseError:  # as a process does: the counts wait for the next time
                        continue
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    row = BrokerSample.objects.get()
    done = writers * rounds
    assert (row.calls, row.bytes_up, row.errors) == (done, 3 * done, {"timeout": done})
    assert row.latency == {"get": {"4": done}}


def test_counts_wait_while_the_database_is_away(broker, monkeypatch, clock):
    note(broker, down=5)
    with monkeypatch.context() as patched:
        patched.setattr(history, "_merge", lambda *_: (_ for _ in ()).throw(DatabaseError("gone")))
        assert history.flush() == 0
    note(broker, down=2)
    assert history.flush() == 1
    assert BrokerSample.objects.get().bytes_down == 7


def test_memory_is_bounded_while_the_database_is_away(broker, clock):
    for _ in range(history.WAITING + 20):
        note(broker)
        clock.advance(minutes=5)
    assert len(history._counts) == history.WAITING


def test_a_broker_that_is_gone_leaves_nothing_behind(broker):
    note(broker)
    Broker.objects.filter(pk=broker.pk).delete()
    assert history.flush() == 0 and history.flush() == 0 and not history._counts


def test_a_child_does_not_write_its_parents_counts(broker):
    note(broker)
    pid = os.fork()
    if pid == 0:
        os._exit(len(history._counts))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert history._counts


@pytest.mark.only_on("sqlite")
def test_a_process_writes_by_itself_and_at_its_end(tmp_path):
    """A real process with its thread: what it counted is written while it runs, and the rest when it ends."""
    code = """
import django, json, sys, threading
django.setup()
from django.core.management import call_command
call_command("migrate", "brokers", verbosity=0)
from brokers import history
from brokers.models import Broker, BrokerSample
broker = Broker.objects.create(name="m", driver="memory", domain="d")
wrote = threading.Event()
real = history.flush
def flush():
    done = real()
    if done:
        wrote.set()
    return done
history.flush = flush
history.note(broker.pk, "get", 0.1, None, 0, 1)
history.start(0.01)
assert wrote.wait(30)
first = sum(BrokerSample.objects.values_list("calls", flat=True))
history._flusher._seconds = 3600
history._flusher.stop()
history.note(broker.pk, "get", 0.1, None, 0, 1)
print(first)
"""
    env = {**os.environ, "CLOUDSTORE_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "cloudstore.settings"}
    env.pop("DATABASE_URL", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]
    import sqlite3

    with sqlite3.connect(tmp_path / "cloudstore.sqlite3") as rows:
        assert rows.execute("select sum(calls) from brokers_brokersample").fetchone() == (2,)


def test_commands_write_what_they_asked(broker, capsys):
    class Command(JsonCommand):
        def handle(self, *args, **options):
            open_broker(broker).put("cs/a", b"12345")
            self.report(options, {"done": True}, "done")

    call_command(Command(), "--json")
    assert json.loads(capsys.readouterr().out) == {"done": True}
    assert BrokerSample.objects.get().bytes_up == 5


# -- ageing --------------------------------------------------------------------------------------------------


def fill(broker: Broker, clock, steps: int, minutes: int = 5) -> None:
    for _ in range(steps):
        note(broker, 0.1, down=7)
        history.flush()
        clock.advance(minutes=minutes)


def totals() -> tuple[int, int, int]:
    counts = [(r.calls, r.bytes_down, sum(r.latency["get"].values())) for r in BrokerSample.objects.all()]
    return tuple(map(sum, zip(*counts, strict=True)))


def test_rows_become_fewer_and_nothing_is_lost(broker, clock):
    fill(broker, clock, 36)  # three hours
    assert history.compact() == 0, "young rows stay"
    clock.advance(days=2)
    assert history.compact() == 36
    assert set(BrokerSample.objects.values_list("span", flat=True)) == {HOUR}
    assert [row.calls for row in BrokerSample.objects.order_by("start")] == [12, 12, 12]
    assert totals() == (36, 252, 36)
    clock.advance(days=36)
    assert history.compact() == 3
    [row] = BrokerSample.objects.all()
    assert (row.span, row.start.hour, row.calls, row.bytes_down) == (DAY, 0, 36, 252)
    clock.advance(days=401)
    assert history.compact() == 1 and not BrokerSample.objects.exists()


def test_a_year_is_less_than_two_thousand_rows(broker, clock):
    """By the retention alone, without simulating each row."""
    most = sum(kept.total_seconds() / span for span, kept in history.KEPT.items())
    assert most + 24 + 12 < 2000


def test_of_two_that_fold_at_once_one_does(broker, clock):
    fill(broker, clock, 12)
    rows = list(BrokerSample.objects.values_list("pk", "revision"))
    start = history.start_of(clock.now() - timedelta(hours=1), HOUR)
    assert history._fold(broker.pk, HOUR, start, rows) == 12
    assert history._fold(broker.pk, HOUR, start, rows) == 0
    assert totals() == (12, 84, 12)


def test_a_row_that_changes_while_it_is_folded_is_left_for_later(broker, clock):
    fill(broker, clock, 12)
    rows = list(BrokerSample.objects.values_list("pk", "revision"))
    BrokerSample.objects.filter(pk=rows[-1][0]).update(calls=2, revision=9)
    start = history.start_of(clock.now() - timedelta(hours=1), HOUR)
    assert history._fold(broker.pk, HOUR, start, rows) == 0
    assert BrokerSample.objects.filter(span=FINE).count() == 12, "the transaction was undone"


# -- asking --------------------------------------------------------------------------------------------------


def test_a_series_for_a_chart(broker, clock):
    begin = clock.now()
    fill(broker, clock, 24)
    note(broker, 2.0, Unavailable(), up=50)
    history.flush()
    points = history.series(broker.pk, begin, clock.now() + timedelta(hours=1))
    assert [(p.start.hour, p.calls, p.span) for p in points] == [(0, 12, HOUR), (1, 12, HOUR), (2, 1, HOUR)]
    assert points[2].error_rate == 1 and points[2].bytes_up == 50
    assert points[0].quantile("get", 0.95) == pytest.approx(0.1, rel=0.2)
    assert len(history.series(broker.pk, begin, clock.now(), FINE)) == 24
    clock.advance(days=3)
    history.compact()
    again = history.series(broker.pk, begin, clock.now(), FINE)
    assert [(p.span, p.calls) for p in again] == [(HOUR, 12), (HOUR, 12), (HOUR, 1)]
    assert [p.calls for p in history.series(broker.pk, begin, clock.now(), DAY)] == [25]
    with pytest.raises(ValueError, match="300"):
        history.series(broker.pk, begin, clock.now(), 60)


def test_the_traffic_of_a_month_is_the_calendars(broker, clock):
    clock.advance(days=30, hours=23, minutes=59)  # the last minute of January
    note(broker, down=100, up=10)
    clock.advance(minutes=2)
    note(broker, down=7, up=1)
    history.flush()
    now = clock.now()
    assert history.month_of(now) == (datetime(2030, 2, 1, tzinfo=UTC), datetime(2030, 3, 1, tzinfo=UTC))
    assert [history.traffic(broker.pk, now, kind) for kind in ("down", "up", "both")] == [7, 1, 8]
    clock.advance(days=20)
    history.compact()
    assert history.traffic(broker.pk, now) == 7
    assert history.traffic(broker.pk, now - timedelta(hours=1), "both") == 110
