"""Which copies move so that load follows free space: pure functions over plain values, as in placement.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# A broker whose load is off its goal by no more than this part of it is left alone.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """A broker that takes part: `held` bytes of copies, `room` for more (None where the provider won't say), and
    `doomed` bytes that are about to be free."""

    id: int
    domain: str
    held: int
    room: int | None
    weight: float = 1.0
    doomed: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A segment whose copies may move: `at` says on which broker each of its replicas is."""

    segment: int
    size: int
    at: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Move:
    replica: int
    segment: int
    source: int
    to: int
    size: int


def goals(loads: Sequence[Load]) -> dict[int, float]:
    """The bytes that each broker should hold: the sum of what all hold, shared in proportion to weight x (held +
    free). Then what each holds is in proportion to its free space, too. A broker that won't tell its space counts
    as the median of those that do. No move changes the goals."""
    known = {load.id: load.held + load.room + load.doomed for load in loads if load.room is not None}
    typical = median(known.values()) if known else 1
    total = sum(load.held for load in loads)
    share = {load.id: load.weight * known.get(load.id, typical) for load in loads}
    whole = sum(share.values())
    return {pk: total * part / whole if whole else 0.0 for pk, part in share.items()}


def within(loads: Sequence[Load], tolerance: float = TOLERANCE) -> bool:
    """Whether no broker's load is off its goal by more than `tolerance` of the goal."""
    goal = goals(loads)
    return all(abs(load.held - goal[load.id]) <= tolerance * goal[load.id] for load in loads)


def moves(
    loads: Sequence[Load],
    segments: Sequence[Held],
    domains: Mapping[int, str],
    *,
    tolerance: float = TOLERANCE,
    most: int | None = None,
) -> list[Move]:
    """The moves that bring the loads to their goals, as far as these segments allow; empty within the tolerance.

    No move puts two copies of a segment into one domain (`domains` knows every broker's, also of those that take
    no part), not even while another copy of it has not moved yet; none fills a broker beyond its headroom, or makes
    the whole more uneven: the sum of the squared distances from the goals falls with each. So planning again and
    again what was carried out ends. With `most` it ends at about so many bytes."""
    goal = goals(loads)
    over = {load.id: load.held - goal[load.id] for load in loads}
    room = {load.id: load.room for load in loads}
    place = {replica: broker for held in segments for replica, broker in held.at.items()}
    size_of = {replica: held.size for held in segments for replica in held.at}
    moved: dict[int, int] = {}  # replica -> where it was
    planned = 0

    def off(broker: int) -> bool:
        return abs(over[broker]) > tolerance * goal[broker]

    def best(held: Held, replica: int) -> int | None:
        source = place[replica]
        if source not in over:
            return None
        # Where the other copies will be, and where they are until then: a move that waits for another one's end
        # could wait for ever.
        others = [other for other in held.at if other != replica]
        taken = {domains[broker] for other in others for broker in (place[other], held.at[other])}
        fitting = [
            to
            for to in over
            if to != source
            and domains[to] not in taken
            and over[source] - over[to] > held.size
            and (off(source) or off(to))
            and _fits(room[to], held.size)
        ]
        return min(fitting, key=lambda to: (over[to], to), default=None)

    again = True
    while again:
        again = False
        for held in segments:
            for replica in held.at:
                if most is not None and planned >= most:
                    again = False
                    break
                to = best(held, replica)
                if to is None:
                    continue
                source = place[replica]
                moved.setdefault(replica, source)
                place[replica] = to
                over[source] -= held.size
                over[to] += held.size
                room[to] = _less(room[to], held.size)
                room[source] = _less(room[source], -held.size)
                planned += held.size
                again = True
    of = {replica: held.segment for held in segments for replica in held.at}
    return [
        Move(replica, of[replica], source, place[replica], size_of[replica])
        for replica, source in moved.items()
        if place[replica] != source
    ]


def after(loads: Iterable[Load], done: Iterable[Move]) -> list[Load]:
    """The loads when these moves are carried out."""
    change: dict[int, int] = {}
    for move in done:
        change[move.source] = change.get(move.source, 0) - move.size
        change[move.to] = change.get(move.to, 0) + move.size
    return [
        Load(
            load.id,
            load.domain,
            load.held + change.get(load.id, 0),
            _less(load.room, change.get(load.id, 0)),
            load.weight,
            load.doomed,
        )
        for load in loads
    ]


def _fits(room: int | None, size: int) -> bool:
    return room is None or room >= size


def _less(room: int | None, size: int) -> int | None:
    return None if room is None else room - size
