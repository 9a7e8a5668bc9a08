"""What the project's management commands share: words for people, `--json` for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from brokers import history


class JsonCommand(BaseCommand):
    """A command with `--json`: subclasses implement `add_options` and `handle`, and end in `report`."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON document instead of words")
        self.add_options(parser)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Runs the command; what it asked of the brokers goes into their history."""
        try:
            return super().execute(*args, **options)
        finally:
            history.flush()

    def add_options(self, parser: CommandParser) -> None:
        """Arguments of this command beside `--json`."""

    def report(self, options: dict[str, Any], data: Any, words: str) -> None:
        """Print the outcome: `data` (a dataclass, or anything JSON takes) or `words`."""
        if options["json"]:
            plain = asdict(data) if is_dataclass(data) and not isinstance(data, type) else data
            self.stdout.write(json.dumps(plain, default=str))
        else:
            self.stdout.write(words)
