"""The harness itself: what fails before an effect did not happen, what fails after it did; the oracle tells."""

from __future__ import annotations

import pytest
from django.db import transaction
from django.db.utils import OperationalError

from accounts.models import User
from brokers.errors import BrokerError, Timeout, Unavailable
from brokers.models import Broker
from brokers.open import open_broker
from replication.models import Replica
from tests.crash.world import DATA, World
from tests.kit import counters
from tests.kit.effects import DATABASE, Effect, Fault, How, When, fork

KEY = "cs/aa/" + "a" * 32
PUT = Effect("a", "put", 1)
COMMIT = Effect(DATABASE, "commit", 1)


def put(world: World) -> None:
    open_broker(Broker.objects.get(name="a")).put(KEY, b"x")


def change(world: World, *, atomic: bool) -> None:
    if atomic:
        with transaction.atomic():
            User.objects.update(first_name="changed")
    else:
        User.objects.update(first_name="changed")


def test_effects_are_numbered(world: World) -> None:
    with world.effects.watch():
        put(world)
        change(world, atomic=True)
        change(world, atomic=False)
    second = Effect(DATABASE, "commit", 2)
    assert world.effects.seen == {PUT: KEY, COMMIT: "accounts_user", second: "accounts_user"}
    put(world)
    assert len(world.effects.seen) == 3, "only what runs inside is watched"


@pytest.mark.parametrize("when", list(When))
def test_a_broker_that_fails(world: World, when: When) -> None:
    error: type[BrokerError] = Unavailable if when == When.BEFORE else Timeout
    with world.effects.watch(Fault(PUT, when, How.FOR_EVER)), pytest.raises(error):
        put(world)
    assert world.effects.fired == 4, "every try"
    assert (world.root / "a" / KEY).exists() == (when == When.AFTER)
    with world.effects.watch(Fault(PUT, when, How.ONCE)):
        put(world)
    assert world.effects.fired == 1
    assert (world.root / "a" / KEY).exists()


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("when", list(When))
def test_a_commit_that_fails(world: World, when: When, atomic: bool) -> None:
    with world.effects.watch(Fault(COMMIT, when, How.ONCE)):
        with pytest.raises(OperationalError):
            change(world, atomic=atomic)
        assert User.objects.filter(first_name="changed").exists() == (when == When.AFTER)
        change(world, atomic=atomic)
    assert User.objects.filter(first_name="changed").exists()


@pytest.mark.parametrize("effect", [PUT, COMMIT])
@pytest.mark.parametrize("when", list(When))
def test_a_process_that_dies(world: World, when: When, effect: Effect) -> None:
    def work(die: object) -> str:
        world.effects.die = die  # type: ignore[assignment]
        with world.effects.watch(Fault(effect, when, How.DEATH)):
            put(world)
            change(world, atomic=True)
        return "survived"

    assert fork(work).died
    assert (world.root / "a" / KEY).exists() == (effect == COMMIT or when == When.AFTER)
    changed = User.objects.filter(first_name="changed").exists()
    assert changed == (effect == COMMIT and when == When.AFTER)
    assert fork(lambda _die: "survived").result == "survived"


def test_the_oracle_names_what_is_planted(world: World) -> None:
    world.put("one", DATA["one"])
    state = world.state()
    assert world.complaints(state) == []
    saved = world.save()
    path, replica = world.object_of("one")

    def told() -> str:
        with counters.apart() as sums:
            found = "\n".join(world.complaints(state))
        assert bool(sums[counters.LOST]) == ("the drive is" in found)
        world.restore(saved)
        assert world.complaints(state) == []
        return found

    path.with_name("f" * 32).write_bytes(b"?")
    assert "unknown object" in told()
    path.write_bytes(b"?")
    assert "object_damaged" in told()
    Replica.objects.filter(pk=replica.pk).delete()
    assert "a second pass finds work" in told()
    User.objects.update(used=1)
    assert "wrong_quota" in told()
    world.put("one", DATA["two"])
    assert "the drive is" in told()
