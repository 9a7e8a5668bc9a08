"""A broker that refuses, or has lost sight of, very many objects at once: it is away, they are not lost."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.models import AuditEvent
from brokers import health
from brokers.errors import Unauthorized
from brokers.models import Broker, BrokerEvent, Health
from brokers.state import State as BrokerState
from brokers.state import state_of
from brokers.testing.faulty import FaultyBroker
from replication import incidents, policy, reconcile, scrub, write
from replication.models import Content, Event, Replica
from tests.brokers.conftest import faulty
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, State, load, memory_broker, store

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]


@pytest.fixture
def three(clock: VirtualClock) -> list[Broker]:
    return [memory_broker(name) for name in "abc"]


def fill(monkeypatch: pytest.MonkeyPatch, objects: int) -> tuple[Content, bytes]:
    """A file of so many objects on brokers a and b; c has room."""
    monkeypatch.setattr(write, "SEGMENT_SIZE", 500)
    Broker.objects.filter(name="c").update(weight=0)
    data = random.Random(4).randbytes(500 * objects)
    content = store(data)
    Broker.objects.filter(name="c").update(weight=1)
    assert Replica.objects.filter(broker__name="a").count() == objects
    return content, data


def refuse_objects(driver: FaultyBroker) -> None:
    """The marker and the probe are given, every object is refused: a policy on a part of the bucket."""
    real = driver.download_file

    def refusing(storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        if storage_path.startswith("cs/"):
            raise Unauthorized("not yours any more")
        return real(storage_path, start, length)

    driver.download_file = refusing  # type: ignore[method-assign]


@pytest.mark.only_on("sqlite")
def test_a_thousand_refused_at_once_are_an_outage(
    three: list[Broker],
    clock: VirtualClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[..., None],
) -> None:
    expect_log("are refused at once")
    content, data = fill(monkeypatch, 1000)
    a = three[0].pk
    with faulty(three[0]) as driver:
        refuse_objects(driver)
        assert health.poll(a).health == Health.ONLINE, "its marker is there"
        scrub.scrub(everything=True)
        row = Broker.objects.get(pk=a)
        assert (row.health_reason, state_of(row)) == ("objects_refused", BrokerState.UNAUTHORIZED)
        assert Replica.objects.filter(broker=a, state=State.STORED).count() == 1000, "nothing is lost"
        for _ in range(2):
            clock.advance(minutes=7)
            assert health.poll(a).health == Health.OFFLINE, "a good poll is not enough"
            reconcile.run_to_rest()
        assert not Event.objects.filter(kind="copied").exists(), "no repair before the dwell"
        assert load(content, 0, 5000) == data[:5000]
    clock.advance(seconds=30)  # fourteen minutes and a half
    Broker.objects.filter(pk=a).update(incident_look_at=clock.now())
    assert incidents.settle() == 1
    assert health.poll(a).health == Health.ONLINE
    reconcile.run_to_rest()
    scrub.scrub(everything=True)
    assert reconcile.run_to_rest().actions == 0
    assert not Event.objects.filter(kind__in=("copied", "lost")).exists()
    assert not Replica.objects.exclude(state=State.STORED).exists()
    kinds = list(BrokerEvent.objects.filter(broker=a).order_by("id").values_list("kind", flat=True))
    assert kinds == ["added", "online", "objects_refused", "incident_ended", "online"]


def lose(three: list[Broker], objects: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Broker a lost every object, and that is known."""
    fill(monkeypatch, objects)
    held = Objects(three[0])
    kept = {name: held[name] for name in held if name.startswith("cs/")}
    for name in kept:
        del held[name]
    scrub.scrub(everything=True)
    assert Broker.objects.get(pk=three[0].pk).incident == "objects_missing"
    return kept


def test_a_part_that_is_back_is_not_enough(
    three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    expect_log("missing at once")
    kept = lose(three, 60, monkeypatch)
    Objects(three[0]).update(dict(list(kept.items())[:30]))
    for _ in range(3):
        clock.advance(minutes=5)
        assert incidents.settle() == 0
    assert incidents.settle() == 0, "not before its next turn"
    Objects(three[0]).update(kept)
    assert incidents.settle() == 0
    clock.advance(minutes=5)
    assert incidents.settle() == 1


def test_a_sample_that_gets_no_answer_proves_nothing(
    three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    expect_log("missing at once")
    kept = lose(three, 60, monkeypatch)
    Objects(three[0]).update(kept)
    with faulty(three[0]) as driver:
        driver.fail("get", Unauthorized("later"))
        clock.advance(minutes=5)
        assert incidents.settle() == 0
    assert Broker.objects.get(pk=three[0].pk).incident == "objects_missing"


def confirm(*arguments: str) -> str:
    out = io.StringIO()
    call_command("broker_confirm", *arguments, stdout=out)
    return out.getvalue()


def test_an_operator_confirms_the_loss(
    three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    expect_log("missing at once")
    with pytest.raises(CommandError, match="no incident"):
        confirm("a")
    lose(three, 60, monkeypatch)
    policy.change(copies=2)
    assert "down (objects_missing)" in confirm("a", "--dry-run")
    assert Broker.objects.get(name="a").incident and not AuditEvent.objects.exists()
    confirm("a")
    assert AuditEvent.objects.get().action == "broker.loss_confirmed"
    assert health.poll(three[0].pk).health == Health.ONLINE
    reconcile.run_to_rest()
    assert Event.objects.filter(kind="lost").count() == 60
    assert Replica.objects.filter(state=State.STORED).count() == 120
    assert BrokerEvent.objects.filter(kind="objects_missing").count() == 1, "no second incident"
    assert Broker.objects.get(name="a").incident == ""


def test_a_blank_place_ends_the_incident_when_it_is_adopted(
    three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    expect_log("missing at once")
    lose(three, 60, monkeypatch)
    Objects(three[0]).clear()
    for _ in range(4):
        clock.advance(minutes=3)
        row = health.poll(three[0].pk)
    assert (row.health, row.incident) == (Health.ONLINE, "") and row.blank_adopted_at is not None


def test_staff_confirm_in_the_console(
    client: Any, three: list[Broker], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[..., None], django_user_model: Any,
) -> None:  # fmt: skip
    expect_log("missing at once")
    lose(three, 60, monkeypatch)
    client.force_login(django_user_model.objects.create_superuser("root", "root@example.com", "pw"))
    asked = {"action": "confirm_loss", "_selected_action": [b.pk for b in three[:2]], "index": "0"}
    answer = client.post("/admin/brokers/broker/", asked, follow=True)
    said = [str(message) for message in answer.context["messages"]]
    assert said[0].startswith("a: what is missing counts as lost; down") and said[1] == "b has no incident"
    assert Broker.objects.get(name="a").incident == ""
