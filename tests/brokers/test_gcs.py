"""The Google Cloud Storage driver: the contract against a server, and every kind of failure gets its name."""

from __future__ import annotations

import base64
import json
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime

import pytest

from brokers import clock as clock_module
from brokers import health, registry
from brokers.drivers import gcs as gcs_module
from brokers.drivers.gcs import GoogleCloudBroker
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
from brokers.names import new_object_key
from brokers.open import OpenBroker
from brokers.services import add_broker, check_options
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from tests.servers.fake_gcs import CANARY, MAIL, fake_gcs, hashes, service_key  # noqa: F401
from tests.servers.faults import Answer, FaultServer
from tests.servers.s3proxy import S3Proxy

pytestmark = pytest.mark.only_on("sqlite")


@pytest.fixture(scope="module")
def _one_server() -> Iterator[FaultServer]:
    with FaultServer().running() as running:
        yield running


@pytest.fixture
def server(_one_server) -> FaultServer:
    _one_server.requests.clear()
    _one_server.bodies.clear()
    _one_server.answers = [Answer()]
    return _one_server


@pytest.fixture
def broker(server) -> Iterator[GoogleCloudBroker]:
    made = GoogleCloudBroker({"bucket": "bbb", "endpoint_url": server.url, "credentials": "none"})
    yield made
    made.close()


def told(body: object, status: int = 200, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json", **names})


def error(status: int, reason: str = "", **headers: str) -> Answer:
    about = {"code": status, "message": CANARY, "errors": [{"reason": reason, "message": CANARY}]}
    return told({"error": about}, status, **headers)


EMPTY = told({"kind": "storage#objects"})
HTML = {"Content-Type": "text/html"}


def described(data: bytes, **more: object) -> dict[str, object]:
    return {
        "kind": "storage#object",
        "name": "x",
        "size": str(len(data)),
        "generation": "7",
        "updated": "2030-01-01T00:00:00.000Z",
        **hashes(data),
        **more,
    }


CALLS = {
    "get": lambda b: b.download_file("x"),
    "range": lambda b: b.download_file("x", 5, 10),
    "put": lambda b: b.upload_file(b"bytes", "x"),
    "stat": lambda b: b.stat_file("x"),
    "delete": lambda b: b.delete_file("x"),
    "list": lambda b: list(b.list_files()),
    "prepare": lambda b: b.prepare(),
}
FAILURES = [
    (error(400, "invalid"), Misconfigured),
    (error(400, "userProjectMissing"), Misconfigured),
    (error(401, "authError"), Unauthorized),
    (error(403, "forbidden"), Unauthorized),
    (error(403, "accountDisabled"), Unauthorized),
    (error(403, "rateLimitExceeded"), RateLimited),
    (error(403, "quotaExceeded"), RateLimited),
    (error(403, "retentionPolicyNotMet"), Misconfigured),
    (error(408), Timeout),
    (error(409, "conflict"), Unavailable),
    (error(413, "uploadTooLarge"), TooLarge),
    (error(429, "rateLimitExceeded"), RateLimited),
    (error(500, "backendError"), Unavailable),
    (error(503, "backendError"), Unavailable),
    (error(507), OutOfSpace),
    (Answer(302, b"", {"Location": "https://login.example.com/"}), Unavailable),
    (Answer(403, b"<html>a proxy says no</html>", HTML), Unauthorized),
    (Answer(429), RateLimited),
    (Answer(502, b"<html>Bad gateway</html>", HTML), Unavailable),
    (Answer(504, b"<html>Gateway timeout</html>", HTML), Timeout),
    (Answer(special="reset"), Unavailable),
    (Answer(special="garbage"), Unavailable),
]


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(("answer", "kind"), FAILURES)
def test_every_failure_has_a_name(server, broker, operation, answer, kind):
    server.answers = [answer]
    with pytest.raises(BrokerError) as caught:
        CALLS[operation](broker)
    assert type(caught.value) is kind
    assert CANARY not in str(caught.value) and server.url not in str(caught.value)
    assert len(server.requests) == 1, "tries again only in its own layer"


@pytest.mark.parametrize("operation", ["put", "stat", "delete", "list", "prepare"])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>please sign in to this wifi</html>", HTML),
        told({}),
        told([]),
        told("text"),
        told({"kind": "storage#objects", "items": [{"size": "many"}]}),
    ],
)
def test_an_answer_of_something_else_is_an_outage(server, broker, operation, answer):
    server.answers = [answer]
    with pytest.raises(Unavailable):
        for _found in [CALLS[operation](broker)]:
            # A bucket is confirmed, and a delete done, without reading what an entry says of its size.
            if operation in ("delete", "prepare") and b"many" in answer.body:
                raise Unavailable


@pytest.mark.parametrize("operation", ["get", "range", "stat"])
def test_absence_is_believed_only_of_a_bucket_that_is_there(server, broker, operation):
    for second, kind in [
        (EMPTY, NotFound),
        (error(404, "notFound"), Misconfigured),
        (error(403, "forbidden"), Unauthorized),
        (error(503), Unavailable),
        (Answer(special="reset"), Unavailable),
        (Answer(200, b"<html></html>", HTML), Unavailable),
    ]:
        server.requests.clear()
        server.answers = [error(404, "notFound"), second]
        with pytest.raises(BrokerError) as caught:
            CALLS[operation](broker)
        assert type(caught.value) is kind
        assert len(server.requests) == 2


@pytest.mark.parametrize("operation", ["put", "delete", "list", "prepare"])
def test_a_bucket_that_is_gone(server, broker, operation):
    server.answers = [error(404, "notFound")]
    with pytest.raises(Misconfigured, match="no such bucket"):
        CALLS[operation](broker)


def test_how_long_to_wait_is_told(server, broker, clock):
    date = format_datetime(clock.now() + timedelta(seconds=30), True)
    for value, seconds in (("7", 7), (date, 30), ("soon", None)):
        server.answers = [error(429, "rateLimitExceeded", Retry_After=value)]
        for call in ("get", "put", "stat"):
            with pytest.raises(RateLimited) as caught:
                CALLS[call](broker)
            assert caught.value.retry_after == seconds


def test_a_clock_that_is_wrong_is_told_as_that(server, broker, clock):
    for hours, kind in ((2, ClockSkewed), (0, Unauthorized), (-2, ClockSkewed)):
        there = clock.now() + timedelta(hours=hours)

        class Dated(FaultServer):
            def give(self, handler, answer, there=there):
                handler.date_time_string = lambda timestamp=None: format_datetime(there, True)
                super().give(handler, answer)

        with Dated().running() as other:
            other.answers = [error(401, "authError")]
            made = GoogleCloudBroker({**broker.options, "endpoint_url": other.url})
            with pytest.raises(BrokerError) as caught:
                made.download_file("x")
            made.close()
        assert type(caught.value) is kind


def test_an_answer_that_breaks_off_is_no_object(server, broker):
    server.answers = [Answer(200, b"part", special="short")]
    with pytest.raises(Unavailable):
        broker.download_file("x")
    server.answers = [Answer(206, b"part", {"Content-Range": "bytes 5-14/100"}, special="short")]
    with pytest.raises(Unavailable):
        broker.download_file("x", 5, 10)


def test_bytes_that_changed_on_the_way_are_an_outage(server, broker):
    crc = hashes(b"right")["crc32c"]
    server.answers = [Answer(200, b"wrong", {"X-Goog-Hash": f"crc32c={crc}"})]
    with pytest.raises(Unavailable, match="CRC32C"):
        broker.download_file("x")
    server.answers = [Answer(200, b"right", {"X-Goog-Hash": f"crc32c={crc}"})]
    assert broker.download_file("x") == b"right"


def test_more_than_was_asked_for_is_not_read(server, broker):
    server.answers = [Answer(206, b"x" * 100_000, {"Content-Range": "bytes 5-14/100"})]
    with pytest.raises(Corrupt):
        broker.download_file("x", 5, 10)
    server.answers = [Answer(200, special="endless")]
    with pytest.raises(Corrupt):
        broker.download_file("x")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"0123456789"),
        Answer(206, b"0123456789", {"Content-Range": "bytes 0-9/100"}),
        Answer(206, b"0123456789"),
    ],
)
def test_another_range_than_was_asked_for_is_no_range(server, broker, answer):
    server.answers = [answer]
    with pytest.raises(Unavailable, match="range"):
        broker.download_file("x", 5, 10)


def test_ranges_that_cannot_be_satisfied(server, broker):
    server.answers = [error(416, "requestedRangeNotSatisfiable")]
    with pytest.raises(RangeError):
        broker.download_file("x", 5, 10)
    assert broker.download_file("x", 0, 10) == b""


def test_an_upload_is_one_request_that_replaces_nothing(server, broker):
    server.answers = [told(described(b"bytes"))]
    broker.upload_file(b"bytes", "cs/ab/x")
    ((method, path, _headers),) = server.requests
    assert method == "POST" and "uploadType=multipart" in path and "ifGenerationMatch=0" in path
    assert hashes(b"bytes")["crc32c"].encode() in server.bodies[0], "the provider can check"


def test_the_class_of_storage_and_the_project_that_pays(server, broker):
    server.answers = [told(described(b"bytes"))]
    made = GoogleCloudBroker({**broker.options, "storage_class": "NEARLINE", "project": "payer"})
    made.upload_file(b"bytes", "x")
    made.close()
    assert b'"NEARLINE"' in server.bodies[0] and "userProject=payer" in server.requests[0][1]


def test_other_bytes_stored_than_sent(server, broker):
    server.answers = [told(described(b"other")), Answer(204)]
    with pytest.raises(Unavailable):
        broker.upload_file(b"bytes", "x")
    assert [r[0] for r in server.requests] == ["POST", "DELETE"], "what is wrong does not stay"


def test_the_provider_sees_that_bytes_changed_on_the_way(server, broker):
    body = {"error": {"code": 400, "message": "Provided CRC32C hash doesn't match", "errors": []}}
    server.answers = [told(body, 400)]
    with pytest.raises(Unavailable):
        broker.upload_file(b"bytes", "x")


def test_a_name_that_is_taken(server, broker):
    name = new_object_key()
    server.answers = [error(412, "conditionNotMet"), told(described(b"bytes"))]
    assert broker.upload_file(b"bytes", name) == name
    for other in (b"other", b"longer"):
        server.answers = [error(412, "conditionNotMet"), told(described(other))]
        with pytest.raises(Corrupt):
            broker.upload_file(b"bytes", name)
    server.requests.clear()
    server.answers = [error(412), told(described(b"other")), told(described(b"bytes")), Answer(204)]
    broker.upload_file(b"bytes", "cs-marker")
    assert "ifGenerationMatch=7" in server.requests[2][1], "exactly what was seen is replaced"
    assert server.requests[3][0] == "DELETE" and "generation=7" in server.requests[3][1]


def test_a_delete_removes_every_generation_and_no_neighbour(server, broker):
    """Scripted: fake-gcs-server does not remove generations that are not the newest."""
    items = [{"name": "x", "generation": g} for g in ("3", "8")] + [{"name": "xy", "generation": "9"}]
    server.answers = [told({"kind": "storage#objects", "items": items}), Answer(204), error(404), EMPTY]
    broker.delete_file("x")
    assert "versions=true" in server.requests[0][1]
    removed = [path for method, path, _headers in server.requests if method == "DELETE"]
    assert [path.partition("?")[2].split("&")[0] for path in removed] == ["generation=3", "generation=8"]
    assert all("/o/x?" in path for path in removed)


def test_a_listing_goes_on_to_its_end(server, broker):
    item = {"name": "cs/1", "size": "3", "updated": "2030-01-01T00:00:00Z", **hashes(b"one")}
    first = {
        "kind": "storage#objects",
        "nextPageToken": "more",
        "items": [item, {"name": "cs/", "size": "0"}],
    }
    last = {"kind": "storage#objects", "items": [{**item, "name": "cs/2"}]}
    server.answers = [told(first), told({"kind": "storage#objects", "nextPageToken": "again"}), told(last)]
    found = list(broker.list_files("cs/"))
    assert [f.path for f in found] == ["cs/1", "cs/2"] and found[0].size == 3
    assert "pageToken=again" in server.requests[2][1]
    server.answers = [told(first), error(503)]
    with pytest.raises(Unavailable):
        list(broker.list_files("cs/"))


@pytest.mark.parametrize(("change", "known"), [({}, True), ({"md5Hash": None}, False)])
def test_a_checksum_only_where_one_is_told(server, broker, change, known):
    server.answers = [told(described(b"12345", **change))]
    found = broker.stat_file("x")
    md5 = base64.b64decode(hashes(b"12345")["md5Hash"]).hex()
    assert found.checksum == (f"md5:{md5}" if known else None)
    assert found.size == 5 and found.modified is not None and found.modified.year == 2030


def test_credentials_that_only_read_make_the_place_read_only(server, broker):
    server.answers = [error(403, "forbidden"), EMPTY]
    with pytest.raises(ReadOnly):
        broker.probe()
    server.answers = [error(403, "forbidden")]
    with pytest.raises(Unauthorized):
        broker.probe()


def test_nobody_listens(broker):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = {**broker.options, "endpoint_url": f"http://127.0.0.1:{free.getsockname()[1]}"}
    for call in CALLS.values():
        made = GoogleCloudBroker(options)
        with pytest.raises(Unavailable):
            call(made)
        made.close()


@pytest.mark.parametrize("operation", ["get", "put", "list"])
def test_no_answer_is_a_timeout(monkeypatch, server, broker, operation):
    monkeypatch.setattr(gcs_module, "READ_SECONDS", 0.2)
    server.answers = [Answer(special="hang")]
    with pytest.raises(Timeout):
        CALLS[operation](broker)


def test_names_have_limits(broker, server):
    for name in ("", "x" * 1025, "a\nb"):
        with pytest.raises(InvalidKey):
            broker.upload_file(b"", name)
    assert not server.requests


# -- credentials and options -------------------------------------------------------------------------------


def test_a_service_account_signs_its_own_tokens(server, service_key):  # noqa: F811
    options = {"bucket": "bbb", "endpoint_url": server.url, "service_account_key": service_key}
    plain, secrets = check_options("gcs", options)
    assert set(secrets) == {"service_account_key"} and CANARY not in str(plain)
    broker = GoogleCloudBroker({**plain, **secrets})
    server.answers = [EMPTY]
    assert list(broker.list_files()) == []
    scheme, token = server.requests[0][2]["authorization"].split()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert scheme == "Bearer" and claims["iss"] == MAIL and claims["scope"] == gcs_module.SCOPE
    assert CANARY not in f"{broker!r} {broker}"
    server.answers = [error(401, "authError"), EMPTY]
    with pytest.raises(Unauthorized):
        list(broker.list_files())
    list(broker.list_files())
    broker.close()


def test_no_credentials_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    broker = GoogleCloudBroker({"bucket": "bbb", "credentials": "ambient"})
    with pytest.raises(Misconfigured, match="this machine"):
        broker.probe()


def test_the_environment_does_not_lead_elsewhere(monkeypatch, server, broker):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    server.answers = [EMPTY]
    broker.prepare()
    assert len(server.requests) == 1


def test_a_missing_package_is_said_so(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("google.cloud")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(Misconfigured, match="google-cloud-storage"):
        registry.construct("gcs", {"bucket": "bbb", "credentials": "none"})


# -- a server ----------------------------------------------------------------------------------------------


def _connect(server, bucket: str, **more):
    if bucket not in {b["name"] for b in server.call("GET", "/b?project=tests").get("items", [])}:
        server.new_bucket(bucket, versioning={"enabled": bucket.startswith("versioned")})
    plain, secrets = check_options("gcs", server.options(bucket, **more))
    return lambda: OpenBroker(GoogleCloudBroker({**plain, **secrets}))


@pytest.mark.parametrize("name", conformance.names())
@pytest.mark.parametrize("bucket", ["plain", "versioned"])
def test_the_contract(fake_gcs, service_key, bucket, name):  # noqa: F811
    more = {"prefix": "some/where"} if bucket == "versioned" else {}
    connect = _connect(fake_gcs, bucket, **{**more, "credentials": "key", "service_account_key": service_key})
    secrets = (CANARY, MAIL, json.loads(service_key)["private_key"][100:200])
    gone = GoogleCloudBroker(fake_gcs.options("never-made"))
    check = Conformance(connect, secrets=secrets, vanished=lambda: OpenBroker(gone)).run_one(name)
    assert check.ok, check.detail
    assert not check.skipped, check.detail


def test_an_upload_whose_answer_was_lost_can_be_repeated(fake_gcs):  # noqa: F811
    _connect(fake_gcs, "plain")
    name = new_object_key()
    with S3Proxy(fake_gcs.url).running() as proxy:
        broker = GoogleCloudBroker({**fake_gcs.options("plain"), "endpoint_url": proxy.url})
        proxy.rules.append(lambda call: "drop" if call.method == "POST" else None)
        with pytest.raises(Unavailable):
            broker.upload_file(b"bytes", name)
        proxy.rules.clear()
        assert broker.upload_file(b"bytes", name) == name
        with pytest.raises(Corrupt):
            broker.upload_file(b"other", name)
        assert broker.download_file(name) == b"bytes"
        broker.delete_file(name)
        broker.close()


@pytest.mark.django_db
def test_a_bucket_from_adding_to_losing_it(clock, fake_gcs):  # noqa: F811
    with pytest.raises(Misconfigured, match="no such bucket"):
        add_broker("GCS", "gcs", "google", fake_gcs.options("not-there"))
    fake_gcs.new_bucket("life")
    broker = add_broker("GCS", "gcs", "google", fake_gcs.options("life", prefix="drive"))
    assert broker.health == Health.ONLINE
    keys = {o["name"] for o in fake_gcs.objects("life")}
    assert keys == {"drive/cs-marker", "drive/cs-probe"}
    with pytest.raises(Misconfigured, match="already the broker"):
        add_broker("Again", "gcs", "google", fake_gcs.options("life", prefix="/drive/"))
    for key in keys:
        fake_gcs.remove("life", key)
    fake_gcs.call("DELETE", "/b/life")
    row = health.poll(broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "misconfigured")
    assert clock_module.now()
