"""The raw objects of a broker."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.models import Broker
from console import browse


class Command(JsonCommand):
    help = (
        "List the raw objects of a broker with size, date, kind, and the files that each belongs to. Kinds: ours, "
        "metadata (marker, epoch, snapshots), orphan (named by us, unknown here), unmanaged (not named by us). "
        "With --json one document per line, so that a listing of any length streams."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--prefix", default="", help="only names that begin so")
        parser.add_argument("--kind", choices=browse.KINDS, default="")
        parser.add_argument("--limit", type=int, help="end after so many")

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        entries = browse.walk(broker, prefix=options["prefix"], kind=options["kind"])
        try:
            for entry in islice(entries, options["limit"]):
                if options["json"]:
                    self.stdout.write(json.dumps(browse.as_dict(entry), default=str))
                else:
                    self.stdout.write(browse.words_of(entry))
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
