"""List the brokers and how they are."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from brokers.models import Broker
from brokers.present import as_dict, as_line


class Command(BaseCommand):
    help = "List the brokers, their health as of the last poll, and their room."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        brokers = list(Broker.objects.order_by("name"))
        if options["json"]:
            self.stdout.write(json.dumps([as_dict(broker) for broker in brokers], indent=2))
            return
        for broker in brokers:
            self.stdout.write(as_line(broker))
        if not brokers:
            self.stdout.write("no brokers; connect one with `manage.py broker_add`")
