"""The shipped suite on every driver, and the suite itself on drivers that break their promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from brokers import open as open_module
from brokers.driver import CloudBroker
from brokers.drivers.local import LocalBroker
from brokers.drivers.memory import MemoryBroker
from brokers.errors import Unavailable
from brokers.layers.call import LIMITS
from brokers.open import OpenBroker
from brokers.services import check_options
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from brokers.testing.faulty import FaultyBroker
from tests.brokers.readme_broker import CustomBroker, NamesOnly
from tests.servers.seaweedfs import SECRET_KEY


@pytest.fixture
def memory() -> Callable[[], OpenBroker]:
    return lambda: OpenBroker(MemoryBroker({"space": "conformance"}))


@pytest.fixture
def local(roots) -> Callable[[], OpenBroker]:
    options, _secrets = check_options("local", {"root": str(roots / "disk")})
    LocalBroker(options).prepare()
    return lambda: OpenBroker(LocalBroker(options))


@pytest.fixture
def five(tmp_path) -> Callable[[], OpenBroker]:
    return lambda: OpenBroker(CustomBroker(tmp_path, api_token=SECRET_KEY))


@pytest.fixture
def names_only(tmp_path) -> Callable[[], OpenBroker]:
    return lambda: OpenBroker(NamesOnly(tmp_path))


@pytest.fixture
def s3(seaweedfs) -> Callable[[], OpenBroker]:
    return _s3(seaweedfs, "plain")


@pytest.fixture
def s3_versioned(seaweedfs) -> Callable[[], OpenBroker]:
    connect = _s3(seaweedfs, "versioned", prefix="some/where")
    seaweedfs.client().put_bucket_versioning(
        Bucket="versioned", VersioningConfiguration={"Status": "Enabled"}
    )
    return connect


def _s3(server, bucket: str, **more) -> Callable[[], OpenBroker]:
    from brokers.drivers.s3 import S3Broker

    client = server.client()
    if bucket not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
        server.new_bucket(bucket)
    plain, secrets = check_options("s3", server.options(bucket, **more))
    return lambda: OpenBroker(S3Broker({**plain, **secrets}))


@pytest.mark.parametrize("name", conformance.names())
@pytest.mark.parametrize("place", ["memory", "local", "five", "names_only", "s3", "s3_versioned"])
def test_driver(request, place, name):
    check = Conformance(request.getfixturevalue(place), secrets=(SECRET_KEY,)).run_one(name)
    assert check.ok, check.detail


def test_a_versioned_bucket_keeps_nothing_that_was_deleted(s3_versioned, seaweedfs):
    client = seaweedfs.client()
    opened = s3_versioned()
    for _ in range(2):
        locator = opened.put("cs/ab/twice", b"bytes")
    opened.put("cs/ab/twice-as-long", b"a neighbour")
    opened.delete(locator)
    found = client.list_object_versions(Bucket="versioned", Prefix="some/where/cs/ab/")
    assert [v["Key"] for v in found["Versions"]] == ["some/where/cs/ab/twice-as-long"]
    assert not found.get("DeleteMarkers")
    opened.delete("cs/ab/twice-as-long")


Break = Callable[[FaultyBroker], object]
BREAKS: dict[str, tuple[Break, set[str]]] = {
    "bits": (
        lambda f: f.flip("get"),
        {"one_byte", "one_mebibyte", "ranges", "read_after_write", "same_again"},
    ),
    "lost": (lambda f: f.lose(), {"one_byte", "empty_object", "list", "stat", "threads", "buffers"}),
    "cut": (lambda f: f.truncate("put", 10), {"one_mebibyte", "stat", "ranges"}),
    "kept": (lambda f: f.keep(), {"delete", "read_after_write"}),
    "size": (lambda f: f.lie(size=7), {"stat", "one_byte"}),
    "checksum": (lambda f: f.lie(checksum="sha256:00"), {"stat"}),
    "hidden": (lambda f: f.hide(lambda path: path[-1] < "8"), {"list"}),
    "room": (lambda f: f.capacity({"total": 1, "used": 2, "available": 0}), {"storage_info"}),
    "outage": (lambda f: f.fail("stat", Unavailable("x")), {"absent", "stat"}),
    "ranges": (lambda f: f.swap("get", b"other", on=lambda r: True), {"ranges", "buffers"}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_suite_sees_a_broken_promise(clock, name):
    """A suite that cannot fail proves nothing."""
    script, failing = BREAKS[name]

    def connect() -> OpenBroker:
        broken = FaultyBroker(MemoryBroker({"space": "broken"}))
        script(broken)
        return OpenBroker(broken)

    checks = Conformance(connect, largest=100_000).run()
    assert failing <= {c.name for c in checks if not c.ok}
    assert all(c.detail for c in checks if not c.ok)


class Talkative(MemoryBroker):
    def __repr__(self) -> str:
        return f"Talkative({self.options})"


def test_the_suite_sees_a_secret_that_is_printed():
    suite = Conformance(lambda: OpenBroker(Talkative({"space": "t", "key": "canary"})), secrets=("canary",))
    assert not suite.run_one("no_secret_shown").ok


def test_every_driver_call_has_a_limit():
    operations = {n for n in vars(OpenBroker) if not n.startswith("_")} - {"latency", "hanging", "retire"}
    assert operations <= set(LIMITS)
    assert issubclass(MemoryBroker, CloudBroker) and open_module.CONCURRENCY > 0
