"""`make soak`: the state machine with other programs every time, until the time is over; its sums become a row of the
table in docs/reliability.md. `python -m tests.machine.soak --minutes 10 --seed 1 --db sqlite|postgres`."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from cloudstore.config import BASE_DIR
from tests.kit import counters
from tests.servers.postgres import postgres
from tests.servers.product import product_variables

DOCUMENT = BASE_DIR / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: rows by `make soak`, never by hand -->", "<!-- soak: end -->"
STEPS = "steps of the state machine"
HEAD = (
    "| date (UTC) | database | minutes | steps | faults injected | bytes acknowledged | bytes lost | "
    "wrong bytes served |\n|---|---|---|---|---|---|---|---|\n"
)


def row(at: datetime, database: str, sums: dict[str, float]) -> str:
    """One line of the table."""
    numbers = [
        int(sums[n]) for n in (STEPS, counters.FAULTS, counters.ACKNOWLEDGED, counters.LOST, counters.WRONG)
    ]
    cells = [f"{at:%Y-%m-%d %H:%M}", database, f"{sums['seconds'] / 60:.1f}", *(f"{n:,}" for n in numbers)]
    return f"| {' | '.join(cells)} |\n"


def with_row(text: str, line: str) -> str:
    """The document with one more row between the markers, the newest first. Raises ValueError when the markers, or
    the table's head, are not as they should be."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    table, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError("the document has not exactly one pair of markers")
    if not table.startswith(HEAD):
        raise ValueError("the table has another head")
    return f"{before}{begin}{HEAD}{line}{table.removeprefix(HEAD)}{end}{after}"


def write(line: str, document: Path = DOCUMENT) -> None:
    """Put the row into the document, whole or not at all."""
    text = with_row(document.read_text(), line)
    new = document.with_suffix(".new")
    new.write_text(text)
    new.replace(document)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--db", default="sqlite", choices=["sqlite", "postgres"])
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed

    env = {name: value for name, value in os.environ.items() if name not in product_variables()}
    env.pop("CLOUDSTORE_WHOLE_SUITE", None)
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="cloudstore-soak-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        sums = Path(folder) / "sums.json"
        env |= {"CLOUDSTORE_DATA": folder, "SOAK_SUMS": str(sums)}
        env |= {"SOAK_MINUTES": str(options.minutes), "SOAK_SEED": str(seed)}
        if options.db == "postgres":
            env["DATABASE_URL"] = stack.enter_context(postgres())
        began = datetime.now(UTC)
        command = [sys.executable, "-m", "pytest", "-q", "-s", "--tb=short", "tests/machine/soak_program.py"]
        code = subprocess.run(command, env=env, cwd=BASE_DIR, check=False).returncode
        if code:
            print("make soak: FAILED; no row was written. The seed and the shortest program are above.")
            return code
        line = row(
            began, {"sqlite": "SQLite", "postgres": "PostgreSQL"}[options.db], json.loads(sums.read_text())
        )
    write(line)
    print(f"{DOCUMENT.relative_to(BASE_DIR)}: {line}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
