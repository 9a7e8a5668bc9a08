from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from vfs.recount import recount


class Command(JsonCommand):
    help = "Count what every user stores and has reserved, and correct the numbers that are wrong."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what is wrong")

    def handle(self, *args: Any, **options: Any) -> None:
        counts = list(recount(dry_run=options["dry_run"]))
        wrong = [count for count in counts if not count.right]
        verb = "wrong" if options["dry_run"] else "corrected"
        words = [f"{len(counts)} users counted, {len(wrong)} {verb}"]
        words += [
            f"{c.user}: used {c.used} -> {c.counted_used}, reserved {c.reserved} -> {c.counted_reserved}"
            for c in wrong
        ]
        data = {"users": len(counts), "wrong": [asdict(count) for count in wrong]}
        self.report(options, data, "\n".join(words))
