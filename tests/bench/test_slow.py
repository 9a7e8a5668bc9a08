"""What the case with one slow broker measures with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bench.apps.slow_broker import SlowLocalBroker

pytestmark = pytest.mark.only_on("sqlite")


def test_a_slow_broker_waits_and_counts(tmp_path: Path, settings: Any) -> None:
    settings.CLOUDSTORE_LOCAL_ROOTS = [tmp_path]
    broker = SlowLocalBroker({"root": str(tmp_path / "a")})
    broker.prepare()
    where = broker.upload_file(b"bytes", "cs/00/" + "0" * 32)
    (tmp_path / "a.slow").write_text("0.05")
    began = time.monotonic()
    assert broker.download_file(where) == b"bytes"
    assert time.monotonic() - began >= 0.05
    assert (tmp_path / "a.reads").read_bytes() == b"."
    assert [entry.size for entry in broker.list_files()] == [5]
