"""Child processes for the conformance suite: one that works, and one that dies at a chosen step of a put."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from brokers.open import OpenBroker

CHILD_SECONDS = 120
MOST_DEATHS = 40
# A put of more steps than this is an SDK's: fewer deaths, for each costs requests.
FEW_STEPS = 400
DEATHS_OF_MANY = 8


def _child(work: Callable[[int], None]) -> bytes:
    """Run `work` in a forked process: -> what it wrote into the descriptor that it is given. The process is killed
    after CHILD_SECONDS."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            work(write)
        finally:
            os._exit(0)  # nothing of the parent's may be flushed or closed twice
    os.close(write)
    said = b""
    try:
        while select.select([read], [], [], CHILD_SECONDS)[0]:
            part = os.read(read, 4096)
            if not part:
                break
            said += part
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return said


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` returned true in a forked process; False also when it raised or did not end."""

    def tell(write: int) -> None:
        os.write(write, b"1" if work() else b"0")

    return _child(tell) == b"1"


def steps_of(connect: Callable[[], OpenBroker], name: str, data: bytes) -> int:
    """How many steps (calls and returns, Python's and C's) a put of the driver takes."""

    def count(write: int) -> None:
        driver = connect()._driver
        steps = 0

        def step(*_event: Any) -> None:
            nonlocal steps
            steps += 1

        sys.setprofile(step)
        try:
            driver.upload_file(data, name)
        finally:
            sys.setprofile(None)
        os.write(write, str(steps).encode())

    said = _child(count)
    return int(said) if said else 0


def spread(steps: int) -> list[int]:
    """At which steps to die: each one of a few, some of many."""
    deaths = MOST_DEATHS if steps <= FEW_STEPS else DEATHS_OF_MANY
    return sorted({1 + number * max(steps - 1, 0) // deaths for number in range(deaths)})


def die_within_put(connect: Callable[[], OpenBroker], name: str, data: bytes, step: int) -> None:
    """Put in a forked process that kills itself at a step, as power cuts and the kernel do: nothing is cleaned up."""

    def work(_write: int) -> None:
        driver = connect()._driver
        left = step

        def count(*_event: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        driver.upload_file(data, name)

    _child(work)
