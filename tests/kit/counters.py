"""What the whole suite counts, summed over all its processes and printed at its end.

    counters.add("faults injected")            # any number
    counters.add("effects of upload", 14)
    counters.reached("failpoint")              # names, each once

A pytest plugin (tests/conftest.py names it). In a run of the whole suite (`tests.run` without arguments sets
CLOUDSTORE_WHOLE_SUITE) the sums are also judged: see `verdicts`.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from brokers import failpoint
from brokers.testing import faulty
from cloudstore.config import BASE_DIR

FAULTS = "faults injected"
ACKNOWLEDGED = "bytes acknowledged"
LOST = "acknowledged bytes lost"
WRONG = "wrong bytes served"
EFFECTS = "effects"
CRASHED = "effects crashed"
# On PostgreSQL the suite leaves out faults that meet the same code on either database.
LEAST_FAULTS = {"sqlite": 10_000, "postgresql": 4_000}

_sums: Counter[str] = Counter()
_names: set[str] = set()
_lock = threading.Lock()
PACKAGES = ("prepared", "accounts", "brokers", "replication", "vfs", "whitelabel", "console", "cloudstore")


def add(what: str, count: int = 1) -> None:
    with _lock:
        _sums[what] += count


def reached(name: str) -> None:
    with _lock:
        _names.add(name)


def value(what: str) -> int:
    """The sum so far, of this process."""
    with _lock:
        return _sums[what]


@contextmanager
def apart() -> Iterator[Counter[str]]:
    """Inside, sums are counted anew and not for the suite: for tests that plant a loss."""
    global _sums
    before, _sums = _sums, Counter()
    try:
        yield _sums
    finally:
        _sums = before


def failpoints() -> set[str]:
    """Every name in the source that `brokers.failpoint.reach` is called with."""
    found: list[str] = []
    for package in PACKAGES:
        for path in (BASE_DIR / package).rglob("*.py"):
            if path.name != "failpoint.py":
                found += re.findall(r"\breach\(\"([^\"]+)\"\)", path.read_text())
    assert len(found) == len(set(found)), "two places have the same name"
    return set(found)


def verdicts(vendor: str) -> list[str]:
    """What a run of the whole suite on this database has failed to do."""
    missed = failpoints() - _names
    words = [f"the failpoint {name!r} was never reached" for name in sorted(missed)]
    least = LEAST_FAULTS[vendor]
    if _sums[FAULTS] < least:
        words.append(f"{_sums[FAULTS]} faults were injected, fewer than {least}")
    if _sums[CRASHED] < _sums[EFFECTS] or not _sums[EFFECTS]:
        words.append(f"only {_sums[CRASHED]} of {_sums[EFFECTS]} effects were crashed")
    words += [f"{_sums[what]} {what}" for what in (LOST, WRONG) if _sums[what]]
    return words


def _vendor() -> str:
    return "postgresql" if os.environ.get("DATABASE_URL", "").startswith("postgres") else "sqlite"


# -- the plugin ----------------------------------------------------------------------------------------


def pytest_sessionstart(session: pytest.Session) -> None:
    failpoint.install(reached)
    faulty.on_fault = lambda: add(FAULTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """The controller's half under pytest-xdist: takes over what the processes counted."""
    output = getattr(node, "workeroutput", {})
    for what, count in output.get("sums", {}).items():
        add(what, count)
    for name in output.get("names", []):
        reached(name)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["sums"], output["names"] = dict(_sums), sorted(_names)
    elif os.environ.get("CLOUDSTORE_WHOLE_SUITE") and verdicts(_vendor()) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for what, count in sorted(_sums.items()):
        if what not in (EFFECTS, CRASHED):
            terminalreporter.write_line(f"{what}: {count:,}")
    if _sums[EFFECTS]:
        terminalreporter.write_line(f"{_sums[CRASHED]} effects crashed of {_sums[EFFECTS]}")
    if os.environ.get("CLOUDSTORE_WHOLE_SUITE"):
        for words in verdicts(_vendor()):
            terminalreporter.write_line(f"FAILED: {words}")
