"""Drain, rebalance and remove through the commands and the console, with their audit rows."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from accounts.models import AuditEvent, User
from brokers.models import Broker
from replication import collect, reconcile
from replication.models import Replica
from replication.read import open_content
from tests.brokers.conftest import _clean_brokers
from tests.cast import PASSWORD
from tests.replication.kit import Objects, memory_broker
from vfs import fsck
from vfs.upload import FileUpload, target_at

__all__ = ["_clean_brokers"]
pytestmark = pytest.mark.django_db(transaction=True)


def command(*args: Any) -> dict[str, Any]:
    out = StringIO()
    call_command(*args, "--json", stdout=out, stderr=StringIO())
    return json.loads(out.getvalue())


@pytest.fixture
def alice_file(clock: object) -> Broker:
    """Alice has a file on two of three brokers: -> one of the two."""
    for name in "abc":
        memory_broker(name)
    alice = User.objects.create_user("alice", "alice@example.com", PASSWORD)
    upload = FileUpload(alice, target_at(alice, ["letter"]), size=1000)
    upload.write(b"x" * 1000)
    upload.complete()
    upload.commit()
    return Replica.objects.order_by("pk")[0].broker


def test_a_broker_is_replaced_by_commands(alice_file: Broker) -> None:
    name = alice_file.name
    assert command("broker_drain", name, "--dry-run")["draining"] is False
    with pytest.raises(CommandError, match="copies_needed"):
        command("broker_remove", name)
    looked = command("broker_remove", name, "--dry-run")
    assert (looked["needed"], looked["files"], looked["lost"]) == (1, ["alice:/letter"], [])
    done = command("broker_drain", name, "--wait")
    assert (done["draining"], done["objects"], done["waiting"]) == (True, 0, {})
    assert command("broker_remove", name)["removed"] is True
    assert not Broker.objects.filter(name=name).exists()
    actions = list(AuditEvent.objects.order_by("pk").values_list("action", flat=True))
    assert actions[-2:] == ["broker.drain_begun", "broker.removed"]
    assert command("rebalance")["blocked"] == ""


def test_a_forced_removal_needs_the_name_and_is_audited(alice_file: Broker) -> None:
    keep = Replica.objects.exclude(broker=alice_file)
    keep.delete()
    with pytest.raises(CommandError, match="type the broker's name"):
        command("broker_remove", alice_file.name, "--force", "another")
    assert Broker.objects.filter(pk=alice_file.pk).exists()
    done = command("broker_remove", alice_file.name, "--force", alice_file.name)
    assert (done["removed"], done["lost"]) == (True, ["alice:/letter"])
    row = AuditEvent.objects.get(action="broker.removed_by_force")
    assert row.detail["lost"] == 1
    assert row.detail["lost_files"] == ["alice:/letter"]


def test_a_broker_returns_after_a_forced_removal(alice_file: Broker) -> None:
    """Its objects are verified and used again: nothing is uploaded."""
    name, space = alice_file.name, alice_file.options["space"]
    User.objects.create_superuser("root", "root@example.com", PASSWORD)
    for other in Replica.objects.exclude(broker=alice_file).select_related("broker"):
        del Objects(other.broker)[other.locator]
        other.delete()
    (replica,) = Replica.objects.values("key", "locator")
    assert command("broker_remove", name, "--force", name)["lost"] == ["alice:/letter"]
    assert not Replica.objects.exists()
    again = ["broker_add", "Again", "--driver", "memory", "--domain", "d", "--option", f"space={space}"]
    with pytest.raises(CommandError, match="adopt"):
        command(*again)
    before = set(Objects(alice_file))
    assert command(*again, "--adopt", "--dry-run")["would_add"]["name"] == "Again"
    found = command(*again, "--adopt")["brought_back"]["objects"]
    assert (found["copies"], found["contents"]) == (1, 0)
    row = Replica.objects.get(broker__name="Again")
    assert {"key": row.key, "locator": row.locator} == replica
    assert (row.state, row.verified_at is not None) == (Replica.State.STORED, True)
    assert set(Objects(alice_file)) == before
    assert b"".join(open_content(row.segment.content).stream()) == b"x" * 1000
    assert command("adopt", "--broker", "Again")["objects"]["unknown"] == 0
    reconcile.run_to_rest()
    assert fsck.check(full=True) == []
    actions = AuditEvent.objects.values_list("action", flat=True)
    assert {"broker.added", "broker.objects_adopted"} <= set(actions)


def test_a_trial_by_command(alice_file: Broker) -> None:
    assert command("broker_test", alice_file.name)["ok"] is True
    Objects(alice_file).clear()
    with pytest.raises(CommandError, match="does not work: not_found"):
        command("broker_test", alice_file.name)
    with pytest.raises(CommandError, match="there is no broker"):
        command("broker_test", "nobody")


def test_the_console_tests_and_switches(alice_file: Broker, client: Client) -> None:
    client.force_login(User.objects.create_superuser("root", "root@example.com", PASSWORD))

    def act(action: str) -> str:
        data = {"action": action, "_selected_action": [alice_file.pk]}
        return client.post("/admin/brokers/broker/", data, follow=True).content.decode()

    assert ": works\nok   connect" in act("test")
    assert "is disabled" in act("disable")
    assert "is enabled: up" in act("enable")
    page = f"/admin/brokers/broker/{alice_file.pk}/change/"
    form = {"name": "Renamed", "domain": "d2", "weight": "2", "enabled": "on"}
    form["option_space"] = alice_file.options["space"]
    assert client.post(page, form).status_code == 302
    actions = list(AuditEvent.objects.order_by("pk").values_list("action", flat=True))
    assert actions[-4:] == ["broker.tested", "broker.disabled", "broker.enabled", "broker.changed"]


def test_the_console_removes_by_force_with_the_name_typed(alice_file: Broker, client: Client) -> None:
    for other in Replica.objects.exclude(broker=alice_file):
        other.delete()
    root = User.objects.create_superuser("root", "root@example.com", PASSWORD)
    address = f"/admin/brokers/broker/{alice_file.pk}/remove/"
    staff = User.objects.create_user("staff", "s@example.com", PASSWORD, is_staff=True)
    client.force_login(staff)
    assert client.post(address, {"force": "1", "name": alice_file.name}).status_code == 403
    client.force_login(root)
    assert address in client.get("/admin/brokers/broker/").content.decode()
    assert "alice:/letter" in client.get(address).content.decode()
    assert "drain it first" in client.post(address).content.decode()
    assert "type the broker&#x27;s name" in client.post(address, {"force": "1", "name": "x"}).content.decode()
    assert Broker.objects.filter(pk=alice_file.pk).exists()
    done = client.post(address, {"force": "1", "name": alice_file.name}, follow=True).content.decode()
    assert "was removed" in done
    assert not Broker.objects.filter(pk=alice_file.pk).exists()
    assert AuditEvent.objects.get(action="broker.removed_by_force").actor == root
    assert client.get(address).status_code == 404


def test_the_console_drains_and_removes(alice_file: Broker, client: Client) -> None:
    root = User.objects.create_superuser("root", "root@example.com", PASSWORD)
    client.force_login(root)

    def act(action: str) -> str:
        data = {"action": action, "_selected_action": [alice_file.pk]}
        return client.post("/admin/brokers/broker/", data, follow=True).content.decode()

    assert "drain it first" in act("remove")
    assert "draining" in act("drain")
    reconcile.run_to_rest()
    collect.collect()
    assert "was removed" in act("remove")
    assert not Broker.objects.filter(pk=alice_file.pk).exists()
    assert AuditEvent.objects.get(action="broker.removed").actor == root
