"""Say that this database is the right one, so that objects may be deleted again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from console import epoch


class Command(JsonCommand):
    help = (
        "After an older database was put back or rebuilt, nothing is deleted from any broker until this command "
        "confirms it. --dry-run says what confirming allows. Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say how things stand")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"]:
            outlook = epoch.look()
            self.report(options, outlook, epoch.words_of(outlook))
            return
        row = epoch.confirm()
        self.report(
            options,
            {"number": row.number, "locked": False},
            f"confirmed: epoch {row.number}, deletion is allowed",
        )
