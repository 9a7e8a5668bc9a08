"""A quick trial of a broker with one small object: write, read, hash, list, delete. `broker_check` proves far more and
takes far longer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from brokers import clock, entropy, marker
from brokers.errors import BrokerError, Corrupt, NotFound
from brokers.layers import guard
from brokers.models import Broker
from brokers.names import new_object_key
from brokers.open import OpenBroker, connect

SIZE = 64 * 1024


@dataclass
class Step:
    """One thing that was tried. `detail` is an error's code and words when it failed."""

    name: str
    ok: bool
    seconds: float
    detail: str = ""


@dataclass
class Trial:
    """The outcome: `steps` in their order, up to the first that failed."""

    broker: str
    ok: bool = False
    bytes: int = SIZE
    steps: list[Step] = field(default_factory=list)


class _Failed(Exception):
    pass


def run(broker_id: int) -> Trial:
    """Try a broker now through a connection of its own, so that credentials are asked for anew. Never raises for what
    is wrong with the broker; nothing is written to a place that is not surely the broker's. The object has a name
    of ours: what a crash leaves of it is an orphan, and goes as one. Outside any transaction."""
    guard.check()
    broker = Broker.objects.get(pk=broker_id)
    trial = Trial(broker.name)
    try:
        with _step(trial, "connect"):
            opened = connect(broker)
    except _Failed:
        return trial
    try:
        _try(broker, opened, trial)
        trial.ok = True
    except _Failed:
        pass
    finally:
        opened.retire()
    return trial


def _try(broker: Broker, opened: OpenBroker, trial: Trial) -> None:
    with _step(trial, "marker"):
        if opened.peek(broker.marker_locator or marker.MARKER_NAME) != marker.content(broker.marker):
            raise Corrupt("the place does not carry this broker's marker")
    key, data = new_object_key(), entropy.token_bytes(SIZE)
    locator = key
    try:
        with _step(trial, "write"):
            locator = opened.put(key, data)
        with _step(trial, "read"):
            _must(opened.get(locator), data)
        with _step(trial, "range"):
            _must(opened.get(locator, 1000, 2000), data[1000:3000])
        with _step(trial, "list"):
            if not any(found.path == locator for found in opened.list(key)):
                raise Corrupt("the listing lacks the object")
    except _Failed:
        _delete_quietly(opened, locator)
        raise
    with _step(trial, "delete"):
        opened.delete(locator)
        try:
            opened.stat(locator)
        except NotFound:
            return
        raise Corrupt("the object is still there after its delete")


def _must(found: bytes, wanted: bytes) -> None:
    if hashlib.sha256(found).digest() != hashlib.sha256(wanted).digest():
        raise Corrupt(f"{len(found)} bytes came back that are not the {len(wanted)} that were written")


def _delete_quietly(opened: OpenBroker, locator: str) -> None:
    try:
        opened.delete(locator)
    except BrokerError:
        return  # the failure is told already; the orphan scan finds what is left


@contextmanager
def _step(trial: Trial, name: str) -> Iterator[None]:
    began = clock.monotonic()
    try:
        yield
    except BrokerError as error:
        trial.steps.append(Step(name, False, _since(began), f"{error.code}: {error}"))
        raise _Failed from None
    trial.steps.append(Step(name, True, _since(began)))


def _since(began: float) -> float:
    return round(clock.monotonic() - began, 4)


def words_of(trial: Trial) -> str:
    """For a terminal or a message."""
    lines = [
        f"{'ok  ' if step.ok else 'FAIL'} {step.name} ({step.seconds:.2f} s) {step.detail}".rstrip()
        for step in trial.steps
    ]
    return "\n".join([f"{trial.broker}: {'works' if trial.ok else 'does not work'}", *lines])
