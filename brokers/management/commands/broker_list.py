"""List the brokers and how they are."""

from __future__ import annotations

from typing import Any

from brokers.commands import JsonCommand
from brokers.models import Broker
from brokers.present import as_dict, as_line


class Command(JsonCommand):
    help = "List the brokers, their states as of the last poll, their room and limits."

    def handle(self, *args: Any, **options: Any) -> None:
        brokers = list(Broker.objects.order_by("name"))
        words = "\n".join(map(as_line, brokers)) or "no brokers; connect one with `manage.py broker_add`"
        self.report(options, [as_dict(broker) for broker in brokers], words)
