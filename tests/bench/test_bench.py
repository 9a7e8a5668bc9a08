"""The bench itself, on the one peer that needs nothing installed: the bare handler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloudstore.config import BASE_DIR

pytestmark = pytest.mark.only_on("sqlite")


def processes_with(text: str) -> list[str]:
    """The command lines that contain `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in line and "pytest" not in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_it_measures_writes_its_results_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "upload", "download", "--only", "plain,plain-sync"]
    where = ["--folder", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    done = subprocess.run(
        [*command, "--size", "20", "--runs", "2", *where],
        cwd=BASE_DIR, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    report = json.loads(path.read_text())
    assert set(report["medians"]["upload"]) == {"plain", "plain-sync", "cp", "cp-sync"}
    assert set(report["medians"]["download"]) == {"plain"}
    rates = [run for run in report["runs"] if run["case"] == "upload" and run["metric"] == "mb_per_s"]
    assert len(rates) == 8 and all(run["value"] > 0 for run in rates)
    assert report["left_out"] == {}
    assert "two plain copies through the same Granian" in done.stdout
    assert list((tmp_path / "work").iterdir()) == []
    assert processes_with(str(tmp_path)) == []


def test_a_wrong_call_measures_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "apache"],
        cwd=BASE_DIR, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "apache: not one of" in done.stderr
