"""What happens around the users of the state machine's drive: providers fail, operators change their minds, workers
take their turns."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from accounts.models import Plan, User
from brokers import health, services
from replication import collect, epoch, orphans, policy, reconcile, scrub
from replication.models import Segment
from tests.kit import counters
from tests.machine.faults import DAMAGES, FAULTS, damaged
from tests.machine.world import DOMAINS, Place, World
from vfs import upload

SEEDS = st.integers(0, 2**16)
PLACES = st.integers(0, len(DOMAINS) - 1)
# Mostly the process lives on.
CRASHED = st.one_of(st.none(), st.none(), st.none(), st.integers(1, 40))
CALLS = st.sampled_from([1, 1, 2, 4, 9, None])
FAULT = st.sampled_from(sorted(FAULTS))
EVENTS = st.sampled_from(
    ["calms down", "calms down", "goes away", "is not mounted", "comes back", "comes back", "comes back",
     "comes back empty", "loses its marker", "damages its marker", "late puts land"]
)  # fmt: skip
OPERATIONS = st.sampled_from(["own copies", "enable", "enable", "disable", "no new copies", "new copies"])
WAITS = st.sampled_from([1, 20, 20, 130, 130, 1000, 1000, 4000, 90_000, 180_000])
WORK = st.sampled_from(
    ["poll", "poll", "sweep", "sweep", "sweep all", "scrub", "scrub", "scrub all", "expire", "collect", "orphans",
     "epoch"]
)  # fmt: skip


class Around(RuleBasedStateMachine):
    world: World
    plan: Plan
    user: User

    def act(self, what: Callable[[], Any], crash: int | None = None) -> Any:
        """Do something, the process dying at the given effect."""
        raise NotImplementedError

    # -- providers ----------------------------------------------------------------------------------------

    def place(self, number: int) -> Place:
        return self.world.places[number]

    @rule(number=PLACES, name=FAULT, calls=CALLS, seed=SEEDS)
    def fault(self, number: int, name: str, calls: int | None, seed: int) -> None:
        self.world.script(self.place(number), name, calls, seed)

    @rule(names=st.lists(FAULT, min_size=4, max_size=8), calls=st.sampled_from([3, 20]), seed=SEEDS)
    def storm(self, names: list[str], calls: int, seed: int) -> None:
        """Every provider fails at once, in ways of its own."""
        for number, name in enumerate(names):
            self.world.script(self.place(number % len(DOMAINS)), name, calls, seed + number)

    @rule(number=PLACES, what=EVENTS)
    def happens(self, number: int, what: str) -> None:
        """Something happens to a provider as a whole."""
        place, world = self.place(number), self.world
        {
            "calms down": world.calm,
            "goes away": world.go_away,
            "is not mounted": world.unmount,
            "comes back": world.come_back,
            "comes back empty": world.empty,
            "loses its marker": world.lose_marker,
            "damages its marker": world.damage_marker,
            "late puts land": world.land,
        }[what](place)

    @rule(number=PLACES, which=SEEDS, how=st.sampled_from(DAMAGES), seed=SEEDS)
    def damage(self, number: int, which: int, how: str, seed: int) -> None:
        """A stored object rots, unless it is the last good copy."""
        place = self.place(number)
        held = place.held()
        if not held:
            return
        name = held[which % len(held)]
        if self.world.needed(place, {name}):
            return
        script = self.world.dice(seed)
        data = damaged(how, place.here[name][0], place.here[held[0]][0], script)
        if data is None:
            del place.here[name]
        else:
            place.here[name] = (data, self.world.clock.now())
        counters.add(counters.FAULTS)

    # -- operators ----------------------------------------------------------------------------------------

    @rule(copies=st.integers(1, 3), ack=st.integers(1, 3), degraded=st.booleans())
    def rules(self, copies: int, ack: int, degraded: bool) -> None:
        self.act(lambda: policy.change(copies=copies, ack_copies=ack, allow_degraded=degraded))

    @rule(number=PLACES, what=OPERATIONS, copies=st.sampled_from([None, 1, 2, 3]))
    def operate(self, number: int, what: str, copies: int | None) -> None:
        """By hand: brokers are taken out of use and back, and what is uploaded from now on has its own number of
        copies."""
        broker = self.place(number).pk
        if what == "own copies":
            self.plan.copies = copies
            self.plan.save()
            self.user.refresh_from_db()
        elif what in ("enable", "disable"):
            self.act(lambda: services.set_enabled(broker, what == "enable"))
        else:
            self.act(lambda: services.update_broker(broker, weight=0.0 if what == "no new copies" else 1.0))

    # -- workers ------------------------------------------------------------------------------------------

    @rule(what=WORK, crash=CRASHED)
    def work(self, what: str, crash: int | None) -> None:
        """One turn of a worker."""
        self.turn(what, crash)

    @rule(what=WORK, seconds=WAITS)
    def wait_and_work(self, what: str, seconds: int) -> None:
        self.world.clock.advance(seconds=seconds)
        self.turn(what)

    def turn(self, what: str, crash: int | None = None) -> None:
        turns: dict[str, Callable[[], Any]] = {
            "poll": health.poll_due,
            "sweep": lambda: reconcile.sweep(600),
            "sweep all": lambda: reconcile.sweep(600, full=True),
            "scrub": lambda: scrub.scrub(2000),
            "scrub all": lambda: scrub.scrub(everything=True),
            "expire": upload.expire_uploads,
            "collect": collect.collect,
            "orphans": orphans.scan,
            "epoch": epoch.advance,
        }
        self.act(turns[what], crash)

    @rule(which=st.integers(0, 30), crash=CRASHED)
    def reconcile_one(self, which: int, crash: int | None) -> None:
        segments = list(Segment.objects.order_by("pk").values_list("pk", flat=True))
        if segments:
            self.act(lambda: reconcile.reconcile_segment(segments[which % len(segments)]), crash)

    @precondition(lambda self: self.world.hints)
    @rule(crash=CRASHED)
    def take_hint(self, crash: int | None) -> None:
        """A message of the queue is delivered."""
        task, arguments = self.world.hints.pop(0)
        if task.endswith("reconcile_content"):
            self.act(lambda: reconcile.reconcile_content(uuid.UUID(arguments[0])), crash)
        else:
            assert task.endswith("reconcile_segment"), task
            self.act(lambda: reconcile.reconcile_segment(arguments[0]), crash)
