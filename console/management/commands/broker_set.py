"""Change a broker."""

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
from brokers.models import Broker
from brokers.present import as_dict, as_line
from console import brokers
from console.operations import Who


class Command(JsonCommand):
    help = (
        "Change what is given; options and secrets that are left out stay. They must lead to the same place. "
        "Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--rename", metavar="NAME")
        parser.add_argument("--domain")
        parser.add_argument("--weight", type=float, help="0 takes no new copies")
        add_option_arguments(parser)
        add_limit_arguments(parser)
        enabled = parser.add_mutually_exclusive_group()
        enabled.add_argument("--enable", action="store_const", const=True, dest="enabled")
        enabled.add_argument("--disable", action="store_const", const=False, dest="enabled")
        parser.add_argument("--dry-run", action="store_true", help="only check that it could be changed so")
        parser.add_argument(
            "--write-marker",
            action="store_true",
            help="declare that the place, which has no marker, is this broker's",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        given = read_options(options)
        try:
            broker = brokers.update(
                broker.pk,
                Who(),
                dry_run=options["dry_run"],
                name=options["rename"],
                domain=options["domain"],
                weight=options["weight"],
                options=given or None,
                allowed=read_limits(options),
            )
            if options["write_marker"] and not options["dry_run"]:
                broker = brokers.write_marker(broker.pk, Who())
            if options["enabled"] is not None and not options["dry_run"]:
                broker = brokers.set_enabled(broker.pk, options["enabled"], Who())
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
        self.report(options, as_dict(broker), as_line(broker))
