"""Bring back what the brokers hold and this database does not know."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.models import Broker
from console import brokers, rebuild
from console.management.commands.rebuild import words_of
from console.operations import Who


class Command(JsonCommand):
    help = (
        "After an older database was put back: give rows to the objects that it does not know. Whole files come back "
        "in lost+found, further copies are known again, the rest is listed. Nothing is deleted; may be run again."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--operator", default="", metavar="USER", help="whose lost+found (default: the first)"
        )
        parser.add_argument("--broker", default="", metavar="NAME", help="look through this broker alone")
        parser.add_argument("--dry-run", action="store_true", help="only count")

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["broker"]).first()
        if options["broker"] and broker is None:
            raise CommandError(f"there is no broker {options['broker']!r}")
        try:
            report = brokers.bring_back(
                broker.pk if broker else None,
                Who(),
                operator=options["operator"],
                dry_run=options["dry_run"],
                tell=lambda words: self.stderr.write(words),
            )
        except rebuild.CannotRebuild as error:
            raise CommandError(str(error)) from None
        self.report(options, report.as_dict(), words_of(report, options["dry_run"]))
