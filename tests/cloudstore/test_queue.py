"""Sending hints: quick when the queue is up, and neither slow nor failing when it is not."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
from celery import Celery

from cloudstore.celery import HintTask
from cloudstore.celery import app as product_app
from tests.servers.valkey import ValkeyServer

pytestmark = pytest.mark.only_on("sqlite")


def hint() -> None:
    """Does nothing."""


def app_at(url: str) -> Celery:
    """The product's Celery settings on another queue, with one small task."""
    app = Celery("tests", task_cls="cloudstore.celery:HintTask", set_as_current=False)
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.conf.broker_url = url
    app.task(name="tests.hint")(hint)
    return app


@pytest.fixture(autouse=True)
def send_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HintTask, "_quiet_until", float("-inf"))


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.stop()


def sending_takes(app: Celery) -> float:
    before = time.monotonic()
    app.tasks["tests.hint"].delay()
    return time.monotonic() - before


def waiting(app: Celery) -> int:
    with app.connection_for_write() as connection:
        return int(connection.default_channel.client.llen("celery"))


def test_product_tasks_are_hints() -> None:
    assert issubclass(product_app.Task, HintTask)


def test_a_hint_waits_in_the_queue(valkey: ValkeyServer) -> None:
    app = app_at(valkey.url)
    app.tasks["tests.hint"].delay()
    assert waiting(app) == 1


def test_no_queue_is_quick_and_no_error(expect_log) -> None:
    expect_log("The queue cannot be reached")
    app = app_at("redis+socket:///nonexistent/valkey.sock")
    assert sending_takes(app) < 1
    assert sending_takes(app) < 0.05, "after a failure there is a pause"


def test_a_queue_behind_a_dead_address_costs_one_short_time_out(expect_log) -> None:
    expect_log("The queue cannot be reached")
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        clients = [socket.socket() for _ in range(3)]  # fill the backlog: a further connect gets no answer
        for client in clients:
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        app = app_at(f"redis://127.0.0.1:{full.getsockname()[1]}/0")
        assert sending_takes(app) < 6
        assert sending_takes(app) < 0.05
        for client in clients:
            client.close()


def test_a_frozen_queue_gives_up(valkey: ValkeyServer, expect_log) -> None:
    expect_log("The queue cannot be reached")
    app = app_at(valkey.url)
    app.tasks["tests.hint"].delay()
    valkey.freeze()
    assert sending_takes(app) < 8
    valkey.thaw()


def test_sending_works_again_after_the_queue_came_back(
    valkey: ValkeyServer, expect_log, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log("The queue cannot be reached")
    app = app_at(valkey.url)
    app.tasks["tests.hint"].delay()
    valkey.kill()
    assert sending_takes(app) < 1
    valkey.start()
    monkeypatch.setattr(HintTask, "_quiet_until", float("-inf"))
    kept = waiting(app)  # 1, or 0 when it was killed before it wrote: a lost hint costs nothing
    app.tasks["tests.hint"].delay()
    assert waiting(app) == kept + 1


def test_publishing_in_a_fresh_process_gives_up_at_exit_too(tmp_path) -> None:
    """A command that sends a hint without a queue ends at once, with success."""
    script = textwrap.dedent("""
        import time, tests.settings, os
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        from tests.cloudstore.test_queue import app_at
        before = time.monotonic()
        app_at("redis+socket:///nonexistent/valkey.sock").tasks["tests.hint"].delay()
        assert time.monotonic() - before < 1.5
    """)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
