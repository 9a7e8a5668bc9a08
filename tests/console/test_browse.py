"""Browsing the raw objects of a broker, and deleting orphans by choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from accounts.models import AuditEvent, User
from brokers.models import Broker
from brokers.names import name_in, new_object_key
from console import browse
from replication import epoch, orphans
from replication.models import Orphan, Replica
from tests.cast import Api
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, State
from tests.vfs.conftest import Put
from vfs import trash
from vfs.access import locate, locate_all
from vfs.errors import BadCursor
from vfs.models import Node

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
STRAY = "cs/ab/" + "ab" * 16


@pytest.fixture
def a(clock: VirtualClock, alice: User, put: Put, two: list[Broker]) -> Broker:
    put(alice, "work/report", b"x" * 1000)
    objects = Objects(two[0])
    objects[STRAY] = b"12345"
    objects["photos/one.jpg"] = b"not ours"
    objects["cs/readme"] = b"not ours either"
    epoch.advance()
    return two[0]


def all_pages(broker: Broker, **options: Any) -> list[browse.Entry]:
    found, cursor = [], None
    while True:
        page = browse.page(broker, cursor=cursor, **options)
        found += page.entries
        cursor = page.cursor
        if cursor is None:
            return found


def test_each_object_is_told_for_what_it_is(a: Broker) -> None:
    found = {entry.path: entry for entry in browse.walk(a)}
    assert set(found) == set(Objects(a))
    kinds = {path: (entry.kind, entry.state) for path, entry in found.items()}
    replica = Replica.objects.get(broker=a)
    assert kinds[replica.locator] == ("ours", "stored")
    assert found[replica.locator].files == [browse.File("alice", "/work/report", 1, False)]
    assert (found[replica.locator].content, found[replica.locator].segment) == (replica.segment.content_id, 0)
    assert kinds[STRAY] == ("orphan", "")
    assert (found[STRAY].size, found[STRAY].modified is not None) == (5, True)
    assert kinds["photos/one.jpg"] == kinds["cs/readme"] == ("unmanaged", "")
    assert kinds["cs-marker"] == ("metadata", "marker")
    assert kinds[epoch.name_of(epoch.current().number)] == ("metadata", "epoch")


def test_a_doomed_and_a_planned_object(a: Broker, alice: User) -> None:
    node = Node.objects.get(name="report")
    trash.trash(alice, alice, node.pk)
    Replica.objects.filter(broker=a).update(state=State.DOOMED)
    (entry,) = browse.walk(a, kind="ours")
    assert (entry.state, entry.files[0].trashed) == ("doomed", True)
    # A put under way: the row has the key alone.
    Replica.objects.filter(broker=a).update(state=State.PLANNED, locator="")
    assert [e.state for e in browse.walk(a, kind="ours")] == ["planned"]


@pytest.mark.parametrize("small", [5000, 0], ids=["one listing", "in parts"])
@pytest.mark.parametrize("kind", ["", *browse.KINDS])
def test_pages_show_everything_once(
    a: Broker, alice: User, put: Put, kind: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "SMALL", small)
    monkeypatch.setattr(browse, "WINDOW", 3)
    for number in range(6):
        put(alice, f"more/{number}", bytes([number]) * 100)
        Objects(a)[f"photos/{number}"] = b"x"
        Objects(a)[new_object_key()] = b"x"
    wanted = sorted(entry.path for entry in browse.walk(a, kind=kind))
    assert wanted
    for limit in (1, 4, 1000):
        assert sorted(entry.path for entry in all_pages(a, kind=kind, limit=limit)) == wanted
    assert sorted(e.path for e in all_pages(a, prefix="photos/", kind=kind, limit=2)) == [
        path for path in wanted if path.startswith("photos/")
    ]


def test_a_page_that_finds_little_ends_and_leads_on(a: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "SCAN_MOST", 2)
    first = browse.page(a, kind="orphan", prefix="photos/")
    assert (first.entries, first.cursor) == ([], None)
    for number in range(5):
        Objects(a)[f"photos/{number}"] = b"x"
    first = browse.page(a, kind="orphan", prefix="photos/")
    assert first.entries == []
    assert first.cursor is not None
    assert [e.path for e in all_pages(a, kind="orphan")] == [STRAY]


@pytest.mark.parametrize("cursor", ["x", "WyIxIl0", "WyIwIiwgIjkiLCAiMCJd", "WyIwIiwgIi0xIiwgIjAiXQ"])
def test_a_cursor_of_nobody_is_refused(a: Broker, cursor: str) -> None:
    with pytest.raises(BadCursor):
        browse.page(a, cursor=cursor)


def test_a_window_costs_a_few_queries(
    a: Broker, alice: User, put: Put, django_assert_max_num_queries: Any
) -> None:
    for number in range(12):
        put(alice, f"deep/er/and/er/{number}", bytes([number]) * 100)
    with django_assert_max_num_queries(12):
        assert len(list(browse.walk(a))) == len(Objects(a))


def test_many_places_at_once_are_the_same_as_each_alone(alice: User, put: Put) -> None:
    nodes = [put(alice, path) for path in ("a", "b/c", "b/d/e", "b/d/f")]
    assert {pk: place.path for pk, place in locate_all(nodes).items()} == {
        node.pk: locate(node).path for node in nodes
    }


def test_names_within_locators() -> None:
    assert name_in(STRAY, "cs-marker") == STRAY
    assert name_in(f"handle.key/{STRAY}", "other.key/cs-marker") == STRAY
    assert name_in(f"root/sub/{STRAY}", "root/sub/cs-marker") == STRAY
    assert name_in("x", "root/sub/cs-marker") == "x"
    assert name_in(STRAY, "") == STRAY


def test_the_command_streams(a: Broker) -> None:
    out = StringIO()
    call_command("browse", "a", "--json", stdout=out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {line["path"] for line in lines} == set(Objects(a))
    out = StringIO()
    call_command("browse", "a", "--kind", "ours", stdout=out)
    assert "alice:/work/report v1" in out.getvalue()
    out = StringIO()
    call_command("browse", "a", "--limit", "2", stdout=out)
    assert len(out.getvalue().splitlines()) == 2
    with pytest.raises(CommandError, match="there is no broker"):
        call_command("browse", "nobody")


def test_over_rest(a: Broker, root: User, api: Api) -> None:
    client = api(root, ["admin"])
    page = client.get(f"/api/v1/brokers/{a.pk}/objects", {"kind": "ours"}).json()
    assert page["next"] is None
    (entry,) = page["objects"]
    assert entry["files"] == [{"owner": "alice", "path": "/work/report", "version": 1, "trashed": False}]
    for query, code in (({"kind": "odd"}, "invalid"), ({"cursor": "x"}, "bad_cursor")):
        answer = client.get(f"/api/v1/brokers/{a.pk}/objects", query)
        assert (answer.status_code, answer.json()["code"]) == (400, code)


# -- orphans ------------------------------------------------------------------------------------------


def seen_twice(clock: VirtualClock) -> None:
    for _ in range(2):
        orphans.scan(delete=False)
        clock.advance(hours=25)


def test_a_chosen_orphan_goes_and_is_audited(a: Broker, root: User, api: Api, clock: VirtualClock) -> None:
    seen_twice(clock)
    client, address = api(root, ["admin"]), f"/api/v1/brokers/{a.pk}/objects/delete-orphans"
    dry = client.post(address, {"objects": [STRAY], "dry_run": True}).json()["objects"]
    assert [o["deleted"] for o in dry] == [True]
    assert STRAY in Objects(a)
    assert not AuditEvent.objects.filter(action="broker.orphan_deleted").exists()
    done = client.post(address, {"objects": [STRAY]}).json()["objects"]
    assert [(o["deleted"], o["size"]) for o in done] == [(True, 5)]
    assert STRAY not in Objects(a)
    row = AuditEvent.objects.get(action="broker.orphan_deleted")
    assert (row.actor, row.target, row.detail["name"]) == (root, "a", STRAY)
    again = client.post(address, {"objects": [STRAY]}).json()["objects"]
    assert [o["refused"] for o in again] == ["not_seen_twice"]


def test_d12_what_is_in_use_is_refused(a: Broker, root: User, api: Api, clock: VirtualClock) -> None:
    """Reliability D12: whatever the operator chooses, no referenced object goes."""
    seen_twice(clock)
    replica = Replica.objects.get(broker=a)
    number = epoch.current().number
    before = set(Objects(a))
    chosen = {
        replica.locator: "referenced",
        "photos/one.jpg": "not_ours",
        "cs/readme": "not_ours",
        "cs-marker": "not_ours",
        epoch.name_of(number): "not_ours",
        new_object_key(): "not_seen_twice",
    }
    client, address = api(root, ["admin"]), f"/api/v1/brokers/{a.pk}/objects/delete-orphans"
    done = client.post(address, {"objects": list(chosen)}).json()["objects"]
    assert {o["locator"]: o["refused"] for o in done} == chosen
    assert set(Objects(a)) == before
    # Not even when somebody had noted it as an orphan, long ago.
    at = clock.now()
    for state in State.values:
        Replica.objects.filter(pk=replica.pk).update(state=state)
        Orphan.objects.update_or_create(
            broker=a,
            locator=replica.locator,
            defaults={"size": 1, "first_seen": at.replace(year=2020), "last_seen": at},
        )
        done = client.post(address, {"objects": [replica.locator]}).json()["objects"]
        assert done[0]["refused"] == "referenced"
    assert set(Objects(a)) == before


def refused(broker: Broker, locator: str = STRAY) -> str:
    (outcome,) = orphans.delete_chosen(broker.pk, [locator])
    assert not outcome.deleted
    assert locator in Objects(broker)
    return outcome.refused


def test_the_guards(a: Broker, clock: VirtualClock, expect_log: Callable[..., None]) -> None:
    expect_log("deletion is locked: a test")
    assert refused(a) == "not_seen_twice"
    orphans.scan()
    clock.advance(hours=72)
    assert refused(a) == "not_seen_twice"
    orphans.scan(delete=False)
    Orphan.objects.update(first_seen=clock.now())
    clock.advance(hours=1)
    orphans.scan(delete=False)
    assert refused(a) == "too_young"
    clock.advance(hours=72)
    epoch.lock_now(0, "a test")
    assert refused(a) == "deletion_locked"
    epoch.confirm()
    Broker.objects.filter(pk=a.pk).update(enabled=False)
    assert refused(a) == "broker_not_readable"


def test_the_last_copy_of_something_stays(a: Broker, clock: VirtualClock) -> None:
    """As when a broker was removed by force and connected again, and nobody has looked through it."""
    replica = Replica.objects.get(broker=a)
    Replica.objects.all().delete()
    seen_twice(clock)
    assert refused(a, replica.locator) == "last_copy"
    report = orphans.scan()
    assert (report.needed, report.deleted) == (2, 1)  # this one and the other broker's; the stray
    assert replica.locator in Objects(a)
    # Another good copy, and it is an orphan like others.
    replica.pk, replica.broker = None, Broker.objects.get(name="b")
    replica.save()
    assert orphans.scan().deleted == 2  # the one here, and the other broker's
    assert not [name for name in Objects(a) if name.startswith("cs/") and name != "cs/readme"]


def test_by_command(a: Broker, clock: VirtualClock) -> None:
    seen_twice(clock)
    with pytest.raises(CommandError, match="name objects"):
        call_command("orphans_delete", "a")
    out = StringIO()
    call_command("orphans_delete", "a", "--all", "--dry-run", stdout=out)
    assert f"{STRAY}: would be deleted" in out.getvalue()
    call_command("orphans_delete", "a", "--all", "--json", stdout=StringIO())
    assert STRAY not in Objects(a)
    assert "photos/one.jpg" in Objects(a)


# -- the console's page -------------------------------------------------------------------------------


def test_the_page(a: Broker, root: User, alice: User, clock: VirtualClock) -> None:
    address = f"/admin/brokers/broker/{a.pk}/objects/"
    client = Client()
    client.force_login(alice)
    assert client.get(address).status_code == 302  # to the sign-in page
    client.force_login(root)
    assert f'href="{address}"' in client.get("/admin/brokers/broker/").content.decode()
    shown = client.get(address).content.decode()
    for text in ("alice:/work/report, version 1", "photos/one.jpg", STRAY, "not noted by a scan yet"):
        assert text in shown
    assert "photos" not in client.get(address, {"kind": "ours"}).content.decode()
    assert "begin at the first one" in client.get(address, {"cursor": "x"}).content.decode()
    seen_twice(clock)
    done = client.post(address, {"locator": [STRAY, "photos/one.jpg"]}, follow=True).content.decode()
    assert "1 of 2 orphans were deleted" in done
    assert "was left alone: it does not have a name of ours" in done
    assert STRAY not in Objects(a)
    assert AuditEvent.objects.get(action="broker.orphan_deleted").actor == root


def test_the_page_of_staff_that_may_only_look(a: Broker, bob: User) -> None:
    User.objects.filter(pk=bob.pk).update(is_staff=True)
    address, client = f"/admin/brokers/broker/{a.pk}/objects/", Client()
    client.force_login(bob)
    assert client.get(address).status_code == 403
    assert client.post(address, {"locator": [STRAY]}).status_code == 403
    assert client.get("/admin/brokers/broker/999999/objects/").status_code == 404
