"""The shipped suite on every driver, and the suite itself on drivers that break their promises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import ClassVar

import pytest

from brokers import open as open_module
from brokers.driver import CloudBroker, StoredFile
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

pytestmark = pytest.mark.only_on("sqlite")


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


@pytest.fixture
def gone(request, place) -> Callable[[], OpenBroker] | None:
    """The same kind of place where there is none."""
    if place in ("five", "names_only"):
        cls = CustomBroker if place == "five" else NamesOnly
        return lambda: OpenBroker(cls(request.getfixturevalue("tmp_path") / "gone"))
    if place == "local":
        root = request.getfixturevalue("roots") / "gone"
        return lambda: OpenBroker(LocalBroker({"root": str(root)}))
    if place.startswith("s3"):
        from brokers.drivers.s3 import S3Broker

        options = request.getfixturevalue("seaweedfs").options("never-made")
        return lambda: OpenBroker(S3Broker(options))
    return None


@pytest.mark.parametrize("name", conformance.names())
@pytest.mark.parametrize("place", ["memory", "local", "five", "names_only", "s3", "s3_versioned"])
def test_driver(request, place, gone, name):
    connect = request.getfixturevalue(place)
    check = Conformance(connect, secrets=(SECRET_KEY,), vanished=gone).run_one(name)
    assert check.ok, check.detail
    assert not check.skipped or (place, name) in SKIPPED, check.detail


NO_PAGES = ("memory", "local", "five", "names_only")
SKIPPED = {(place, "list_pages") for place in NO_PAGES} | {
    ("memory", "vanished"),
    ("five", "clock"),
    ("names_only", "clock"),
}


class Declares(MemoryBroker):
    deviations: ClassVar = {"one_byte": "cannot", "delete": "cannot"}


def test_a_declared_deviation_is_no_failure_but_a_kept_promise_is():
    def connect() -> OpenBroker:
        return OpenBroker(Declares({"space": "declares"}))

    kept = Conformance(connect).run_one("one_byte")
    assert not kept.ok and "promise is kept" in kept.detail

    class Broken(Declares):
        def delete_file(self, storage_path: str) -> None:
            if not clean_up:
                raise Unavailable("never")
            super().delete_file(storage_path)

    clean_up = False
    suite = Conformance(lambda: OpenBroker(Broken({"space": "declares"})))
    suite._clean_up = lambda: 0  # type: ignore[method-assign]
    check = suite.run_one("delete")
    assert check.ok and check.deviation == "cannot" and "never" in check.detail


class Chatty(MemoryBroker):
    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        logging.getLogger("chatty").info("with %s", self.options["key"])
        return super().download_file(storage_path, start, length)


class Careless(MemoryBroker):
    def stat_file(self, storage_path: str) -> StoredFile:
        try:
            raise ValueError(self.options["key"])
        except ValueError as error:
            raise Unavailable("hidden, but for the cause") from error


@pytest.mark.parametrize(("cls", "where"), [(Chatty, "the log"), (Careless, "an exception (ValueError)")])
def test_the_suite_sees_a_secret_that_is_logged_or_a_cause(clock, cls, where):
    suite = Conformance(lambda: OpenBroker(cls({"space": "t", "key": "canary"})), secrets=("canary",))
    check = suite.run_one("no_secret_shown")
    assert not check.ok and where in check.detail


class Pageless(MemoryBroker):
    list_page = 1000

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        return islice(super().list_files(path), self.list_page)


def test_the_suite_sees_a_listing_that_stops_after_a_page():
    check = Conformance(lambda: OpenBroker(Pageless({"space": "p"}))).run_one("list_pages")
    assert not check.ok and "5 objects listed" in check.detail


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


def below_its_prefix(driver: CloudBroker) -> list[str]:
    return [found.path for found in driver.list_files("cs-check/")]


def test_nothing_is_left_by_a_run_that_is_interrupted(clock, monkeypatch):
    driver = MemoryBroker({"space": "interrupted"})
    suite = Conformance(lambda: OpenBroker(MemoryBroker({"space": "interrupted"})))

    def interrupted(self) -> None:
        self._put(b"x")
        assert below_its_prefix(driver)
        raise KeyboardInterrupt

    monkeypatch.setattr(Conformance, "check_ranges", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite.run()
    assert not below_its_prefix(driver) and suite.left == []


class StoresAndFails(MemoryBroker):
    """Its answers to writes get lost."""

    def upload_file(self, file_data: bytes, filename: str) -> str:
        super().upload_file(file_data, filename)
        raise Unavailable("the answer was lost")


class KeepsThem(StoresAndFails):
    def delete_file(self, storage_path: str) -> None:
        raise Unavailable("not now")


def test_what_was_stored_although_the_put_failed_goes_as_well(clock):
    suite = Conformance(lambda: OpenBroker(StoresAndFails({"space": "lost-answers"})), largest=100_000)
    assert not all(check.ok for check in suite.run())
    assert not below_its_prefix(MemoryBroker({"space": "lost-answers"})) and suite.left == []


def test_what_cannot_be_removed_is_told(clock):
    suite = Conformance(lambda: OpenBroker(KeepsThem({"space": "kept"})), largest=100_000)
    suite.run()
    assert suite.left and sorted(suite.left) == sorted(below_its_prefix(MemoryBroker({"space": "kept"})))


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
    operations = {n for n in vars(OpenBroker) if not n.startswith("_")} - {
        "latency",
        "hanging",
        "retire",
        "refuse_until",
        "settle",
    }
    assert operations <= set(LIMITS)
    assert issubclass(MemoryBroker, CloudBroker) and open_module.CONCURRENCY > 0


def test_a_folder_is_left_as_it_was(roots, local):
    """Except for what other processes keep there."""
    opened = local()
    opened.put("cs-check/another/x", b"of another run")
    for name in ("list", "key_grammar", "interrupted_put"):
        assert Conformance(local).run_one(name).ok
    left = {
        p.relative_to(roots / "disk").as_posix() for p in (roots / "disk").rglob("*") if ".tmp" not in p.parts
    }
    assert left == {"cs-check", "cs-check/another", "cs-check/another/x"}
    opened.delete("cs-check/another/x")
    Conformance(local).run_one("one_byte")
    assert not (roots / "disk/cs-check").exists()
