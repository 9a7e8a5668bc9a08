"""The Dropbox driver: every kind of failure gets its name, and tokens are fetched once."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from typing import ClassVar

import pytest

from brokers import registry
from brokers.drivers import dropbox_client
from brokers.drivers.dropbox import DropboxBroker
from brokers.errors import (
    BrokerError,
    InvalidKey,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RateLimited,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from brokers.names import new_object_key
from brokers.open import OpenBroker
from brokers.services import InvalidOptions, check_options
from brokers.testing import processes
from tests.brokers.dropbox_place import broker_fixture, dropbox_fixture, made, one_dropbox_fixture  # noqa: F401
from tests.brokers.fault_table import CALLS as ALL_CALLS
from tests.brokers.fault_table import FaultTable
from tests.servers.fake_dropbox import (
    ACCESS_TOKEN,
    APP_KEY,
    HOURS,
    REFRESH_TOKEN,
    FakeDropbox,
    error,
    failed_write,
    slow_down,
    told,
)
from tests.servers.faults import Answer

pytestmark = pytest.mark.only_on("sqlite")
# The same calls under a segment's name, which are one request each.
KEY = new_object_key()
CALLS = {
    **ALL_CALLS,
    "get": lambda b: b.download_file(KEY),
    "range": lambda b: b.download_file(KEY, 5, 10),
    "put": lambda b: b.upload_file(b"bytes", KEY),
    "stat": lambda b: b.stat_file(KEY),
    "delete": lambda b: b.delete_file(KEY),
}


# -- failures --------------------------------------------------------------------------------------------------


CANARY = "canary-in-the-answer"
PLAIN = {"Content-Type": "text/plain"}
LACKS = (
    b'Error in call to API function "files/upload": Your app is not permitted to access this endpoint because it '
    b"does not have the required scope 'files.content.write'. " + CANARY.encode()
)
FAILURES = {
    "full": (failed_write("insufficient_space"), OutOfSpace),
    "team full": (failed_write("team_folder_insufficient_space"), OutOfSpace),
    "not allowed": (failed_write("no_write_permission"), ReadOnly),
    "traffic": (failed_write("upload_traffic_limit_reached"), ReadOnly),
    "name": (failed_write("disallowed_name"), InvalidKey),
    "busy": (slow_down("too_many_write_operations", 3), RateLimited),
    "busy, as before": (error(409, "path_write", "too_many_write_operations"), RateLimited),
    "suspended": (error(401, "user_suspended"), Unauthorized),
    "revoked": (error(401, "invalid_access_token"), Unauthorized),
    "other token": (error(401, "other"), Unauthorized),
    "a proxy's 401": (Answer(401, b"<html>who are you?</html>", {"Content-Type": "text/html"}), Unauthorized),
    "app without permission": (Answer(400, LACKS, PLAIN), Unauthorized),
    "malformed token": (
        Answer(400, b"The given OAuth 2 access token is malformed.", PLAIN),
        Unauthorized,
    ),
    "bad request": (Answer(400, CANARY.encode(), PLAIN), Misconfigured),
    "account type": (error(403, "invalid_account_type", "feature"), Unauthorized),
    "root": (error(422, "invalid_root"), Misconfigured),
    "blocked": (error(409, "path", "restricted_content"), Misconfigured),
    "locked": (error(409, "path", "locked"), Unavailable),
    "unknown": (error(409, "tomorrows_reason"), Unavailable),
    "too large": (error(409, "payload_too_large"), TooLarge),
    "redirect": (Answer(302, b"", {"Location": "https://login.example.com/"}), Unavailable),
    "html": (
        Answer(200, b"<html>please sign in to this wifi</html>", {"Content-Type": "text/html"}),
        Unavailable,
    ),
    "nothing": (told({}), Unavailable),
    "a list": (told([]), Unavailable),
    "a text": (told("text"), Unavailable),
    "bad gateway": (Answer(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}), Unavailable),
    "busy service": (Answer(503, b"", {"Retry-After": "9"}), RateLimited),
    "odd": (Answer(418, CANARY.encode(), PLAIN), Misconfigured),
}


@pytest.mark.parametrize("operation", ["get", "put", "delete"])
@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_has_a_name(dropbox, broker, operation, failure):
    answer, kind = FAILURES[failure]
    dropbox.rules.append(lambda call: answer)
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker)
    assert isinstance(caught.value, kind) and caught.value.code == kind.code
    assert CANARY not in str(caught.value) and dropbox.url not in str(caught.value)
    assert len(dropbox.calls) == 1, "tries again only in its own layer"


class TestFaults(FaultTable):
    """The table of all HTTP drivers, in Dropbox's words."""

    differs: ClassVar = {("416", call): Unavailable for call in ("get", "put", "stat", "delete", "list")}

    @pytest.fixture
    def server(self, dropbox) -> FakeDropbox:
        """The token came before; every answer from now on is the fault."""
        dropbox.answers = []
        dropbox.rules.append(lambda call: dropbox.answers[0] if dropbox.answers else None)
        return dropbox

    @pytest.fixture
    def broker(self, server):
        opened = made(server)
        opened.prepare()
        server.calls.clear()
        server.requests.clear()
        yield opened
        opened.close()

    def say(self, status, headers):
        body = {"error_summary": self.canary, "error": {".tag": "other", "text": self.canary}}
        return told(body, status, **{name.replace("-", "_"): value for name, value in headers.items()})


def test_the_body_and_the_header_tell_how_long_to_wait(dropbox, broker, clock):
    for answer, seconds in [
        (slow_down("too_many_requests", 12), 12),
        (slow_down("too_many_write_operations", 1), 1),
        (slow_down("too_many_requests", 12, Retry_After="15"), 15),
        (Answer(429, b"slow down", {**PLAIN, "Retry-After": "20"}), 20),
        (Answer(429, b"slow down", PLAIN), None),
    ]:
        dropbox.rules[:] = [lambda call, answer=answer: answer]
        for call in CALLS.values():
            with pytest.raises(RateLimited) as caught:
                call(broker)
            assert caught.value.retry_after == seconds


def test_the_layers_wait_for_as_long_as_dropbox_says(dropbox, clock):
    opened = OpenBroker(made(dropbox))
    opened.prepare()
    limits = iter([slow_down("too_many_write_operations", 4), slow_down("too_many_requests", 7)])
    dropbox.rules.append(lambda call: next(limits, None))
    began = clock.monotonic()
    opened.put(new_object_key(), b"bytes")
    assert clock.monotonic() - began == pytest.approx(11)
    opened.retire()


def test_a_permission_that_is_missing_is_named_with_what_to_do(dropbox):
    dropbox.granted.remove("files.content.write")
    broker = made(dropbox)
    for call in (lambda: broker.upload_file(b"", "x"), lambda: broker.delete_file(new_object_key())):
        with pytest.raises(Unauthorized, match=r"files\.content\.write: in Dropbox's App Console"):
            call()
    with pytest.raises(ReadOnly, match="App Console"):
        broker.probe()
    dropbox.granted.remove("files.metadata.read")
    other = made(dropbox)
    with pytest.raises(Unauthorized, match=r"files\.metadata\.read"):
        other.probe()
    broker.close()
    other.close()


def test_a_full_account_gives_what_it_has(dropbox, broker):
    name = broker.upload_file(bytes(1000), new_object_key())
    dropbox.total = dropbox.used + 10
    with pytest.raises(OutOfSpace):
        broker.upload_file(bytes(11), new_object_key())
    assert broker.download_file(name) == bytes(1000)
    broker.delete_file(name)
    broker.upload_file(bytes(1010), new_object_key())


@pytest.mark.parametrize("operation", ["get", "range", "stat", "delete"])
def test_absence_is_believed_only_of_a_folder_that_is_there(dropbox, operation):
    broker = made(dropbox, folder="Store")
    broker.prepare()
    for answer, kind in [
        (None, NotFound),
        (error(409, "path", "not_found"), Misconfigured),
        (error(401, "invalid_access_token"), Unauthorized),
        (error(503), Unavailable),
        (Answer(special="reset"), Unavailable),
    ]:
        dropbox.rules[:] = [lambda call, answer=answer: answer if "list" in call.route else None]
        if operation == "delete" and kind is NotFound:
            CALLS[operation](broker)
            continue
        with pytest.raises(BrokerError) as caught:
            CALLS[operation](broker)
        assert type(caught.value) is kind
    broker.close()


def test_a_folder_that_goes_is_noticed(dropbox):
    broker = made(dropbox, folder="Store")
    broker.prepare()
    name = broker.upload_file(b"bytes", new_object_key())
    dropbox.remove("/store")
    with pytest.raises(Misconfigured, match="no folder 'Store'"):
        broker.download_file(name)
    with pytest.raises(Misconfigured):
        broker.upload_file(b"bytes", name)
    assert not dropbox.files(), "not made anew by an upload"
    broker.prepare()
    broker.upload_file(b"bytes", name)
    broker.close()


def test_no_answer_is_a_timeout(monkeypatch, dropbox):
    monkeypatch.setattr(dropbox_client, "READ_SECONDS", 0.2)
    broker = made(dropbox)
    broker.prepare()
    dropbox.rules.append(lambda call: Answer(special="hang"))
    for call in CALLS.values():
        with pytest.raises(Timeout):
            call(broker)
    dropbox.release.set()
    broker.close()


def test_nobody_listens(dropbox, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(dropbox, "url", f"http://127.0.0.1:{free.getsockname()[1]}")
    broker = made(dropbox)
    for call in CALLS.values():
        with pytest.raises(Unavailable):
            call(broker)
    broker.close()


# -- tokens ----------------------------------------------------------------------------------------------------


def at_once(call: Callable[[], object], threads: int = 8) -> list[BaseException]:
    """Run `call` in threads that begin together: -> what they raised."""
    errors: list[BaseException] = []
    gate = threading.Barrier(threads)

    def work() -> None:
        gate.wait()
        try:
            call()
        except BrokerError as raised:
            errors.append(raised)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return errors


def test_eight_threads_fetch_one_token(dropbox):
    broker = made(dropbox)
    assert at_once(lambda: list(broker.list_files())) == []
    assert dropbox.count("oauth2/token") == 1 and len(dropbox.tokens_used()) == 1
    broker.close()


def test_eight_threads_replace_an_expired_token_once(dropbox, broker, monkeypatch):
    dropbox.expire()
    client, gate = broker._client, threading.Barrier(8)
    refresh = client.refresh_access_token

    def after_all(*arguments: object, **more: object) -> None:
        gate.wait()  # each thread has been told that its token is too old
        refresh(*arguments, **more)

    monkeypatch.setattr(client, "refresh_access_token", after_all)
    assert at_once(lambda: list(broker.list_files())) == []
    assert dropbox.count("oauth2/token") == 1
    assert sorted(dropbox.tokens_used().values()) == [8, 8]


def test_a_token_is_replaced_before_it_expires(dropbox, clock):
    broker = made(dropbox)
    broker.prepare()
    clock.advance(seconds=HOURS - 301)
    broker.prepare()
    assert dropbox.count("oauth2/token") == 1
    clock.advance(seconds=2)
    broker.prepare()
    assert dropbox.count("oauth2/token") == 2
    assert len(dropbox.tokens_used()) == 2
    broker.close()


def test_a_new_token_that_is_refused_too_is_not_replaced_again(dropbox, broker):
    dropbox.rules.append(lambda call: error(401, "expired_access_token") if "list" in call.route else None)
    with pytest.raises(Unauthorized, match="expired"):
        list(broker.list_files())
    assert dropbox.routes() == ["files/list_folder", "oauth2/token", "files/list_folder"]


def test_a_token_that_was_revoked_is_replaced_at_the_next_call(dropbox, broker):
    del dropbox.expires[next(reversed(dropbox.expires))]
    with pytest.raises(Unauthorized, match="dropbox_connect"):
        broker.prepare()
    broker.prepare()
    assert dropbox.count("oauth2/token") == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (told({"error": "invalid_grant", "error_description": CANARY}, 400), Unauthorized),
        (told({"error": "invalid_client: Invalid client_id or client_secret"}, 400), Unauthorized),
        (told({"error": "invalid_client"}, 401), Unauthorized),
        (Answer(429, b"", {"Retry-After": "3"}), RateLimited),
        (Answer(500), Unavailable),
        (Answer(special="reset"), Unavailable),
        (Answer(special="garbage"), Unavailable),
        (Answer(200, b"<html>sign in</html>"), Unavailable),
        (told({"access_token": "x"}), Unavailable),
        (told({"access_token": 5, "expires_in": 14400}), Unavailable),
        (told({"access_token": "two\nlines", "expires_in": 14400}), Unavailable),
        (told([]), Unavailable),
    ],
)
def test_no_token_is_given(dropbox, answer, kind):
    broker = made(dropbox)
    dropbox.rules.append(lambda call: answer if call.route == "oauth2/token" else None)
    for call in (broker.prepare, lambda: broker.download_file("x")):
        with pytest.raises(BrokerError) as caught:
            call()
        assert type(caught.value) is kind and CANARY not in str(caught.value)
    assert set(dropbox.routes()) == {"oauth2/token"} and len(dropbox.calls) == 2
    dropbox.rules.clear()
    broker.prepare()
    broker.close()


def test_the_app_secret_may_be_left_out(dropbox):
    plain, secrets = check_options("dropbox", {"app_key": APP_KEY, "refresh_token": REFRESH_TOKEN})
    broker = DropboxBroker({**plain, **secrets})
    broker.prepare()
    assert "client_secret" not in dropbox.calls[0].argument
    broker.close()


def test_an_access_token_alone_works_until_it_expires(dropbox):
    plain, secrets = check_options("dropbox", {"access_token": ACCESS_TOKEN})
    assert set(secrets) == {"access_token"} and not plain
    broker = DropboxBroker(secrets)
    broker.prepare()
    dropbox.expire()
    with pytest.raises(Unauthorized, match="dropbox_connect"):
        broker.prepare()
    assert dropbox.routes() == ["files/list_folder"] * 2
    field = DropboxBroker.OptionsForm.base_fields["access_token"]
    assert "four hours" in field.help_text
    broker.close()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, "refresh_token"),
        ({"app_key": "k", "app_secret": "s"}, "refresh_token"),
        ({"refresh_token": "t"}, "app_key"),
        ({"app_key": "k", "refresh_token": "two\nlines"}, "refresh_token"),
        ({"app_key": "k", "refresh_token": "t", "folder": "a/../b"}, "folder"),
        ({"app_key": "k", "refresh_token": "t", "folder": "a\\b"}, "folder"),
        ({"app_key": "k", "refresh_token": "t", "folder": "a /b"}, "folder"),
    ],
)
def test_options_that_cannot_work(options, wrong):
    with pytest.raises(InvalidOptions) as caught:
        check_options("dropbox", options)
    assert set(caught.value.errors) == {wrong} and "lines" not in str(caught.value)


def test_options_are_cleaned(dropbox):
    plain, secrets = check_options(
        "dropbox", dropbox.options(access_token="sl.old", folder="/Cloud Store/", app_key=f" {APP_KEY}\n")
    )
    assert plain == {"app_key": APP_KEY, "folder": "Cloud Store"}
    assert set(secrets) == {"app_secret", "refresh_token"}, "what is not used is not kept"


def test_a_token_with_a_line_break_never_reaches_a_header():
    for options in ({"access_token": "sl.canary\nx"}, {"app_key": "k", "refresh_token": "canary\r\nx"}, {}):
        with pytest.raises(Misconfigured) as caught:
            DropboxBroker(options).prepare()
        assert "canary" not in str(caught.value)


def test_a_missing_package_is_said_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "brokers.drivers.dropbox_client")
    monkeypatch.delattr("brokers.drivers.dropbox_client", raising=False)
    monkeypatch.setitem(sys.modules, "dropbox", None)
    with pytest.raises(Misconfigured, match="Python package dropbox"):
        registry.construct("dropbox", {"access_token": "x"})


def test_a_fork_opens_connections_of_its_own(dropbox, broker):
    broker.prepare()
    mine = broker._client

    def work() -> bool:
        broker.prepare()
        return broker._client is not mine

    assert processes.in_child(work)
    broker.prepare()
    assert broker._client is mine
