"""Obtain a Dropbox refresh token, and put it where it belongs."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers import dropbox_connect
from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.models import Broker
from brokers.present import as_dict, as_line

VARIABLE = "CLOUDSTORE_SECRET_APP_SECRET"


class Command(JsonCommand):
    help = (
        "Walk through connecting a Dropbox app: asks for its key and secret, prints an address to open, and takes the "
        "code that Dropbox shows there. Questions go to the error output, answers come from the terminal or, a line "
        f"each, from standard input; the secret also from the variable {VARIABLE}."
    )

    def add_options(self, parser: CommandParser) -> None:
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--add", metavar="NAME", help="connect a new broker")
        where.add_argument("--broker", metavar="NAME", help="give a broker that there is a new token")
        where.add_argument(
            "--show-token", action="store_true", help="print the token, for broker_add on another machine"
        )
        parser.add_argument("--domain", help="failure domain of the new broker, e.g. dropbox")
        parser.add_argument("--folder", default="", help="folder of the new broker inside the app's folder")
        parser.add_argument("--weight", type=float, default=1.0)
        parser.add_argument("--adopt", action="store_true", help="take over a place of a removed broker")
        parser.add_argument("--app-key")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["add"] and not options["domain"]:
            raise CommandError("--add needs --domain")
        if options["add"] and Broker.objects.filter(name=options["add"].strip()).exists():
            raise CommandError(f"there is a broker {options['add']!r} already: use --broker")
        broker = self._broker(options["broker"])
        kept = " (empty: as it is)" if broker else ""
        key = options["app_key"]
        if key is None:
            key = self._ask(f"App key{kept}: ")
        secret = os.environ.get(VARIABLE)
        if secret is None:
            secret = self._ask(f"App secret{kept or ' (empty: none)'}: ", hidden=True)
        try:
            step = dropbox_connect.begin(key, secret, broker)
            self.stderr.write(f"Open this address, press Allow, and copy the code:\n\n{step.address}\n")
            step = dropbox_connect.exchange(step, self._ask("Code: ", hidden=True))
            if options["show_token"]:
                self._show(options, step)
                return
            if broker is not None:
                saved = dropbox_connect.give(step, broker.pk)
            else:
                saved = dropbox_connect.add(
                    step,
                    options["add"],
                    options["domain"],
                    folder=options["folder"],
                    weight=options["weight"],
                    adopt=options["adopt"],
                )
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
        self.report(options, as_dict(saved), as_line(saved))

    def _broker(self, name: str | None) -> Broker | None:
        if name is None:
            return None
        found = Broker.objects.filter(name=name).first()
        if found is None:
            raise CommandError(f"there is no broker {name!r}")
        return found

    def _show(self, options: dict[str, Any], step: dropbox_connect.Step) -> None:
        words = (
            f"refresh token: {step.refresh_token}\n\n"
            "Keep it like a password. Then, with the token in CLOUDSTORE_SECRET_REFRESH_TOKEN:\n\n"
            f"manage.py broker_add NAME --driver dropbox --domain DOMAIN --option app_key={step.app_key} "
            "--secret refresh_token"
        )
        self.report(options, {"app_key": step.app_key, "refresh_token": step.refresh_token}, words)

    def _ask(self, question: str, hidden: bool = False) -> str:
        if hidden and sys.stdin.isatty():
            return getpass.getpass(question)
        self.stderr.write(question, ending="")
        self.stderr.flush()
        answer = sys.stdin.readline()
        if not answer:
            raise CommandError(f"no answer to: {question.strip()}")
        return answer.strip()
