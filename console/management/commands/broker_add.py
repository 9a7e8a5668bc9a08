"""Connect a storage provider account or folder."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.management.arguments import (
    add_limit_arguments,
    add_option_arguments,
    read_limits,
    read_options,
)
from brokers.present import as_dict, as_line
from console import brokers
from console.management.commands.rebuild import words_of
from console.operations import Who


class Command(JsonCommand):
    help = (
        "Connect a place: prepare it, mark it, poll it. With --adopt, what it holds of ours is looked through "
        "afterwards: copies are verified and used again instead of being uploaded. Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--driver", required=True)
        parser.add_argument(
            "--domain", required=True, help="failure domain, e.g. the provider and its region"
        )
        add_option_arguments(parser)
        add_limit_arguments(parser)
        parser.add_argument("--weight", type=float, default=1.0)
        parser.add_argument("--adopt", action="store_true", help="take over a place of a removed broker")
        parser.add_argument(
            "--dry-run", action="store_true", help="check the options and look at the place only"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        given = read_options(options)
        allowed = read_limits(options)
        try:
            broker = brokers.add(
                options["name"],
                options["driver"],
                options["domain"],
                given,
                Who(),
                weight=options["weight"],
                adopt=options["adopt"],
                allowed=allowed,
                dry_run=options["dry_run"],
            )
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
        if options["dry_run"]:
            self.report(options, {"would_add": as_dict(broker)}, f"would be added: {broker.name}")
            return
        data, words = as_dict(broker), as_line(broker)
        if options["adopt"]:
            report = brokers.bring_back(broker.pk, Who(), tell=lambda text: self.stderr.write(text))
            data["brought_back"] = report.as_dict()
            words += f"\n{words_of(report, dry_run=False)}"
        self.report(options, data, words)
