"""`make check`: everything that can be said about the code without running it. Runs all, then tells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 500
MEASURED = {".py", ".js", ".css", ".html"}
FOREIGN = {"var", "node_modules", "dist"}
HOST = re.compile(r"https?://|--(extra-)?index-url|--find-links|--trusted-host")

PYTHON = [sys.executable, "-m"]
COMMANDS = {
    "ruff check": [*PYTHON, "ruff", "check", "--quiet", "."],
    "ruff format": [*PYTHON, "ruff", "format", "--check", "--quiet", "."],
    "mypy": [*PYTHON, "mypy", "--no-error-summary"],
    "import rules": [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
    "migrations": [
        sys.executable, "manage.py", "makemigrations", "--check", "--dry-run", "--settings", "tests.settings",
    ],
}  # fmt: skip


def too_long() -> list[str]:
    """Modules of more than LONGEST lines."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.suffix not in MEASURED or any(part in FOREIGN or part.startswith(".") for part in parts):
            continue
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST:
            found.append(f"{'/'.join(parts)}: {lines} lines, more than {LONGEST}")
    return found


def hosts() -> list[str]:
    """Requirement files that name where packages come from: that is the installing machine's matter."""
    return [
        f"requirements/{path.name} line {number} names a host or an index"
        for path in sorted((ROOT / "requirements").iterdir())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if HOST.search(line)
    ]


def main() -> int:
    failed = []
    for name, command in COMMANDS.items():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {name}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr)
    for name, problems in (("module lengths", too_long()), ("requirements", hosts())):
        print(f"{'FAILED' if problems else 'ok    '} {name}", *problems, sep="\n  ", flush=True)
        failed += [name] if problems else []
    print(f"make check: FAILED: {', '.join(failed)}" if failed else "make check: all is well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
