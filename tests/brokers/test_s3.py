"""The S3 driver: every kind of failure gets its name, and an outage never looks like absence."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from typing import ClassVar

import pytest

from brokers import health
from brokers.drivers import s3 as s3_module
from brokers.drivers.s3 import S3Broker
from brokers.errors import (
    BrokerError,
    ClockSkewed,
    Corrupt,
    InvalidKey,
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
from brokers.models import Health
from brokers.services import InvalidOptions, add_broker, check_options
from tests.brokers.fault_table import FaultTable
from tests.servers.faults import Answer, FaultServer
from tests.servers.seaweedfs import SECRET_KEY

pytestmark = pytest.mark.only_on("sqlite")


@pytest.fixture(scope="module")
def _one_server() -> Iterator[FaultServer]:
    with FaultServer().running() as running:
        yield running


@pytest.fixture(scope="module")
def _one_broker(_one_server) -> S3Broker:
    """One for all tests: the SDK takes its time to start."""
    return S3Broker(
        {
            "bucket": "b",
            "endpoint_url": _one_server.url,
            "access_key": "k",
            "secret_key": SECRET_KEY,
            "addressing_style": "path",
        }
    )


@pytest.fixture
def server(_one_server) -> FaultServer:
    _one_server.requests.clear()
    _one_server.answers = [Answer()]
    return _one_server


@pytest.fixture
def broker(server, _one_broker) -> S3Broker:
    return _one_broker


class TestFaults(FaultTable):
    """The table of all drivers that speak HTTP; S3's own codes are below."""

    canary = SECRET_KEY
    # Answers to HEAD have no body and may have no Retry-After; a 416 from the start is an empty object's.
    differs: ClassVar = {("404", "get"): Misconfigured}

    def say(self, status: int, headers: dict[str, str]) -> Answer:
        if status == 404:
            return error("NoSuchBucket", 404)
        return error("Whatever", status, **{name.replace("-", "_"): value for name, value in headers.items()})


def error(code: str, status: int, **headers: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{SECRET_KEY}</Message></Error>"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body.encode(), {"Content-Type": "application/xml", **names})


CALLS = {
    "get": lambda b: b.download_file("x"),
    "range": lambda b: b.download_file("x", 5, 10),
    "put": lambda b: b.upload_file(b"bytes", "x"),
    "delete": lambda b: b.delete_file("x"),
    "list": lambda b: list(b.list_files()),
    "prepare": lambda b: b.prepare(),
}
WITH_BODY = [
    (error("AccessDenied", 403), Unauthorized),
    (error("InvalidAccessKeyId", 403), Unauthorized),
    (error("SignatureDoesNotMatch", 403), Unauthorized),
    (error("ExpiredToken", 400), Unauthorized),
    (error("RequestTimeTooSkewed", 403), ClockSkewed),
    (error("Whatever", 401), Unauthorized),
    (error("NoSuchBucket", 404), Misconfigured),
    (error("PermanentRedirect", 301), Misconfigured),
    (error("AuthorizationHeaderMalformed", 400), Misconfigured),
    (error("MethodNotAllowed", 405), Misconfigured),
    (error("NotImplemented", 501), Unavailable),
    (error("SlowDown", 503), RateLimited),
    (error("ServiceUnavailable", 503), Unavailable),
    (error("TooManyRequests", 429), RateLimited),
    (error("InternalError", 500), Unavailable),
    (error("OperationAborted", 409), Unavailable),
    (error("RequestTimeout", 400), Timeout),
    (error("QuotaExceeded", 403), OutOfSpace),
    (error("Whatever", 507), OutOfSpace),
    (error("EntityTooLarge", 400), TooLarge),
    (error("BadDigest", 400), Unavailable),
    (Answer(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}), Unavailable),
    (Answer(504, b"<html>Gateway timeout</html>"), Timeout),
    (Answer(429), RateLimited),
    (Answer(503), RateLimited),
    (Answer(special="reset"), Unavailable),
    (Answer(special="garbage"), Unavailable),
]


@pytest.mark.parametrize("operation", ["get", "range", "put", "delete", "list"])
@pytest.mark.parametrize(("answer", "kind"), WITH_BODY)
def test_every_failure_has_a_name(server, broker, operation, answer, kind):
    server.answers = [answer]
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker)
    assert type(caught.value) is kind
    assert SECRET_KEY not in str(caught.value)
    assert len(server.requests) == 1, "tries again only in its own layer"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (403, Unauthorized), (429, RateLimited), (500, Unavailable), (503, RateLimited)],
)
def test_head_has_no_body_to_tell_more(server, broker, status, kind):
    server.answers = [Answer(status)]
    for call in (lambda: broker.stat_file("x"), broker.prepare):
        with pytest.raises(BrokerError) as caught:
            call()
        assert type(caught.value) is kind


def test_absence_is_believed_only_of_a_bucket_that_is_there(server, broker):
    server.answers = [Answer(404), Answer(200)]
    with pytest.raises(NotFound):
        broker.stat_file("x")
    assert [r[0] for r in server.requests] == ["HEAD", "HEAD"]
    for second, kind in [(404, Misconfigured), (403, Unauthorized), (500, Unavailable)]:
        server.answers = [Answer(404), Answer(second)]
        with pytest.raises(kind):
            broker.stat_file("x")
        server.answers = [Answer(404, b"<html>no such page</html>"), Answer(second)]
        with pytest.raises(kind):
            broker.download_file("x")
    server.requests.clear()
    server.answers = [error("NoSuchKey", 404)]
    with pytest.raises(NotFound):
        broker.download_file("x")
    assert len(server.requests) == 1


def test_deleting_what_is_absent_is_success_but_not_from_a_bucket_that_is_gone(server, broker):
    server.answers = [error("NoSuchKey", 404)]
    broker.delete_file("x")
    server.answers = [error("NoSuchBucket", 404)]
    with pytest.raises(Misconfigured):
        broker.delete_file("x")


def test_how_long_to_wait_is_told(server, broker, clock):
    server.answers = [error("SlowDown", 503, Retry_After="7")]
    with pytest.raises(RateLimited) as caught:
        broker.download_file("x")
    assert caught.value.retry_after == 7
    server.answers = [
        error("SlowDown", 503, Retry_After=format_datetime(clock.now() + timedelta(seconds=30), True))
    ]
    with pytest.raises(RateLimited) as caught:
        broker.download_file("x")
    assert caught.value.retry_after == 30
    server.answers = [error("SlowDown", 503, Retry_After="soon")]
    with pytest.raises(RateLimited) as caught:
        broker.download_file("x")
    assert caught.value.retry_after is None


def test_a_clock_that_is_wrong_is_told_as_that(server, broker):
    server.answers = [error("RequestTimeTooSkewed", 403)]
    with pytest.raises(ClockSkewed, match="clock"):
        broker.upload_file(b"x", "x")


def test_an_answer_that_breaks_off_is_no_object(server, broker):
    server.answers = [Answer(200, b"part", special="short")]
    with pytest.raises(Unavailable):
        broker.download_file("x")
    server.answers = [Answer(206, b"part", {"Content-Range": "bytes 5-14/100"}, special="short")]
    with pytest.raises(Unavailable):
        broker.download_file("x", 5, 10)


def test_more_than_was_asked_for_is_not_read(server, broker):
    server.answers = [Answer(206, b"x" * 100_000, {"Content-Range": "bytes 5-14/100"})]
    with pytest.raises(Corrupt):
        broker.download_file("x", 5, 10)


def test_a_provider_that_knows_no_ranges(server, broker):
    server.answers = [Answer(200, b"0123456789")]
    assert broker.download_file("x", 2, 3) == b"234"
    assert broker.download_file("x", 8) == b"89"
    with pytest.raises(RangeError):
        broker.download_file("x", 10, 1)


def test_ranges_that_cannot_be_satisfied(server, broker):
    server.answers = [error("InvalidRange", 416)]
    with pytest.raises(RangeError):
        broker.download_file("x", 5, 10)
    assert broker.download_file("x", 0, 10) == b""


def test_a_listing_that_is_no_listing_is_an_outage(server, broker):
    server.answers = [Answer(200, b"<html>please sign in to this wifi</html>", {"Content-Type": "text/html"})]
    with pytest.raises(Unavailable):
        list(broker.list_files())


def test_nobody_listens(broker, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = {**broker.options, "endpoint_url": f"http://127.0.0.1:{free.getsockname()[1]}"}
    for call in CALLS.values():
        with pytest.raises(Unavailable):
            call(S3Broker(options))


def test_no_answer_is_a_timeout(monkeypatch, server, broker):
    monkeypatch.setattr(s3_module, "READ_SECONDS", 0.2)
    server.answers = [Answer(special="hang")]
    with pytest.raises(Timeout):
        S3Broker(broker.options).download_file("x")


def test_requests_are_what_all_providers_take(server, broker):
    server.answers = [Answer(200, b"", {"ETag": '"x"'})]
    broker.upload_file(b"bytes", "cs/ab/x")
    method, path, headers = server.requests[0]
    names = {name.lower() for name in headers}
    assert (method, path) == ("PUT", "/b/cs/ab/x")
    assert (
        headers["Content-MD5"] == base64.b64encode(hashlib.md5(b"bytes").digest()).decode()
        and headers["Content-Length"] == "5"
    )
    assert not {n for n in names if n.startswith(("x-amz-checksum", "x-amz-sdk", "x-amz-trailer"))}


@pytest.mark.parametrize(
    ("headers", "checksum"),
    [
        ({"ETag": f'"{"0a" * 16}"'}, "md5:" + "0a" * 16),
        ({"ETag": f'"{"0A" * 16}"', "x-amz-server-side-encryption": "AES256"}, "md5:" + "0a" * 16),
        ({"ETag": f'"{"0a" * 16}"', "x-amz-server-side-encryption": "aws:kms"}, None),
        ({"ETag": f'"{"0a" * 16}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"}, None),
        ({"ETag": f'"{"0a" * 16}-2"'}, None),
        ({"ETag": '"opaque"'}, None),
        ({}, None),
    ],
)
def test_an_etag_is_a_checksum_only_when_it_is_one(server, broker, headers, checksum):
    server.answers = [Answer(200, b"12345", {"Last-Modified": "Tue, 01 Jan 2030 00:00:00 GMT", **headers})]
    found = broker.stat_file("x")
    assert found.checksum == checksum and found.size == 5 and found.modified.year == 2030


def test_names_have_limits(broker, server):
    for name in ("", "x" * 1025):
        with pytest.raises(InvalidKey):
            broker.upload_file(b"", name)
    assert not server.requests


def test_keys_that_only_read_make_the_place_read_only(server, broker):
    listing = Answer(
        200,
        b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        {"Content-Type": "application/xml"},
    )
    server.answers = [error("AccessDenied", 403), listing]
    with pytest.raises(ReadOnly):
        broker.probe()
    server.answers = [error("AccessDenied", 403)]
    with pytest.raises(Unauthorized):
        broker.probe()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bucket": ""}, "bucket"),
        ({"endpoint_url": "ftp://x"}, "endpoint_url"),
        ({"endpoint_url": "s3.example.com"}, "endpoint_url"),
        ({"endpoint_url": "http://user:pw@x"}, "endpoint_url"),
        ({"endpoint_url": "http://x:99999"}, "endpoint_url"),
        ({"endpoint_url": "http://169.254.169.254"}, "endpoint_url"),
        ({"endpoint_url": "http://[::ffff:169.254.169.254]"}, "endpoint_url"),
        ({"endpoint_url": "http://0.0.0.0:80"}, "endpoint_url"),
        ({"addressing_style": "odd"}, "addressing_style"),
        ({"prefix": "a/../b"}, "prefix"),
        ({"secret_key": ""}, "secret_key"),
    ],
)
def test_options_are_checked(change, field):
    good = {"bucket": "b", "access_key": "k", "secret_key": "s", "endpoint_url": "https://s3.example.com/"}
    plain, secrets = check_options("s3", {**good, "prefix": "/a/b/"})
    assert plain["endpoint_url"] == "https://s3.example.com" and plain["prefix"] == "a/b"
    assert secrets == {"secret_key": "s"} and plain["addressing_style"] == "auto"
    with pytest.raises(InvalidOptions) as caught:
        check_options("s3", {**good, **change})
    assert field in caught.value.errors


# -- a real server -----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_real_bucket_from_adding_to_losing_it(clock, seaweedfs):
    client = seaweedfs.client()
    with pytest.raises(Misconfigured, match="no such bucket"):
        add_broker("S3", "s3", "weed", seaweedfs.options("not-there"))
    seaweedfs.new_bucket("life")
    with pytest.raises(Unauthorized):
        add_broker("S3", "s3", "weed", {**seaweedfs.options("life"), "secret_key": "wrong"})
    broker = add_broker("S3", "s3", "weed", seaweedfs.options("life", prefix="drive"))
    assert broker.health == Health.ONLINE and "secret_key" not in broker.options
    keys = {o["Key"] for o in client.list_objects_v2(Bucket="life")["Contents"]}
    assert keys == {"drive/cs-marker", "drive/cs-probe"}
    with pytest.raises(Misconfigured, match="already the broker"):
        add_broker("Again", "s3", "weed", seaweedfs.options("life", prefix="/drive/"))
    for key in keys:
        client.delete_object(Bucket="life", Key=key)
    client.delete_bucket(Bucket="life")
    row = health.poll(broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "misconfigured")
