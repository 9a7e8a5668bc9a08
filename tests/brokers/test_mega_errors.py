"""The MEGA driver: every kind of failure gets its name, in time, and an outage never looks like absence."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from brokers import clock as clock_module
from brokers import entropy
from brokers.drivers import mega as mega_module
from brokers.drivers import mega_client, mega_errors
from brokers.drivers.mega import MegaBroker
from brokers.drivers.mega_cipher import prove
from brokers.drivers.mega_client import Account
from brokers.drivers.mega_http import Wire
from brokers.errors import (
    BrokerError,
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
from tests.brokers.mega_place import logged_out_fixture, mega_fixture, one_mega_fixture  # noqa: F401
from tests.kit.clock import VirtualClock
from tests.servers.fake_mega import EMAIL, PASSWORD, FakeMega, MegaCall
from tests.servers.faults import Answer, FaultServer

pytestmark = pytest.mark.only_on("sqlite")

OPTIONS = {"email": EMAIL, "password": PASSWORD, "folder": "CloudStore"}
NAME = "cs/ab/x"


class Ticking(VirtualClock):
    """Each look at the clock takes a second."""

    def monotonic(self) -> float:
        self.advance(seconds=1)
        return super().monotonic()


@pytest.fixture
def broker(mega) -> MegaBroker:
    made = MegaBroker(OPTIONS)
    made.prepare()
    return made


@pytest.fixture
def locator(mega, broker) -> str:
    found = broker.upload_file(b"0123456789", NAME)
    mega.calls.clear()
    return found


def say(mega: FakeMega, command: str, verdict: Answer | int | str, times: int = 1000) -> None:
    left = [times]

    def rule(call: MegaCall) -> Answer | int | str | None:
        if call.command != command or not left[0]:
            return None
        left[0] -= 1
        return verdict

    mega.rules.append(rule)


# What each operation asks of MEGA, in its order.
CALLS: dict[str, Callable[[MegaBroker, str], object]] = {
    "get": lambda b, at: b.download_file(at),
    "range": lambda b, at: b.download_file(at, 5, 3),
    "put": lambda b, at: b.upload_file(b"bytes", "cs/ab/y"),
    "stat": lambda b, at: b.stat_file(at),
    "delete": lambda b, at: b.delete_file(at),
    "list": lambda b, at: list(b.list_files()),
    "info": lambda b, at: b.get_storage_info(),
    "prepare": lambda b, at: b.prepare(),
    "probe": lambda b, at: b.probe(),
}
ASKS = [
    ("get", "g"),
    ("range", "g"),
    ("stat", "g"),
    ("put", "u"),
    ("put", "p"),
    ("delete", "d"),
    ("list", "f"),
    ("info", "uq"),
    ("prepare", "f"),
    ("probe", "u"),
]


def expected(command: str, code: int) -> type[BrokerError]:
    """The table of the manual, said once more."""
    write = command in ("u", "p", "d")
    if code == -9:
        return NotFound if command in ("g", "d") else Misconfigured
    if code == -11:
        return ReadOnly if write else Unauthorized
    if code in (-17, -24):
        return RateLimited if command == "g" else OutOfSpace
    if code == -29:
        return OutOfSpace if write else Unauthorized
    if code in (-4, -6, -19):
        return RateLimited
    if code in (-15, -16, -26, -27, -28):
        return Unauthorized
    if code in (-2, -10, -22, -30):
        return Misconfigured
    return Unavailable


@pytest.mark.parametrize(("operation", "command"), ASKS)
@pytest.mark.parametrize("code", [n for n in range(-31, 0) if n not in (-3, -15)] + [-999])
def test_every_error_number_has_a_name(mega, broker, locator, operation, command, code):
    say(mega, command, code)
    if (command, code) == ("d", -9):
        broker.delete_file(locator)
        return
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker, locator)
    assert type(caught.value) is expected(command, code)
    text = str(caught.value)
    assert PASSWORD not in text and not any(sid in text for sid in mega.sessions)
    assert text and mega.count(command) == 1, "tries again only in its own layer"


STATUSES = [
    (Answer(401), Unauthorized, Unavailable),
    (Answer(403, b"<html>a proxy says no</html>"), Unauthorized, Unavailable),
    (Answer(402), Unavailable, Unavailable),
    (Answer(404), Unavailable, Unavailable),
    (Answer(408), Timeout, Timeout),
    (Answer(409), Unavailable, Unavailable),
    (Answer(413), TooLarge, TooLarge),
    (Answer(416), Unavailable, Unavailable),
    (Answer(429), RateLimited, RateLimited),
    (Answer(500), Unavailable, Unavailable),
    (Answer(503), Unavailable, Unavailable),
    (Answer(504), Timeout, Timeout),
    (Answer(507), OutOfSpace, OutOfSpace),
    (Answer(509), RateLimited, RateLimited),
    (Answer(302, b"", {"Location": "https://login.example.com/"}), Unavailable, Unavailable),
    (Answer(200, b"<html>please sign in to this wifi</html>"), Unavailable, Unavailable),
    (Answer(200, b"12", special="short"), Unavailable, Unavailable),
    (Answer(special="reset"), Unavailable, Unavailable),
    (Answer(special="garbage"), Unavailable, Unavailable),
]


@pytest.mark.parametrize(("operation", "command"), ASKS)
@pytest.mark.parametrize("number", range(len(STATUSES)))
def test_every_failure_of_the_api_has_a_name(mega, broker, locator, operation, command, number):
    answer, kind, _ = STATUSES[number]
    say(mega, command, answer)
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker, locator)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is None, "the cause's text has the address with the session's id"
    assert mega.count(command) == 1


@pytest.mark.parametrize(
    ("operation", "server"), [("get", "download"), ("range", "download"), ("put", "upload")]
)
@pytest.mark.parametrize("number", range(len(STATUSES)))
def test_every_failure_of_a_storage_server_has_a_name(mega, broker, locator, operation, server, number):
    answer, _, kind = STATUSES[number]
    say(mega, server, answer)
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker, locator)
    assert type(caught.value) is kind and mega.count(server) == 1


@pytest.mark.parametrize(
    ("operation", "server", "code", "kind"),
    [
        ("put", "upload", -3, Unavailable),
        ("put", "upload", -8, Unavailable),
        ("put", "upload", -9, Unavailable),
        ("put", "upload", -17, OutOfSpace),
        ("get", "download", -9, Unavailable),
        ("get", "download", -17, RateLimited),
    ],
)
def test_what_storage_servers_say_in_numbers(mega, broker, locator, operation, server, code, kind):
    say(mega, server, code)
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker, locator)
    assert type(caught.value) is kind


def test_how_long_to_wait_is_told(mega, broker, locator):
    for header, seconds in (
        (("X-MEGA-Time-Left", "1800"), 1800),
        (("Retry-After", "7"), 7),
        (("X", "y"), None),
    ):
        mega.rules.clear()
        say(mega, "download", Answer(509, b"", dict([header])))
        with pytest.raises(RateLimited) as caught:
            broker.download_file(locator)
        assert caught.value.retry_after == seconds
    mega.rules.clear()
    say(mega, "g", Answer(200, json.dumps([{"s": 10, "at": "x", "e": -17, "tl": 90}]).encode()))
    with pytest.raises(RateLimited) as caught:
        broker.download_file(locator)
    assert caught.value.retry_after == 90


@pytest.mark.parametrize(
    "answer", [{"e": -9}, {"s": 10, "e": -18}, {"s": 10}, {"s": -1, "g": "x"}, {"err": -9}, {}]
)
def test_a_file_that_mega_does_not_give(mega, broker, locator, answer):
    say(mega, "g", Answer(200, json.dumps([answer]).encode()))
    kind = NotFound if -9 in answer.values() else Unavailable
    with pytest.raises(BrokerError) as caught:
        broker.download_file(locator)
    assert type(caught.value) is kind


NO_ANSWERS = [None, [], [[]], [None], ["x"], "text", 5, [7], [{}, {}], {"a": 1}]


@pytest.mark.parametrize(("operation", "command"), [*ASKS, ("info", "us0"), ("info", "us")])
@pytest.mark.parametrize("said", NO_ANSWERS, ids=str)
def test_what_is_no_answer_is_an_outage(mega, broker, locator, operation, command, said):
    if command in ("us0", "us"):
        mega_client.forget()
    say(mega, command, Answer(200, json.dumps(said).encode()))
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker, locator)
    assert type(caught.value) is Unavailable


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("f", {"f": []}),
        ("f", {"f": "x"}),
        ("f", {"f": [1, 2]}),
        ("u", {"p": "ftp://elsewhere"}),
        ("u", {"q": 1}),
        ("p", {"f": []}),
        ("p", {"f": [{"h": 5}]}),
        ("uq", {"cstrg": "many"}),
        ("us", {"k": "AAAA"}),
        ("us", {"k": "A" * 22}),
        ("us", {"k": "!", "csid": 1}),
        ("us0", {"s": 5}),
    ],
)
def test_answers_of_the_wrong_form(mega, broker, locator, command, answer):
    if command.startswith("us"):
        mega_client.forget()
    say(mega, command, Answer(200, json.dumps([answer]).encode()))
    operation = {"f": "list", "u": "put", "p": "put", "uq": "info"}.get(command, "info")
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker, locator)
    kind = Unauthorized if answer == {"k": "A" * 22} else Unavailable
    if command.startswith("us"):
        mega_client.forget()
    assert type(caught.value) is kind


def test_ranges(broker, locator):
    with pytest.raises(RangeError):
        broker.download_file(locator, 10, 1)
    assert broker.download_file(locator, 8, 10) == b"89"


def test_more_or_less_than_was_asked_for(mega, broker, locator):
    for body in (b"0123456789", b"0", b"x" * 100_000, b""):
        mega.rules.clear()
        say(mega, "download", Answer(200, body))
        with pytest.raises(Unavailable):
            broker.download_file(locator, 2, 3)


# -- asking again -----------------------------------------------------------------------------------------------


def test_congestion_is_waited_out_with_the_same_number(mega, clock, broker, locator):
    entropy_before = entropy.install(Half())
    try:
        say(mega, "u", -3, times=4)
        mega.ids.clear()
        broker.upload_file(b"bytes", "cs/ab/y")
    finally:
        entropy.install(entropy_before)
    assert clock.slept == [0.1875, 0.375, 0.75, 1.5]
    assert len(set(mega.ids[:5])) == 1 and mega.ids[5] != mega.ids[0]


def test_congestion_that_does_not_end_is_an_outage_in_time(mega, clock, broker, locator):
    say(mega, "u", -3)
    began = clock.monotonic()
    with pytest.raises(Unavailable, match="congested"):
        broker.upload_file(b"bytes", "cs/ab/y")
    assert clock.monotonic() - began <= mega_module.SECONDS
    assert 5 <= mega.count("u") <= 12


def test_a_number_that_was_seen_gets_its_answer_again(mega, broker, locator):
    """What the server does; the driver relies on it only for its own -3."""
    account = mega_client.account(EMAIL, PASSWORD)
    with account.within(10):
        first = account._post(77, account.sid, b'[{"a":"u","s":5}]')
        assert account._post(77, account.sid, b'[{"a":"u","s":5}]') == first
    assert mega.replayed == 1


class Half:
    def token_bytes(self, count: int) -> bytes:
        return bytes(range(count))

    def random(self) -> float:
        return 0.5


# -- logging in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["us0", "us"])
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-9, Unauthorized, "password is wrong"),
        (-13, Unauthorized, "never confirmed"),
        (-16, Unauthorized, "blocked"),
        (-26, Unauthorized, "second factor"),
        (-15, Unauthorized, "session"),
        (-6, RateLimited, "too many failed logins"),
        (-4, RateLimited, "slow down"),
        (-18, Unavailable, "not available"),
        (-777, Unavailable, "unknown error"),
    ],
)
def test_logins_that_fail_say_why(mega, logged_out, clock, command, code, kind, words):
    say(mega, command, code)
    with pytest.raises(BrokerError, match=words) as caught:
        MegaBroker(OPTIONS).get_storage_info()
    assert type(caught.value) is kind
    asked = len(mega.calls)
    with pytest.raises(kind):
        MegaBroker(OPTIONS).get_storage_info()
    assert (len(mega.calls) > asked) == (kind is Unavailable), "only outages are asked about again at once"


def test_the_pause_after_too_many_logins_is_told(mega, logged_out, clock):
    say(mega, "us", -6)
    with pytest.raises(RateLimited) as caught:
        MegaBroker(OPTIONS).get_storage_info()
    assert caught.value.retry_after == mega_errors.LOGIN_PAUSE
    clock.advance(seconds=600)
    with pytest.raises(RateLimited) as caught:
        MegaBroker(OPTIONS).get_storage_info()
    assert caught.value.retry_after == mega_errors.LOGIN_PAUSE - 600
    assert mega.count("us") == 1


def test_an_account_with_a_second_factor(mega, logged_out):
    mega.mfa = True
    with pytest.raises(Unauthorized, match="second factor"):
        MegaBroker(OPTIONS).prepare()


def test_a_password_that_the_librarys_old_hash_cannot_take(mega, logged_out):
    mega.version = 1
    with pytest.raises(Misconfigured, match="change the account's password"):
        MegaBroker({**OPTIONS, "password": "пароль"}).prepare()


# -- proof of work ----------------------------------------------------------------------------------------------


def test_a_proof_of_work_is_given(mega, logged_out):
    mega.challenges = 2
    broker = MegaBroker(OPTIONS)
    broker.prepare()
    assert mega.challenges == 0 and len(mega.proofs) == 2
    mega.challenges = 1
    assert broker.get_storage_info()["used"] == 0


def test_a_proof_of_work_that_takes_too_long(mega, logged_out):
    mega.challenges, mega.easiness = 1, 0
    before = clock_module.install(Ticking())
    try:
        with pytest.raises(Timeout):
            MegaBroker(OPTIONS).prepare()
    finally:
        clock_module.install(before)


def test_proofs_that_never_suffice_and_challenges_of_another_kind(mega, broker, locator):
    said = Answer(402, b"", {"X-Hashcash": "1:255:1731410499:" + "A" * 64})
    say(mega, "u", said)
    with pytest.raises(Unavailable):
        broker.upload_file(b"x", "cs/ab/y")
    assert mega.count("u") == mega_client.CHALLENGES + 1
    for header in (
        "2:255:1:" + "A" * 64,
        "1:255:1:AAAA",
        "1:900:1:" + "A" * 64,
        "1:x:1:y",
        "nothing",
        "1:1:1:*",
    ):
        mega.rules.clear()
        mega.calls.clear()
        say(mega, "u", Answer(402, b"", {"X-Hashcash": header}))
        with pytest.raises(Unavailable, match="proof"):
            broker.upload_file(b"x", "cs/ab/y")
        assert mega.count("u") == 1


def test_the_first_proof_of_a_known_challenge():
    """Found once with the rule as MEGA's SDK states it: `1:<token>:<prefix>`."""
    token = "RUvIePV2PNO8ofg8xp1aT5ugBcKSEzwKoLBw9o4E6F_fmn44eC3oMpv388UtFl2K"
    tries: list[int] = []
    answer = prove(f"1:220:1731410499:{token}", lambda: tries.append(1))
    version, told, prefix = answer.split(":")
    assert (version, told) == ("1", token) and len(prefix) == 6 and len(tries) >= 1


# -- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["g", "download"])
def test_no_answer_is_a_timeout(mega, broker, locator, monkeypatch, command):
    say(mega, command, Answer(special="hang"))
    monkeypatch.setattr(mega_module, "SECONDS", 0.3)
    with pytest.raises(Timeout):
        broker.download_file(locator)
    mega.release.set()


def test_an_answer_that_goes_on_for_ever_ends_in_time():
    """A socket's timeout does not see it: each piece comes at once."""
    with FaultServer().running() as server:
        server.answers = [Answer(200, special="endless")]
        before = clock_module.install(Ticking())
        try:
            wire = Wire()
            with wire.within(30), pytest.raises(Timeout):
                wire.send("GET", server.url, most=1 << 40)
            with wire.within(1000), pytest.raises(Unavailable, match="more than"):
                wire.send("GET", server.url, most=100_000)
            with wire.within(5), pytest.raises(Timeout):
                wire.send("POST", server.url, data=bytes(8 << 20), most=100)
        finally:
            clock_module.install(before)
            wire.close()


def test_nobody_listens(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(Account, "endpoint", f"http://127.0.0.1:{free.getsockname()[1]}/cs")
    for call in CALLS.values():
        with pytest.raises(Unavailable):
            call(MegaBroker(OPTIONS), NAME)
    mega_client.forget()
