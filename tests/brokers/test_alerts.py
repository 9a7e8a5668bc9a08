"""Alerts: noted once, sent together, tried again, signed; a real server on the loopback takes them."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.core import mail
from django.core.management import CommandError, call_command

from brokers import alerts, health, tasks
from brokers.errors import Timeout, Unavailable
from brokers.layers.guard import IoInTransaction
from brokers.models import Broker, BrokerAlert
from brokers.services import add_broker, set_enabled
from brokers.testing.faulty import FaultyBroker
from tests.brokers.conftest import faulty
from tests.kit.clock import VirtualClock

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
SECRET = "a secret that signs"


class Hook:
    """A webhook's server: answers what it is told to, remembers what came."""

    def __init__(self) -> None:
        self.came: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.came.append((self.path, dict(self.headers), body))
                status, headers = hook.answers.pop(0) if hook.answers else (204, {})
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/hook?token=t0k3n"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def changes(self) -> list[list[tuple[str, str, str]]]:
        """Message by message: broker, before, after."""
        found = [json.loads(body)["changes"] for _path, _headers, body in self.came]
        return [[(c["broker"], c["before"], c["after"]) for c in message] for message in found]


@pytest.fixture(scope="module")
def server() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


@pytest.fixture
def hook(server: Hook, settings: Any) -> Hook:
    server.came.clear()
    server.answers.clear()
    settings.CLOUDSTORE_ALERT_WEBHOOK = server.address
    settings.CLOUDSTORE_ALERT_SECRET = SECRET
    return server


@pytest.fixture
def to_mail(settings: Any) -> None:
    settings.CLOUDSTORE_ALERT_MAIL = ["ops@example.com", "boss@example.com"]


@pytest.fixture
def brokers(clock: VirtualClock) -> list[Broker]:
    return [add_broker(f"m{n}", "memory", f"d{n}", {"space": f"alerts-{n}"}) for n in range(3)]


def down(driver: FaultyBroker, broker: Broker, error: Exception | None = None) -> None:
    driver.fail("get", error or Unavailable("no route to host"))
    health.poll(broker.pk)


def up(driver: FaultyBroker, broker: Broker) -> None:
    driver.clear()
    health.poll(broker.pk)
    health.poll(broker.pk)


def work(clock: VirtualClock, seconds: float = 31) -> int:
    """What the workers do, with time to gather."""
    tasks.watch_brokers()
    clock.advance(seconds=seconds)
    return tasks.send_alerts()


def test_down_and_up_again_are_told_by_both_channels(brokers, clock, hook, to_mail):
    assert work(clock) == 0 and not BrokerAlert.objects.exists(), "new brokers that are well are no news"
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
        assert mail.outbox == [] and hook.came == [], "a poll sends nothing"
        assert work(clock) == 2
        assert work(clock) == 0, "told once"
        up(driver, brokers[0])
        assert work(clock) == 2
    assert hook.changes() == [[("m0", "up", "down")], [("m0", "down", "up")]]
    first, second = mail.outbox
    assert first.to == ["ops@example.com", "boss@example.com"]
    assert first.subject == "[CloudStore] m0 is down" and second.subject == "[CloudStore] m0 is up"
    assert "m0 is down (unavailable), was up: no route to host" in first.body


def test_the_webhook_is_signed(brokers, clock, hook):
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
        work(clock)
    [(path, headers, body)] = hook.came
    assert path == "/hook?token=t0k3n" and headers["Content-Type"] == "application/json"
    signed = headers["X-CloudStore-Timestamp"].encode() + b"." + body
    assert (
        headers["X-CloudStore-Signature"]
        == "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    )
    message = json.loads(body)
    assert message["event"] == "broker_state" and message["site"].startswith("http")
    [change] = message["changes"]
    assert change["reason"] == "unavailable" and change["id"] == BrokerAlert.objects.get().pk


def test_without_a_secret_nothing_is_signed(brokers, clock, hook, settings):
    settings.CLOUDSTORE_ALERT_SECRET = ""
    assert alerts.test() == {"webhook": ""}
    assert "X-CloudStore-Signature" not in hook.came[0][1]


def test_ten_that_fail_at_once_make_one_mail(clock, to_mail, hook):
    ten = [add_broker(f"t{n}", "memory", f"d{n}", {"space": f"ten-{n}"}) for n in range(10)]
    work(clock)
    for broker in ten:
        with faulty(broker) as driver:
            down(driver, broker)
        tasks.watch_brokers()
        clock.advance(seconds=2)
    clock.advance(seconds=10)
    assert tasks.send_alerts() == 20
    assert len(mail.outbox) == 1 and mail.outbox[0].subject == "[CloudStore] t0 is down and 9 more"
    assert mail.outbox[0].body.count("is down") == 10
    assert len(hook.came) == 1 and len(hook.changes()[0]) == 10


def test_a_broker_that_flaps_is_told_a_few_times(brokers, clock, hook):
    """A quarter of an hour in which every poll is another: down with the first, up only with two good ones."""
    work(clock)
    with faulty(brokers[0]) as driver:
        for number in range(60):
            driver.clear()
            if number % 2:
                driver.fail("get", Timeout())
            health.poll(brokers[0].pk)
            work(clock, 15)
    assert len(hook.came) == 1


def test_a_new_broker_that_is_down_is_news(brokers, clock, hook):
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
        work(clock)
    assert hook.changes() == [[("m0", "", "down")]]


def test_what_operators_do_is_told_too(brokers, clock, hook):
    work(clock)
    set_enabled(brokers[0].pk, False)
    work(clock)
    set_enabled(brokers[0].pk, True)
    work(clock)
    assert hook.changes() == [[("m0", "up", "disabled")], [("m0", "disabled", "up")]]


def test_each_change_is_noted_once_by_many_processes(brokers, clock, hook, monkeypatch):
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
    stale = list(Broker.objects.all())
    monkeypatch.setattr(Broker.objects, "all", lambda: stale)
    assert alerts.note_changes() == 1
    assert alerts.note_changes() == 0, "with the rows as they were before the other one's note"
    assert BrokerAlert.objects.count() == 1


def test_a_failure_is_tried_again_at_growing_intervals(brokers, clock, hook, expect_log):
    expect_log("could not be sent")
    work(clock)
    hook.answers = [(500, {}), (503, {}), (200, {})]
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
    assert work(clock) == 0
    row = BrokerAlert.objects.get()
    assert (row.attempts, row.failure, row.sent_at) == (1, "the webhook answered 500", None)
    assert work(clock, 30) == 0 and len(hook.came) == 1, "not yet"
    assert work(clock, 31) == 0 and len(hook.came) == 2
    assert work(clock, 60) == 0 and len(hook.came) == 2
    assert work(clock, 61) == 1 and len(hook.came) == 3
    row.refresh_from_db()
    assert row.sent_at == clock.now() and row.failure == ""


def test_it_is_given_up_after_ten_tries(brokers, clock, hook, settings, expect_log):
    expect_log("could not be sent", "given up")
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
    hook.answers = [(404, {})] * 20
    for _ in range(30):
        work(clock, 3601)
    assert len(hook.came) == alerts.TRIES
    assert BrokerAlert.objects.get().given_up_at is not None


def test_one_channel_that_fails_does_not_hold_up_the_other(brokers, clock, hook, to_mail, expect_log):
    expect_log("alerts by webhook could not be sent")
    work(clock)
    hook.answers = [(500, {})]
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
    assert work(clock) == 1 and len(mail.outbox) == 1


def test_a_mail_server_that_is_away_is_tried_again(brokers, clock, to_mail, settings, expect_log):
    expect_log("alerts by mail could not be sent")
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT, settings.EMAIL_HOST_PASSWORD = "127.0.0.1", 9, "hunter2"
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
    assert work(clock) == 0
    row = BrokerAlert.objects.get()
    assert row.failure.endswith("(ConnectionRefusedError)") and "hunter2" not in row.failure
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert work(clock, 61) == 1 and len(mail.outbox) == 1


def test_after_a_crash_it_goes_again_and_not_before_the_lease(brokers, clock, hook, monkeypatch):
    """The process dies after the message went and before that was written down."""
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])

    class Died(BaseException):
        pass

    def dies(changes: Any) -> None:
        alerts._send_webhook(changes)
        raise Died

    monkeypatch.setitem(alerts._SENDERS, "webhook", dies)
    with pytest.raises(Died):
        work(clock)
    monkeypatch.setitem(alerts._SENDERS, "webhook", alerts._send_webhook)
    assert work(clock, 60) == 0, "it may still be on its way"
    assert work(clock, 61) == 1
    assert len(hook.came) == 2 and hook.came[0][2] == hook.came[1][2]


def test_of_two_senders_one_sends(brokers, clock, hook, monkeypatch):
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
    real = alerts._send_webhook

    def another_one_comes(changes: Any) -> None:
        monkeypatch.setitem(alerts._SENDERS, "webhook", real)
        assert alerts.send_due() == 0
        real(changes)

    monkeypatch.setitem(alerts._SENDERS, "webhook", another_one_comes)
    assert work(clock) == 1 and len(hook.came) == 1


def test_no_redirect_is_followed(brokers, clock, hook):
    hook.answers = [(302, {"Location": hook.address})]
    assert alerts.test() == {"webhook": "the webhook answered 302"}
    assert len(hook.came) == 1


@pytest.mark.parametrize("host", ["169.254.169.254", "100.100.100.200", "0.0.0.0"])
def test_metadata_addresses_are_refused(settings, host):
    settings.CLOUDSTORE_ALERT_WEBHOOK = f"http://{host}/latest?token=t0k3n"
    [failure] = alerts.test().values()
    assert "no provider lives at this address" in failure and "t0k3n" not in failure


def test_private_addresses_are_refused_where_the_deployment_says_so(hook, settings):
    settings.CLOUDSTORE_PRIVATE_ENDPOINTS = False
    assert "no provider lives" in alerts.test()["webhook"]
    assert hook.came == []


def test_an_address_without_a_server_is_a_failure_without_the_address(settings):
    settings.CLOUDSTORE_ALERT_WEBHOOK = "http://127.0.0.1:9/hook?token=t0k3n"
    [failure] = alerts.test().values()
    assert failure.startswith("the webhook could not be reached") and "t0k3n" not in failure


def test_a_subject_is_one_line(clock, to_mail):
    change = alerts.Change(1, "Disk\nBcc: x@example.com", "up", "down", "", "a\r\nb", "now")
    alerts._send_mail([change])
    assert "\n" not in mail.outbox[0].subject and mail.outbox[0].recipients() == [
        "ops@example.com",
        "boss@example.com",
    ]


def test_old_alerts_go_and_pending_ones_stay(brokers, clock, hook):
    sent = BrokerAlert(channel="webhook", name="x", after="down", due_at=clock.now(), sent_at=clock.now())
    pending = BrokerAlert(channel="webhook", name="y", after="down", due_at=clock.now())
    BrokerAlert.objects.bulk_create([sent, pending])
    clock.advance(days=31)
    tasks.compact_history()
    assert list(BrokerAlert.objects.values_list("name", flat=True)) == ["y"]


def test_nothing_is_sent_inside_a_transaction(hook):
    from django.db import transaction

    with transaction.atomic(), pytest.raises(IoInTransaction):
        alerts.send_due()


def test_nobody_to_tell(brokers, clock):
    work(clock)
    with faulty(brokers[0]) as driver:
        down(driver, brokers[0])
        assert work(clock) == 0 and not BrokerAlert.objects.exists()
    with pytest.raises(CommandError, match="no channel is configured"):
        call_command("alert_test")


def test_the_command_tries_every_channel(hook, to_mail, caplog):
    out = io.StringIO()
    call_command("alert_test", stdout=out)
    assert out.getvalue().splitlines() == ["mail: sent", "webhook: sent"]
    assert len(mail.outbox) == len(hook.came) == 1 and "no broker has changed" in mail.outbox[0].body
    hook.answers = [(500, {})]
    with pytest.raises(CommandError, match="mail: sent; webhook: the webhook answered 500"):
        call_command("alert_test")
    assert "t0k3n" not in caplog.text and SECRET not in caplog.text, "not even for debugging"
