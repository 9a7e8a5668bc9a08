"""Adding and changing brokers, their credentials, and the commands."""

from __future__ import annotations

import io
import json
import uuid

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from brokers import credentials, keyring, marker
from brokers import open as open_module
from brokers.drivers import memory
from brokers.errors import Misconfigured, OutOfSpace, Unavailable
from brokers.layers.guard import IoInTransaction
from brokers.models import Broker, BrokerEvent, Health, MasterKeyCheck
from brokers.names import MARKER_NAME
from brokers.open import open_broker, wrap
from brokers.services import InvalidOptions, add_broker, set_enabled, update_broker, write_marker
from brokers.testing.faulty import FaultyBroker
from tests.brokers.conftest import faulty
from tests.brokers.secretive import CANARY, register

pytestmark = pytest.mark.django_db


@pytest.fixture
def secretive(settings) -> Broker:
    register(settings)
    return add_broker("Secretive", "secretive", "s", {"space": "s", "secret_key": CANARY})


# -- adding ------------------------------------------------------------------------------------------------


def test_a_place_is_marked_once(memory_broker):
    assert memory.space("one").objects[MARKER_NAME][0] == marker.content(memory_broker.marker)
    assert memory_broker.marker_locator == MARKER_NAME
    with pytest.raises(Misconfigured, match="already the broker 'Memory'"):
        add_broker("Other", "memory", "elsewhere", {"space": "one"})
    assert Broker.objects.count() == 1


def test_a_place_of_an_unknown_broker_is_taken_over_only_on_demand(clock, db):
    there = uuid.uuid4()
    memory.space("old").objects[MARKER_NAME] = (marker.content(there), clock.now())
    with pytest.raises(Misconfigured, match="`adopt`"):
        add_broker("Old", "memory", "d", {"space": "old"})
    broker = add_broker("Old", "memory", "d", {"space": "old"}, adopt=True)
    assert broker.marker == there and broker.health == Health.ONLINE


def test_objects_without_a_marker_are_taken_over_only_on_demand(clock, db):
    memory.space("old").objects["cs/ab/x"] = (b"x", clock.now())
    with pytest.raises(Misconfigured, match="`adopt`"):
        add_broker("Old", "memory", "d", {"space": "old"})
    assert add_broker("Old", "memory", "d", {"space": "old"}, adopt=True).health == Health.ONLINE


def test_foreign_objects_do_not_matter(clock, db):
    memory.space("shared").objects["holiday.jpg"] = (b"x", clock.now())
    assert add_broker("Shared", "memory", "d", {"space": "shared"}).health == Health.ONLINE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"domain": " "}, "domain"),
        ({"weight": -1}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"options": {}}, "space"),
        ({"options": {"space": "x", "color": "red"}}, "color"),
        ({"name": "Memory"}, "name"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(memory_broker, change, field):
    given = {"name": "New", "driver": "memory", "domain": "d", "options": {"space": "new"}, **change}
    with pytest.raises(InvalidOptions) as caught:
        add_broker(**given)
    assert field in caught.value.errors
    assert Broker.objects.count() == 1 and not memory.space("new").objects


@pytest.mark.parametrize("operation", ["prepare", "get", "put"])
def test_a_place_that_fails_leaves_no_row(clock, db, operation):
    def broken(driver):
        driver = FaultyBroker(driver)
        driver.fail(operation, Unavailable("down"))
        return driver

    with wrap(None, broken), pytest.raises(Unavailable):
        add_broker("New", "memory", "d", {"space": "new"})
    assert not Broker.objects.exists()


def test_a_full_place_is_refused(db):
    with pytest.raises(OutOfSpace):
        add_broker("Tiny", "memory", "d", {"space": "tiny", "capacity": 10})
    assert not Broker.objects.exists()


def test_no_provider_is_called_in_a_transaction(memory_broker):
    for call in (
        lambda: add_broker("New", "memory", "d", {"space": "new"}),
        lambda: update_broker(memory_broker.pk, name="x"),
        lambda: set_enabled(memory_broker.pk, False),
        lambda: write_marker(memory_broker.pk),
    ):
        with transaction.atomic(), pytest.raises(IoInTransaction):
            call()


# -- changing ----------------------------------------------------------------------------------------------


def test_names_and_weights_change_without_asking_the_provider(memory_broker):
    with faulty(memory_broker) as broken:
        changed = update_broker(memory_broker.pk, name="Renamed", weight=0, domain="d2")
        assert not broken.calls
    assert (changed.name, changed.weight, changed.domain, changed.revision) == ("Renamed", 0, "d2", 2)
    assert not changed.writable and changed.readable
    assert update_broker(memory_broker.pk, name="Renamed").revision == 2
    assert (
        BrokerEvent.objects.filter(kind="changed").values_list("detail", flat=True)[0]
        == "name, domain, weight"
    )


def test_new_options_must_lead_to_the_same_place(memory_broker):
    with pytest.raises(Misconfigured, match="does not carry this broker's marker"):
        update_broker(memory_broker.pk, options={"space": "two"})
    before = open_broker(memory_broker)
    changed = update_broker(memory_broker.pk, options={"capacity": 10**10})
    assert changed.revision == 2 and changed.options == {"space": "one", "capacity": 10**10}
    assert open_broker(changed) is not before and open_broker(changed).info()["total"] == 10**10


def test_a_change_overtaken_by_another_is_refused(memory_broker, monkeypatch):
    from brokers import services

    original = services._check_row

    def overtake(broker: Broker) -> None:
        original(broker)
        Broker.objects.filter(pk=broker.pk).update(revision=9)

    monkeypatch.setattr(services, "_check_row", overtake)
    with pytest.raises(services.StaleBroker):
        update_broker(memory_broker.pk, name="x")
    assert Broker.objects.get().name == "Memory"


def test_enabling_is_idempotent(memory_broker):
    for _ in range(2):
        assert not set_enabled(memory_broker.pk, False).enabled
    for _ in range(2):
        assert set_enabled(memory_broker.pk, True).health == Health.ONLINE
    kinds = list(BrokerEvent.objects.order_by("id").values_list("kind", flat=True))
    assert kinds == ["added", "online", "disabled", "enabled", "online"]


def test_a_marker_is_written_again_by_hand_but_never_over_anothers(clock, memory_broker):
    objects = memory.space("one").objects
    objects["cs/ab/x"] = (b"x", clock.now())
    objects[MARKER_NAME] = (b"garbage", clock.now())
    write_marker(memory_broker.pk)
    assert objects[MARKER_NAME][0] == marker.content(memory_broker.marker)
    objects[MARKER_NAME] = (marker.content(uuid.uuid4()), clock.now())
    with pytest.raises(Misconfigured, match="marker of broker"):
        write_marker(memory_broker.pk)


# -- credentials -------------------------------------------------------------------------------------------


def test_secrets_are_sealed_and_stay_when_left_out(secretive):
    assert CANARY.encode() not in bytes(secretive.sealed_secrets) and "secret_key" not in secretive.options
    assert credentials.open_secrets(secretive) == {"secret_key": CANARY}
    assert open_broker(secretive)._driver.options["secret_key"] == CANARY
    update_broker(secretive.pk, options={"secret_key": "", "capacity": 10**10})
    assert credentials.open_secrets(Broker.objects.get()) == {"secret_key": CANARY}
    update_broker(secretive.pk, options={"secret_key": "new"})
    assert credentials.open_secrets(Broker.objects.get()) == {"secret_key": "new"}


def test_a_row_with_anothers_secrets_does_not_open(settings, secretive):
    other = add_broker("Other", "secretive", "o", {"space": "o", "secret_key": "another"})
    other.sealed_secrets, secretive.sealed_secrets = secretive.sealed_secrets, other.sealed_secrets
    for broker in (secretive, other):
        with pytest.raises(keyring.KeyringError) as caught:
            credentials.open_secrets(broker)
        assert CANARY not in str(caught.value)
        broker.revision += 1
        with pytest.raises(Misconfigured, match="do not open"):
            open_broker(broker)


def test_rotation_seals_again_and_needs_no_old_key_after(settings, secretive):
    old = settings.CLOUDSTORE_MASTER_KEYS
    settings.CLOUDSTORE_MASTER_KEYS = {**old, 2: b"2" * 32}
    assert credentials.reseal_all() == 1 and credentials.reseal_all() == 0
    row = Broker.objects.get()
    assert row.secrets_key_version == 2
    settings.CLOUDSTORE_MASTER_KEYS = {2: b"2" * 32}
    assert credentials.open_secrets(row) == {"secret_key": CANARY}


def test_a_wrong_master_key_is_told_before_anything_is_sealed(settings, secretive):
    MasterKeyCheck.objects.get_or_create(version=1, defaults={"check_value": "?"})
    settings.CLOUDSTORE_MASTER_KEYS = {1: b"w" * 32}
    with pytest.raises(keyring.WrongMasterKey):
        add_broker("New", "secretive", "n", {"space": "n", "secret_key": "x"})
    assert "n" not in memory._spaces or not memory.space("n").objects


def test_no_secret_is_printed(caplog, secretive):
    with caplog.at_level("DEBUG"):
        open_module.forget()
        opened = open_broker(secretive)
        opened.probe()
    assert CANARY not in f"{opened!r} {opened._driver!r} {secretive!r} {secretive} {caplog.text}"


def test_of_two_that_connect_a_place_at_once_one_stays(monkeypatch):
    write = marker.write

    def slow(opened, mark):
        """The other one looked at the place before this marker was there, and comes after it."""
        locator = write(opened, mark)
        monkeypatch.setattr(marker, "write", write)
        monkeypatch.setattr(marker, "find", lambda _opened: None)
        add_broker("Second", "memory", "two", {"space": "race"})
        monkeypatch.undo()
        return locator

    monkeypatch.setattr(marker, "write", slow)
    with pytest.raises(Misconfigured, match="at the same moment"):
        add_broker("First", "memory", "one", {"space": "race"})
    assert [(b.name, b.health) for b in Broker.objects.all()] == [("Second", Health.ONLINE)]


# -- commands ----------------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_add_list_and_check_by_commands(roots):
    root = str(roots / "a")
    added = json.loads(
        run(
            "broker_add",
            "Disk",
            "--driver",
            "local",
            "--domain",
            "here",
            "--option",
            f"root={root}",
            "--json",
        )
    )
    assert (
        added["health"] == "online" and added["options"]["root"] == root and added["options"]["sync"] is True
    )
    assert [b["name"] for b in json.loads(run("broker_list", "--json"))] == ["Disk"]
    assert run("broker_list").startswith("Disk: local, domain here, up")
    checked = json.loads(run("broker_check", "Disk", "--json"))
    assert len(checked["checks"]) > 10 and all(c["ok"] for c in checked["checks"])
    assert "ok   ranges" in run("broker_check", "Disk")
    # A process that was killed within a put leaves a temporary file, as in life: polls sweep it when it is old.
    files = [p.name for p in (roots / "a").rglob("*") if p.is_file() and p.parent.name != ".tmp"]
    assert files == [MARKER_NAME]


def test_options_as_text_are_understood(roots):
    root = str(roots / "a")
    text = run(
        "broker_add",
        "D",
        "--driver",
        "local",
        "--domain",
        "h",
        "--option",
        f"root={root}",
        "--option",
        "sync=false",
    )
    assert ", up" in text and Broker.objects.get().options["sync"] is False


def test_secrets_come_from_the_environment_or_standard_input(settings, monkeypatch):
    register(settings)
    base = ["broker_add", "--driver", "secretive", "--domain", "d", "--json"]
    with pytest.raises(CommandError, match="CLOUDSTORE_SECRET_SECRET_KEY"):
        run(*base, "A", "--option", "space=a", "--secret", "secret_key")
    monkeypatch.setenv("CLOUDSTORE_SECRET_SECRET_KEY", CANARY)
    shown = run(*base, "A", "--option", "space=a", "--secret", "secret_key")
    assert CANARY not in shown and "secret_key" not in shown
    monkeypatch.setattr("sys.stdin", io.StringIO("typed\n"))
    run(*base, "B", "--option", "space=b", "--secret", "secret_key=-")
    run(*base, "C", "--option", "space=c", "--secret", "secret_key=given")
    secrets = [credentials.open_secrets(b)["secret_key"] for b in Broker.objects.order_by("name")]
    assert secrets == [CANARY, "typed", "given"]


def test_commands_say_what_is_wrong(clock, memory_broker):
    with pytest.raises(CommandError, match="invalid_options: space: This field is required"):
        run("broker_add", "X", "--driver", "memory", "--domain", "d")
    with pytest.raises(CommandError, match="NAME=VALUE"):
        run("broker_add", "X", "--driver", "memory", "--domain", "d", "--option", "space")
    with pytest.raises(CommandError, match="there is no broker 'X'"):
        run("broker_check", "X")
    memory.clear("one")
    with pytest.raises(CommandError, match="Memory is offline"):
        run("broker_check", "Memory")
    assert not memory.space("one").objects


def test_a_check_that_fails_is_named(clock, memory_broker):
    def broken(driver):
        driver = FaultyBroker(driver)
        driver.lie(on=lambda record: True, size=7)
        return driver

    with wrap(memory_broker.pk, broken), pytest.raises(CommandError, match=r"checks failed: .*stat"):
        run("broker_check", "Memory")


def test_a_broker_is_changed_by_command(memory_broker):
    shown = json.loads(run("broker_set", "Memory", "--rename", "M", "--weight", "0", "--disable", "--json"))
    assert (shown["name"], shown["weight"], shown["enabled"]) == ("M", 0, False)
    assert ", up" in run("broker_set", "M", "--enable", "--option", f"capacity={10**10}")
    assert Broker.objects.get().options == {"space": "one", "capacity": 10**10}
    with pytest.raises(CommandError, match="does not carry this broker's marker"):
        run("broker_set", "M", "--option", "space=two")
    memory.clear("one")
    run("broker_set", "M", "--write-marker")
    assert MARKER_NAME in memory.space("one").objects
    with pytest.raises(CommandError, match="there is no broker 'Memory'"):
        run("broker_set", "Memory")
