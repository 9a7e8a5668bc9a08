"""Say that what a broker is missing is lost."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.models import Broker
from brokers.present import as_dict, as_line
from console import operations
from console.operations import Who


class Command(JsonCommand):
    help = (
        "A broker is down because many of its objects were missing (or refused) at once, and they will not come "
        "back: use it again, and replace what it does not have from the other copies."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument(
            "--dry-run", action="store_true", help="say what is the matter, and change nothing"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        if not broker.incident:
            raise CommandError(f"{broker.name} has no incident; there is nothing to confirm")
        if options["dry_run"]:
            words = f"{as_line(broker)}: {broker.health_detail}"
        else:
            broker = operations.confirm_loss(broker.pk, Who())
            words = as_line(broker)
        self.report(options, as_dict(broker), words)
