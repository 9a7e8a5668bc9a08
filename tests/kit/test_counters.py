"""The counters can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brokers import failpoint
from cloudstore.config import BASE_DIR
from tests.kit import counters


def test_a_missed_failpoint_and_a_lost_byte_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_names", set())
    monkeypatch.setattr(counters, "_sums", counters.Counter({counters.LOST: 3, counters.EFFECTS: 2}))
    monkeypatch.setattr(counters, "failpoints", lambda: {"some.place"})
    told = "\n".join(counters.verdicts("sqlite"))
    assert "'some.place' was never reached" in told
    assert "0 faults were injected, fewer than 10000" in told
    assert "0 faults were injected, fewer than 4000" in "\n".join(counters.verdicts("postgresql"))
    assert "only 0 of 2 effects" in told
    assert "3 acknowledged bytes lost" in told


def test_reaching_a_place_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_names", set())
    failpoint.reach("tests.somewhere")
    assert counters._names == {"tests.somewhere"}


COUNTING = """
import pytest
from brokers import failpoint
from tests.kit import counters

@pytest.mark.parametrize("number", range(4))
def test_count(number):
    counters.add(counters.FAULTS)
    failpoint.reach("upload.committed")
"""


def test_what_all_processes_counted_is_added_up(tmp_path: Path) -> None:
    (tmp_path / "test_count.py").write_text(COUNTING)
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:django", "-p", "tests.kit.counters"]
    ran = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", tmp_path, "-p", "no:cacheprovider", tmp_path],
        cwd=BASE_DIR,
        env={**os.environ, "CLOUDSTORE_WHOLE_SUITE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "4 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "faults injected: 4" in ran.stdout
    assert "'upload.committed' was never reached" not in ran.stdout
    assert "'upload.completed' was never reached" in ran.stdout
    assert ran.returncode == 1
