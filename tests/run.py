"""`make test`: the suite on SQLite, then on PostgreSQL. `python -m tests.run [--db sqlite|postgres] -- [pytest]`."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time

from tests.servers import chromium
from tests.servers.postgres import postgres
from tests.servers.product import product_variables

NO_TESTS = 5  # pytest's exit code


def suite(name: str, arguments: list[str], env: dict[str, str]) -> tuple[str, int]:
    print(f"\n=== Tests on {name} ===", flush=True)
    before = time.monotonic()
    # Whoever is done takes over tests of others: the slow ones lie side by side.
    count = os.environ.get("TEST_PROCESSES", "4")
    command = [sys.executable, "-m", "pytest", "-n", count, "--dist", "worksteal", *arguments]
    code = subprocess.run(command, env=env, check=False).returncode
    words = {0: "passed", NO_TESTS: "no tests were selected"}.get(code, f"FAILED (pytest exit code {code})")
    return f"Tests on {name}: {words}, {time.monotonic() - before:.0f} s", code


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test")
    parser.add_argument("--db", default="", choices=["", "sqlite", "postgres"])
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args()

    env = {name: value for name, value in os.environ.items() if name not in product_variables()}
    # The counters that the whole suite must reach are judged when nothing of it is left out.
    env.pop("CLOUDSTORE_WHOLE_SUITE", None)
    if not options.pytest:
        env["CLOUDSTORE_WHOLE_SUITE"] = "1"
    env["CLOUDSTORE_DATA"] = tempfile.mkdtemp(prefix="cloudstore-tests-")
    atexit.register(shutil.rmtree, env["CLOUDSTORE_DATA"], ignore_errors=True)
    closing: list[tuple[str, int]] = []
    if options.db in {"", "sqlite"}:
        found = chromium.ensure()
        if found:
            env["CLOUDSTORE_TEST_CHROMIUM"] = found
        closing.append(suite("SQLite", options.pytest, env))
        if not found:
            closing.append(("Browser tests were SKIPPED: no Chromium here and none could be installed", 0))
    if options.db in {"", "postgres"}:
        with postgres() as url:
            on_postgres = {**env, "DATABASE_URL": url}
            closing.append(suite("PostgreSQL", ["-m", "not browser", *options.pytest], on_postgres))

    print()
    for line, _ in closing:
        print(line)
    codes = [code for line, code in closing if line.startswith("Tests on")]
    empty = all(code == NO_TESTS for code in codes)
    failed = empty or any(code not in {0, NO_TESTS} for code in codes)
    print("make test: FAILED" if failed else "make test: all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
