"""The table of docs/reliability.md is written by command alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.kit import counters
from tests.machine import machine, soak

pytestmark = pytest.mark.only_on("sqlite")

SUMS = {
    soak.STEPS: 12_345,
    counters.FAULTS: 6_789,
    counters.ACKNOWLEDGED: 1_000_000,
    counters.LOST: 0,
    counters.WRONG: 2,
    "seconds": 615.0,
}
LINE = "| 2030-01-02 03:04 | SQLite | 10.2 | 12,345 | 6,789 | 1,000,000 | 0 | 2 |\n"


def test_a_row_tells_every_sum() -> None:
    assert soak.row(datetime(2030, 1, 2, 3, 4, tzinfo=UTC), "SQLite", SUMS) == LINE
    assert soak.STEPS == machine.STEPS


def test_rows_stand_between_the_markers_the_newest_first(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text(f"# Before\n\n{soak.BEGIN}\n{soak.HEAD}{soak.END}\n\nafter\n")
    soak.write(LINE, document)
    soak.write(LINE.replace("SQLite", "PostgreSQL"), document)
    table = f"{soak.HEAD}{LINE.replace('SQLite', 'PostgreSQL')}{LINE}"
    assert document.read_text() == f"# Before\n\n{soak.BEGIN}\n{table}{soak.END}\n\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["reliability.md"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{soak.BEGIN}\n{soak.HEAD}",
        f"{soak.HEAD}{soak.END}",
        f"{soak.BEGIN}\n| by hand |\n{soak.END}",
        f"{soak.BEGIN}\n{soak.HEAD}{soak.END}\n{soak.BEGIN}\n{soak.HEAD}{soak.END}",
    ],
)
def test_a_document_without_the_table_is_left_alone(tmp_path: Path, text: str) -> None:
    document = tmp_path / "reliability.md"
    document.write_text(text)
    with pytest.raises(ValueError, match=r"markers|head"):
        soak.write(LINE, document)
    assert document.read_text() == text


def test_the_document_takes_a_row() -> None:
    assert LINE in soak.with_row(soak.DOCUMENT.read_text(), LINE)
