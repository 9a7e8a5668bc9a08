"""Fixtures of the crash tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.conftest import _clean_brokers
from tests.crash.world import World
from tests.crash.world import world as make_world
from tests.kit.clock import VirtualClock

__all__ = ["_clean_brokers"]


@pytest.fixture
def world(
    transactional_db: None,
    clock: VirtualClock,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[World]:
    with make_world(tmp_path.resolve() / "places", clock, settings, monkeypatch) as made:
        yield made
