"""The crash matrix: every operation, failed before and after each of its effects, once, for ever, by death.

After each failure the process starts anew, the product's own schedule runs until nothing is left to do, and the
oracle (`World.complaints`) is asked. Whatever the client was told is held against what became of the operation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from brokers import failpoint
from tests.crash.operations import NO_ANSWER, OK, OPERATIONS, REFUSED, Operation
from tests.crash.world import Saved, State, World
from tests.kit import counters
from tests.kit.effects import DATABASE, Effect, Fault, How, When, fork


class Matrix:
    """One operation, made ready."""

    def __init__(self, world: World, operation: Operation) -> None:
        self.world, self.operation = world, operation
        operation.prepare(world)
        self.saved: Saved = world.save()
        self.before: State = world.state()
        self.unknown = set(world.unknown_objects())
        self.intact = world.intact()
        self.effects = self.number()
        world.restart()
        world.settle(all_bytes=operation.all_bytes)
        self.after: State = world.state()
        assert operation.came_out(self.after), self.after
        assert world.complaints(self.after) == []

    def number(self) -> dict[Effect, str]:
        """Run without faults: the effects there are."""
        with self.world.effects.watch():
            assert self.operation.act(self.world) == OK
            return dict(self.world.effects.seen)

    def fail(self, fault: Fault) -> list[str]:
        """Run the operation with a fault: -> what is wrong afterwards."""
        world = self.world
        world.restore(self.saved)
        # What is logged during a fault is no surprise, and tells nothing that the oracle does not.
        logging.disable(logging.CRITICAL)
        try:
            answer, fired = self._act(fault)
        finally:
            logging.disable(logging.NOTSET)
        if not fired:
            return ["the effect was not reached"]
        counters.add(counters.CRASHED)
        return self._afterwards(answer)

    def _act(self, fault: Fault) -> tuple[str, bool]:
        """-> how a client saw it end, and whether the fault acted."""
        world, effects = self.world, self.world.effects
        if fault.how == How.DEATH:

            def work(die: Callable[[], None]) -> None:
                effects.die = die
                with effects.watch(fault):
                    self.operation.act(world)

            return NO_ANSWER, fork(work).died
        with effects.watch(fault):
            answer = self.operation.act(world)
        return answer, effects.fired > 0

    def die_at(self, name: str) -> list[str]:
        """Run the operation in a process that dies when it reaches a failpoint: -> what is wrong afterwards."""
        self.world.restore(self.saved)

        def work(die: Callable[[], None]) -> None:
            before = failpoint.install(None)

            def reached(there: str) -> None:
                if before is not None:
                    before(there)
                if there == name:
                    die()

            failpoint.install(reached)
            self.operation.act(self.world)

        if not fork(work).died:
            return ["the failpoint was not reached"]
        return self._afterwards(NO_ANSWER)

    def _afterwards(self, answer: str) -> list[str]:
        wrong = self._at_once()
        self.world.restart()
        self.world.settle(all_bytes=self.operation.all_bytes)
        states = {OK: [self.after], REFUSED: [self.before]}.get(answer, [self.before, self.after])
        return [f"{line} (answer: {answer})" for line in wrong + self.world.complaints(*states)]

    def _at_once(self) -> list[str]:
        """What must hold at every moment, so also now, with nothing settled."""
        wrong = [
            f"at once: unknown object {n}" for n in self.world.unknown_objects() if n not in self.unknown
        ]
        wanted = min(self.before["copies"], self.after["copies"])
        for segment, copies in self.world.intact().items():
            if copies < min(wanted, self.intact.get(segment, wanted)):
                wrong.append(f"at once: segment {segment} has {copies} intact copies")
        return wrong


def _fault(when: When, how: How) -> Any:
    """On PostgreSQL three of the six are left out: a call that fails, or that fails for ever, meets the same code on
    either database, and a process that dies before an effect leaves what one that died after the effect before it
    has left. What remains is that something happened, and its answer, or the process, was lost."""
    on_both = when is When.AFTER and how is not How.FOR_EVER
    return pytest.param(when, how, marks=() if on_both else pytest.mark.only_on("sqlite"))


@pytest.mark.parametrize(("when", "how"), [_fault(when, how) for when in When for how in How])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_effect(world: World, name: str, when: When, how: How) -> None:
    matrix = Matrix(world, OPERATIONS[name])
    assert matrix.effects
    counters.add(counters.EFFECTS, len(matrix.effects))
    failures = []
    for effect, about in matrix.effects.items():
        fault = Fault(effect, when, how)
        failures += [f"{fault} ({about}): {line}" for line in matrix.fail(fault)]
    assert not failures, f"{name}: {len(failures)} findings\n" + "\n".join(failures)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("put", "upload.completed"),
        ("put", "upload.committed"),
        ("overwrite", "upload.completed"),
        ("overwrite", "upload.committed"),
        ("repair", "reconcile.found"),
        ("repair", "reconcile.claimed"),
        ("repair", "reconcile.planned"),
        ("repair", "reconcile.put"),
        ("scrub-repair", "suspects.disproven"),
        ("collect", "collect.doomed"),
        ("collect", "collect.deleted"),
        ("drain", "reconcile.planned"),
        ("drain", "reconcile.put"),
        ("drain", "collect.deleted"),
        ("rebalance", "rebalance.marked"),
        ("rebalance", "reconcile.put"),
        ("remove", "removal.unlisted"),
        ("remove", "removal.emptied"),
        ("snapshot", "snapshot.begun"),
        ("snapshot", "snapshot.stored"),
    ],
)
def test_death_at_a_failpoint(world: World, name: str, place: str) -> None:
    """What lies between two effects."""
    assert Matrix(world, OPERATIONS[name]).die_at(place) == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_numbering_is_the_same_each_time(world: World, name: str) -> None:
    matrix = Matrix(world, OPERATIONS[name])
    first = set(matrix.effects)
    assert DATABASE in {effect.place for effect in first}
    for _ in range(2):
        world.restore(matrix.saved)
        assert set(matrix.number()) == first
