"""Opening, closing, forgetting; and what a fork leaves."""

from __future__ import annotations

import os
import threading

import pytest

from brokers import open as open_module
from brokers import registry
from brokers.drivers.memory import MemoryBroker
from brokers.drivers.s3 import S3Broker
from brokers.errors import Misconfigured
from brokers.models import Broker
from brokers.open import OpenBroker, connect, forget, open_broker, wrap
from brokers.services import add_broker
from brokers.testing.faulty import FaultyBroker
from tests.brokers.readme_broker import CustomBroker

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]


class Closing(MemoryBroker):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_one_open_broker_for_each_row_and_revision(memory_broker):
    first = open_broker(memory_broker)
    assert open_broker(Broker.objects.get()) is first
    stale = Broker.objects.get()
    Broker.objects.update(revision=2)
    second = open_broker(Broker.objects.get())
    assert second is not first
    assert open_broker(stale) is second, "an old row in hand must not bring an old connection back"


def test_the_old_connection_closes_when_its_last_call_ends(memory_broker):
    driver = FaultyBroker(Closing({"space": "one"}))
    opened = OpenBroker(driver)
    gate = driver.hang("get", on=1)
    thread = threading.Thread(target=opened.get, args=("cs-marker",))
    thread.start()
    while not driver.calls:
        pass
    opened.retire()
    opened.retire()
    assert driver.inner.closed == 0
    gate.set()
    thread.join()
    assert driver.inner.closed == 1


def test_a_row_with_the_number_of_a_removed_one_is_another_broker(memory_broker):
    first = open_broker(memory_broker)
    pk = memory_broker.pk
    memory_broker.delete()
    other = Broker(pk=pk, name="x", driver="memory", domain="d", options={"space": "x"})
    assert open_broker(other) is not first


def test_many_threads_open_one(memory_broker):
    forget()
    barrier, found = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        found.append(open_broker(memory_broker))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(o) for o in found}) == 1


def test_wrap_concerns_one_broker_or_all(memory_broker):
    other = add_broker("Other", "memory", "o", {"space": "o"})
    with wrap(other.pk, FaultyBroker):
        assert isinstance(open_broker(other)._driver, FaultyBroker)
        assert isinstance(open_broker(memory_broker)._driver, MemoryBroker)
    assert isinstance(open_broker(other)._driver, MemoryBroker)
    with wrap(None, FaultyBroker):
        assert isinstance(open_broker(memory_broker)._driver, FaultyBroker)
        assert isinstance(connect(memory_broker)._driver, FaultyBroker)


def test_a_child_opens_its_own(memory_broker):
    """A fork in the middle of everything: the lock is held and calls have run on threads."""
    parent = open_broker(memory_broker)
    assert parent.get("cs-marker")
    read, write = os.pipe()
    with open_module._lock:
        pid = os.fork()
        if pid == 0:
            answer = b"?"
            try:
                own = open_broker(memory_broker)
                fresh = own is not parent and own.get("cs-marker") and parent.get("cs-marker")
                answer = b"y" if fresh else b"n"
            finally:
                os.write(write, answer)
                os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(read, 1) == b"y"
    os.close(read)
    assert open_broker(memory_broker) is parent and parent.get("cs-marker")


def test_a_child_does_not_close_what_it_inherited(memory_broker):
    driver = Closing({"space": "one"})
    opened = OpenBroker(driver)
    pid = os.fork()
    if pid == 0:
        opened.retire()
        os._exit(driver.closed)
    assert os.waitpid(pid, 0)[1] == 0
    opened.retire()
    assert driver.closed == 1


# -- registry ----------------------------------------------------------------------------------------------


def test_shipped_kinds(settings):
    settings.CLOUDSTORE_BROKERS = {}
    assert registry.get("s3").cls is S3Broker and registry.get("s3").secret_options == {"secret_key"}
    labels = dict(registry.choices())
    assert labels["local"] == "Local folder" and "memory" not in labels


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.at.all.Broker", "there is no module 'nowhere'"),
        ("tests.brokers.readme_broker.Missing", "there is no class 'Missing'"),
        ("tests.brokers.readme_broker.shutil", "there is no class 'shutil'"),
        ("tests.brokers.readme_broker.Incomplete", "has no method download_file, delete_file"),
        ("tests.brokers.needs_sdk.Broker", "needs the Python package that provides 'an_sdk_not_installed'"),
        ("Broker", "is not a dotted path"),
    ],
)
def test_a_wrong_registration_says_what_is_wrong(settings, path, text):
    settings.CLOUDSTORE_BROKERS = {"custom": path}
    with pytest.raises(Misconfigured, match=text):
        registry.get("custom")
    assert any(slug == "custom" and "not usable" in label for slug, label in registry.choices())


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(Misconfigured, match=r"local, .*memory, .*s3"):
        registry.get("gopher")


def test_installed_packages_register_by_entry_point(settings, monkeypatch, tmp_path):
    about = tmp_path / "thirdparty-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[cloudstore.brokers]\nthird = tests.brokers.readme_broker:CustomBroker\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.get("third").cls is CustomBroker


def test_a_class_with_only_five_methods_registers_and_works(settings, tmp_path):
    settings.CLOUDSTORE_BROKERS = {"custom": "tests.brokers.readme_broker.CustomBroker"}
    kind = registry.get("custom")
    assert list(kind.form.base_fields) == ["folder", "api_token", "deep"]
    assert kind.secret_options == {"api_token"} and not kind.form.base_fields["deep"].required
    broker = add_broker("Custom", "custom", "c", {"folder": str(tmp_path), "api_token": "t"})
    assert broker.health == "online" and broker.options == {"folder": str(tmp_path), "deep": False}
    opened = open_broker(broker)
    assert opened._driver.inner.api_token == "t"
    locator = opened.put("cs/ab/x", b"hello")
    assert opened.get(locator, 1, 3) == b"ell" and opened.stat(locator).size == 5
    opened.delete(locator)
    opened.delete(locator)


def test_a_driver_that_does_not_start_tells_no_secret(settings):
    settings.CLOUDSTORE_BROKERS = {"bad": "tests.brokers.bad_start.Bad"}
    broker = Broker(name="x", driver="bad", domain="d", options={"password": "canary"})
    with pytest.raises(Misconfigured) as caught:
        connect(broker)
    assert "ValueError" in str(caught.value) and "canary" not in str(caught.value)
