"""The counters can fail."""

from __future__ import annotations

import pytest

from brokers import failpoint
from tests.kit import counters


def test_a_missed_failpoint_and_a_lost_byte_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_names", set())
    monkeypatch.setattr(counters, "_sums", counters.Counter({counters.LOST: 3, counters.EFFECTS: 2}))
    monkeypatch.setattr(counters, "failpoints", lambda: {"some.place"})
    told = "\n".join(counters.verdicts())
    assert "'some.place' was never reached" in told
    assert "0 faults were injected" in told
    assert "only 0 of 2 effects" in told
    assert "3 acknowledged bytes lost" in told


def test_reaching_a_place_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_names", set())
    failpoint.reach("tests.somewhere")
    assert counters._names == {"tests.somewhere"}
