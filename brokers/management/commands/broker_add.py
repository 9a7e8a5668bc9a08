"""Connect a storage provider account or folder."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from brokers.errors import BrokerError
from brokers.present import as_dict, as_line
from brokers.services import add_broker


class Command(BaseCommand):
    help = (
        "Connect a place: prepare it, mark it, poll it. Secrets: `--secret NAME=VALUE` shows in the process "
        "list; `--secret NAME` reads the environment variable CLOUDSTORE_SECRET_NAME (in capitals), `--secret "
        "NAME=-` one line of standard input."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--driver", required=True)
        parser.add_argument(
            "--domain", required=True, help="failure domain, e.g. the provider and its region"
        )
        parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
        parser.add_argument("--secret", action="append", default=[], metavar="NAME[=VALUE]")
        parser.add_argument("--weight", type=float, default=1.0)
        parser.add_argument("--adopt", action="store_true", help="take over a place of a removed broker")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        given: dict[str, str] = {}
        for text in options["option"]:
            name, equals, value = text.partition("=")
            if not equals:
                raise CommandError(f"--option {name}: write NAME=VALUE")
            given[name] = value
        for text in options["secret"]:
            name, equals, value = text.partition("=")
            given[name] = _secret(name, value if equals else None)
        try:
            broker = add_broker(
                options["name"],
                options["driver"],
                options["domain"],
                given,
                weight=options["weight"],
                adopt=options["adopt"],
            )
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
        self.stdout.write(json.dumps(as_dict(broker), indent=2) if options["json"] else as_line(broker))


def _secret(name: str, value: str | None) -> str:
    if value == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if value is not None:
        return value
    variable = f"CLOUDSTORE_SECRET_{name.upper()}"
    if variable not in os.environ:
        raise CommandError(f"--secret {name}: the environment variable {variable} is not set")
    return os.environ[variable]
