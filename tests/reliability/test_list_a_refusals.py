"""List A of docs/reliability.md, what a provider refuses or limits: A8, A9, A16, A17, A21, and answers without end."""

from __future__ import annotations

import os
from collections import defaultdict
from itertools import pairwise

import pytest
import requests

from brokers import health
from brokers.drivers.s3 import S3Broker
from brokers.errors import BrokerError, Corrupt, OutOfSpace, ReadOnly, Unavailable
from brokers.models import Broker, BrokerEvent, Health
from brokers.names import is_object_key
from brokers.open import OpenBroker, forget, open_broker
from brokers.services import check_options
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from replication import policy, reconcile, scrub
from replication.models import Event, Replica
from replication.transfer import put as verified_put
from tests.kit.clock import VirtualClock
from tests.reliability.kit import BUCKET, Drive, Places, at_rest, script, settle
from tests.servers.faults import Answer
from tests.servers.s3proxy import Rule, S3Call, S3Proxy
from tests.servers.seaweedfs import S3Server
from vfs.models import Node

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
State = Replica.State


def error(status: int, code: str, **headers: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body.encode(), {"Content-Type": "application/xml", **names})


def of(broker: Broker, path: str) -> bool:
    """Whether a request to the server concerns this broker."""
    return f"/{broker.options['prefix']}/" in path or f"prefix={broker.options['prefix']}" in path


def refusing(broker: Broker, answer: Answer, *methods: str) -> Rule:
    return lambda call: answer if of(broker, call.path) and call.method in methods else None


def sent(proxy: S3Proxy, broker: Broker, *methods: str) -> list[tuple[float, str, bytes]]:
    """(when, path, body) of the requests about objects of this broker."""
    calls = zip(proxy.times, proxy.requests, proxy.bodies, strict=True)
    return [(at, p, body) for at, (m, p, _h), body in calls if m in methods and of(broker, p) and "/cs/" in p]


# -- A8 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "state"),
    [(OutOfSpace(), Health.FULL), (ReadOnly(), Health.READ_ONLY)],
    ids=["full", "read-only"],
)
def test_a8_full_or_read_only(three: list[Broker], memory_places: Places, clock: VirtualClock,
                              drive: Drive, fault: BrokerError, state: Health) -> None:  # fmt: skip
    """Uploads go elsewhere after one try, the operator's journal says why, reads go on, and nothing is tried again
    and again."""
    policy.change(copies=3, ack_copies=2)
    drive.keep("before", os.urandom(2000))
    reconcile.run_to_rest()
    with script(*three) as [full, *others]:
        full.fail("put", fault, on=lambda call: call.name.startswith("cs/"))
        full.fail("probe", fault)
        for number in range(6):
            drive.keep(f"meanwhile {number}", b"x" * 100)
        tried = [c for c in full.calls if c.operation == "put"]
        assert len(tried) <= 6, "one try for an upload, no second"
        health.poll_due()
        broker = Broker.objects.get(pk=three[0].pk)
        assert (broker.health, broker.readable, broker.writable) == (state, True, False)
        assert BrokerEvent.objects.filter(broker=broker, kind=state).count() == 1
        known = full.count("put")
        for number in range(6):
            drive.keep(f"after {number}", b"y" * 100)
        for _ in range(3):
            reconcile.run_to_rest()
            clock.advance(hours=1)
        assert full.count("put") == known, "no put once it is known"
        for other in others:
            other.fail("get", Unavailable("down"))
        drive.get("before")
        assert full.count("get") > 0, "it is still read"
        for driver in (full, *others):
            driver.clear()
        settle(clock)
        at_rest(memory_places, three, drive)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (error(507, "InsufficientStorage"), Health.FULL),
        (error(403, "AccessDenied"), Health.READ_ONLY),
    ],
    ids=["507", "access"],
)
def test_a8_a_bucket_that_takes_nothing(s3_places: Places, proxy: S3Proxy, clock: VirtualClock,
                                        drive: Drive, answer: Answer, state: Health) -> None:  # fmt: skip
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "abc"]
    full = brokers[0]
    drive.keep("before", b"x" * 1000)
    proxy.rules.append(refusing(full, answer, "PUT"))
    Broker.objects.filter(name="c").update(weight=1e-9)
    drive.keep("meanwhile", b"y" * 1000)
    refused = sent(proxy, full, "PUT")
    assert len(refused) <= 2, "one before, one refused"
    assert health.poll(full.pk).health == state
    drive.keep("after", b"z" * 1000)
    assert sent(proxy, full, "PUT") == refused
    drive.check()
    proxy.rules.clear()
    settle(clock)
    at_rest(s3_places, brokers, drive)


# -- A9 ------------------------------------------------------------------------------------------------------


def test_a9_the_provider_says_how_long_to_wait(s3_places: Places, proxy: S3Proxy, clock: VirtualClock,
                                               drive: Drive) -> None:  # fmt: skip
    """The next try of a put comes when the provider said, with the whole body again; and no other call of this
    broker comes sooner."""
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "ab"]
    limited = brokers[0]
    slow = iter([error(503, "SlowDown", Retry_After="7"), error(429, "TooManyRequests", Retry_After="11")])
    proxy.rules.append(
        lambda call: next(slow, None) if of(limited, call.path) and call.method == "PUT" else None
    )
    data = os.urandom(100_000)
    drive.keep("file", data)
    tries = sent(proxy, limited, "PUT")
    assert [later[0] - sooner[0] for sooner, later in pairwise(tries)] == [7, 11]
    assert len({(path, body) for _at, path, body in tries}) == 1, "the same object, sent whole each time"
    assert len(tries[0][2]) > len(data)
    others = [at for at, (_m, path, _h) in zip(proxy.times, proxy.requests, strict=True) if of(limited, path)]
    assert not any(tries[0][0] < at < tries[1][0] or tries[1][0] < at < tries[2][0] for at in others)
    assert {r.state for r in Replica.objects.all()} == {State.STORED}
    at_rest(s3_places, brokers, drive)


def test_a9_a_long_pause_is_kept_and_goes_elsewhere(s3_places: Places, proxy: S3Proxy, clock: VirtualClock,
                                                    drive: Drive) -> None:  # fmt: skip
    """A pause longer than a call may take: nobody waits for it, and nothing at all is sent before it is over."""
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "abc"]
    limited = brokers[0]
    Broker.objects.filter(name="c").update(weight=1e-9)
    proxy.rules.append(refusing(limited, error(429, "TooManyRequests", Retry_After="1000"), "PUT"))
    before = len(proxy.requests)
    drive.keep("file", b"x" * 1000)
    assert {r.broker.name for r in Replica.objects.filter(state=State.STORED)} == {"b", "c"}
    proxy.rules.clear()
    assert health.poll(limited.pk).health_reason == "rate_limited"
    drive.keep("second", b"y" * 1000)
    for _ in range(5):
        clock.advance(minutes=3)
        health.poll(limited.pk)
        reconcile.run_to_rest()
    during = [method for method, path, _headers in proxy.requests[before:] if of(limited, path)]
    assert during == ["PUT"], "the one that was refused"
    settle(clock)
    assert Broker.objects.get(pk=limited.pk).health == Health.ONLINE
    at_rest(s3_places, brokers, drive)


def test_a9_a_limited_read_comes_from_the_other_copy(three: list[Broker], memory_places: Places,
                                                     clock: VirtualClock, drive: Drive) -> None:  # fmt: skip
    from brokers.errors import RateLimited

    drive.keep("file", b"x" * 1000)
    with script(*three) as drivers:
        for driver in drivers:
            driver.fail("get", RateLimited("slow down", retry_after=500), on=1)
            drive.get("file")
            assert sum(d.count("get") for d in drivers) <= 4
            driver.clear()
            clock.advance(seconds=501)
    assert not Replica.objects.exclude(state=State.STORED).exists(), "a limit says nothing of the object"
    settle(clock)
    at_rest(memory_places, three, drive)


# -- A16, A17 ------------------------------------------------------------------------------------------------


def strict(call: S3Call) -> Answer | None:
    """Refuses what many S3-compatible providers refuse: the checksums and trailers of newer SDKs, bodies in signed
    chunks, conditional puts."""
    names = {name.lower() for name in call.headers}
    extra = {n for n in names if n.startswith(("x-amz-checksum-", "x-amz-sdk-checksum", "x-amz-trailer"))}
    chunked = "aws-chunked" in call.headers.get("Content-Encoding", "") or "transfer-encoding" in names
    conditional = call.method == "PUT" and names & {"if-none-match", "if-match"}
    return error(501, "NotImplemented") if extra or chunked or conditional else None


def test_a16_a_provider_that_refuses_the_sdks_checksums(proxy: S3Proxy, bucket: S3Server) -> None:
    """The whole contract holds on a provider that takes none of them; our own hash is compared all the same."""
    proxy.rules.append(strict)
    assert (
        requests.put(f"{proxy.url}/{BUCKET}/x", b"x", headers={"x-amz-checksum-crc32": "AAAA"}).status_code
        == 501
    )
    options = {**bucket.options(BUCKET, prefix="strict"), "endpoint_url": proxy.url}
    plain, secrets = check_options("s3", options)
    checks = Conformance(lambda: OpenBroker(S3Broker({**plain, **secrets})))
    failed = [check for check in map(checks.run_one, conformance.names()) if not check.ok]
    assert not failed, failed


def test_a16_our_own_checksum_is_compared(s3_places: Places, proxy: S3Proxy, clock: VirtualClock) -> None:
    """A put whose bytes change on the way: the server compares Content-MD5, and we the ETag that it tells."""
    broker = s3_places.add("a", endpoint_url=proxy.url)
    proxy.rules.append(
        lambda call: (
            Answer(200, b"", {"ETag": f'"{"0" * 32}"', "Content-Length": "5"})
            if call.method == "HEAD"
            else None
        )
    )
    with pytest.raises(Corrupt, match="another MD5"):
        verified_put(broker, "cs/ab/" + "ab" * 16, b"bytes", "0" * 64)


def test_a17_no_key_is_ever_put_twice_with_other_bytes(three: list[Broker], memory_places: Places,
                                                       clock: VirtualClock, drive: Drive) -> None:  # fmt: skip
    """Conditional puts are not needed: keys are random, and over failures, repairs and deletions a key goes with
    one string of bytes to one broker."""
    bodies: dict[str, set[bytes]] = defaultdict(set)
    holders: dict[str, set[int]] = defaultdict(set)
    with script(*three) as drivers:
        for number, driver in enumerate(drivers):
            driver.fail("put", Unavailable("down"), on=lambda call, n=number: call.number % 5 == n)
            driver.fail(
                "put", Unavailable("lost"), on=lambda call, n=number: call.number % 7 == n, after=True
            )
        for number in range(25):
            drive.keep(f"file {number % 10}", os.urandom(500))
        for node in Node.objects.filter(kind="file")[:5]:
            assert drive.client.delete(f"{drive.FILES}/{node.name}?purge=true").status_code == 204
            del drive.kept[node.name]
        for copies in (3, 2):
            policy.change(copies=copies)
            settle(clock, rounds=2, hours=13)
        for driver in drivers:
            driver.clear()
        settle(clock)
        for broker, driver in zip(three, drivers, strict=True):
            for call in driver.calls:
                if call.operation == "put" and call.name.startswith("cs/"):
                    assert is_object_key(call.name)
                    bodies[call.name].add(call.data or b"")
                    holders[call.name].add(broker.pk)
        at_rest(memory_places, three, drive)
    assert len(bodies) > 50
    assert {len(found) for found in bodies.values()} == {len(found) for found in holders.values()} == {1}


# -- A21 -----------------------------------------------------------------------------------------------------


def test_a21_a_clock_that_is_wrong(
    s3_places: Places, proxy: S3Proxy, clock: VirtualClock, drive: Drive
) -> None:
    """It is told as that, not as revoked credentials; nothing is lost or repaired by it."""
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "ab"]
    drive.keep("file", b"x" * 1000)
    skewed = error(403, "RequestTimeTooSkewed")
    proxy.rules.append(refusing(brokers[0], skewed, "GET", "PUT", "HEAD", "DELETE"))
    drive.get("file")
    row = health.poll(brokers[0].pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "clock_skewed")
    assert "clock" in row.health_detail
    [event] = BrokerEvent.objects.filter(broker=row, kind=Health.OFFLINE)
    assert event.detail.startswith("clock_skewed: the clock of this machine and the provider's")
    reconcile.run_to_rest()
    assert {r.state for r in Replica.objects.all()} == {State.STORED}
    proxy.rules.clear()
    settle(clock)
    at_rest(s3_places, brokers, drive)


# -- answers without end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "promise"),
    [(200, {"Content-Length": str(10 << 30)}), (206, {})],
    ids=["10 GiB", "without end"],
)
def test_a_get_that_is_answered_with_10_gib_is_capped(
    s3_places: Places, proxy: S3Proxy, clock: VirtualClock, drive: Drive, status: int, promise: dict[str, str]
) -> None:
    """No more is read than was asked for (or than any object has), the user's bytes come from the other copy, and
    this copy counts as bad."""
    brokers = [s3_places.add(name, endpoint_url=proxy.url) for name in "abc"]
    drive.keep("file", os.urandom(1_000_000))
    bad = Replica.objects.select_related("broker").order_by("broker__name")[0]
    liar = bad.broker
    Broker.objects.filter(pk=liar.pk).update(weight=0)
    flood = Answer(status, b"", promise, special="endless")
    proxy.rules.append(
        lambda call: flood if call.method == "GET" and of(liar, call.path) and "/cs/" in call.path else None
    )
    for part in ({"start": 0, "length": 1000}, {"start": 5, "length": 1000}, {}):
        with pytest.raises(Corrupt):
            open_broker(liar).get(bad.locator, **part)
    drive.check()
    scrub.scrub(everything=True)
    forget()
    assert 0 < proxy.sent_endlessly < 128 << 20, "the rest was never taken off the wire"
    assert Event.objects.filter(kind="lost", broker=liar).count() == 1
    settle(clock)
    assert not Replica.objects.filter(broker=liar).exists()
    at_rest(s3_places, brokers, drive)
