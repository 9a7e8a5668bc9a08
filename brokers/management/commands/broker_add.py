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
from brokers.services import add_broker


class Command(JsonCommand):
    help = "Connect a place: prepare it, mark it, poll it."

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

    def handle(self, *args: Any, **options: Any) -> None:
        given = read_options(options)
        allowed = read_limits(options)
        try:
            broker = add_broker(
                options["name"],
                options["driver"],
                options["domain"],
                given,
                weight=options["weight"],
                adopt=options["adopt"],
                allowed=allowed,
            )
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
        self.report(options, as_dict(broker), as_line(broker))
