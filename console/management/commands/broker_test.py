"""Try a broker with one small object."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers import trial
from brokers.commands import JsonCommand
from brokers.models import Broker
from console import brokers
from console.operations import Who


class Command(JsonCommand):
    help = (
        "Write, read, hash, list and delete one object of 64 KiB. The exit status is 1 when something fails. "
        "`broker_check` runs the whole conformance suite. Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        outcome = brokers.test(broker.pk, Who())
        self.report(options, outcome, trial.words_of(outcome))
        if not outcome.ok:
            raise CommandError(f"{broker.name} does not work: {outcome.steps[-1].detail}")
