"""`manage.py broker_check` leaves nothing of its own at the place, however it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from brokers.driver import CloudBroker
from brokers.errors import Unavailable
from brokers.models import Broker
from brokers.names import MARKER_NAME
from brokers.open import connect, wrap
from brokers.services import add_broker
from brokers.testing import conformance
from tests.brokers.mega_place import mega_fixture, one_mega_fixture  # noqa: F401
from tests.servers.fake_mega import EMAIL, PASSWORD

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
# What stores objects in each of the suite's ways; all of it on each kind of place is in the tests of the drivers.
FEW = ["one_byte", "key_grammar", "fork", "list", "same_again", "threads"]


@pytest.fixture(autouse=True)
def _few(monkeypatch) -> None:
    monkeypatch.setattr(conformance, "names", lambda: FEW)


@pytest.fixture(params=["memory", "local", "mega"])
def row(request) -> Broker:
    kind = request.param
    if kind == "mega":
        request.getfixturevalue("mega")
        options: dict[str, object] = {"email": EMAIL, "password": PASSWORD, "folder": "CloudStore"}
    elif kind == "local":
        options = {"root": str(request.getfixturevalue("roots") / "disk"), "sync": False}
    else:
        here = [name for name in FEW if name != "fork"]  # a child's memory is its own
        request.getfixturevalue("monkeypatch").setattr(conformance, "names", lambda: here)
        options = {"space": "checked"}
    return add_broker("Place", kind, "here", options)


def left(row: Broker) -> list[str]:
    """All objects but the marker, and on a disk also the folders."""
    opened = connect(row)
    found = [entry.path for entry in opened.list() if not entry.path.endswith(MARKER_NAME)]
    opened.retire()
    if row.driver == "local":
        root = Path(row.options["root"])
        found += [str(p) for p in root.rglob("cs-check*")]
    return found


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("broker_check", "Place", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def changed(method: str, change: Callable[[Callable], Callable]) -> Callable[[CloudBroker], CloudBroker]:
    """The driver with another way to do one thing."""

    def wrapper(driver: CloudBroker) -> CloudBroker:
        setattr(driver, method, change(getattr(driver, method)))
        return driver

    return wrapper


def of_the_suite(name: str) -> bool:
    return "cs-check/" in name


def test_after_success(row):
    stored: list[str] = []

    def noting(upload):
        return lambda data, name: stored.append(name) or upload(data, name)

    with wrap(row.pk, changed("upload_file", noting)):
        said = json.loads(run("--json"))
    assert [check["ok"] for check in said["checks"]] == [True] * len(said["checks"])
    assert len([name for name in stored if of_the_suite(name)]) > 30, "something was there to be removed"
    assert said["left"] == [] and left(row) == []


def test_after_checks_that_fail(row):
    def garbled(download):
        return lambda at, *span: bytes(len(download(at, *span))) if of_the_suite(at) else download(at, *span)

    with wrap(row.pk, changed("download_file", garbled)), pytest.raises(CommandError, match="one_byte"):
        run()
    assert left(row) == []


def test_after_puts_that_store_and_then_fail(row):
    def lost(upload):
        def work(data, name):
            locator = upload(data, name)
            if of_the_suite(name):
                raise Unavailable("the answer was lost")
            return locator

        return work

    with wrap(row.pk, changed("upload_file", lost)), pytest.raises(CommandError, match="checks failed"):
        run()
    assert left(row) == []


@pytest.mark.parametrize("after", [False, True], ids=["a put is under way", "a put has stored"])
@pytest.mark.parametrize("which", [1, 5, 40])
def test_after_an_interruption(row, after, which):
    """As Ctrl-C does it: the driver's own thread goes on, and stores what nobody waits for any more."""
    numbers, lock = [0], threading.Lock()

    def interrupting(upload):
        def work(data, name):
            with lock:
                numbers[0] += of_the_suite(name)
                now = of_the_suite(name) and numbers[0] == which
            if now and not after:
                os.kill(os.getpid(), signal.SIGINT)
            locator = upload(data, name)
            if now and after:
                os.kill(os.getpid(), signal.SIGINT)
            return locator

        return work

    with wrap(row.pk, changed("upload_file", interrupting)), pytest.raises(KeyboardInterrupt):
        run()
    assert numbers[0] >= which
    assert left(row) == []


def test_what_an_interrupted_run_cannot_remove_is_told(row):
    def stuck(delete):
        def work(at):
            if of_the_suite(at):
                raise Unavailable("not now")
            delete(at)

        return work

    def interrupting(upload):
        def work(data, name):
            locator = upload(data, name)
            if of_the_suite(name):
                os.kill(os.getpid(), signal.SIGINT)
            return locator

        return work

    out = io.StringIO()
    both = changed("upload_file", interrupting)
    with (
        wrap(row.pk, lambda driver: changed("delete_file", stuck)(both(driver))),
        pytest.raises(KeyboardInterrupt),
    ):
        call_command("broker_check", "Place", stdout=out, stderr=out)
    assert [line.removeprefix("left there: ") for line in out.getvalue().splitlines()] == [
        at for at in left(row) if not at.startswith("/")
    ]


def test_a_place_that_cannot_be_listed_at_the_end_is_told(row):
    def unlisted(listing):
        def work(path=""):
            if path.startswith("cs-check/") and path.count("/") == 2 and path.endswith("/"):
                raise Unavailable("no listing")
            return listing(path)

        return work

    with wrap(row.pk, changed("list_files", unlisted)), pytest.raises(CommandError, match="failed"):
        said = io.StringIO()
        call_command("broker_check", "Place", stdout=said)
    (told,) = [line for line in said.getvalue().splitlines() if line.startswith("left there")]
    assert told.startswith("left there: cs-check/")
