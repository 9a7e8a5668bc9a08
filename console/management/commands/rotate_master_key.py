"""Wrap everything with a new master key."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.keyring import KeyringError
from console import rotation


class Command(JsonCommand):
    help = (
        "Wrap all content keys and credentials with the newest master key; touches no object on any broker. First "
        "add the key (python -m cloudstore.secretfile --add-master-key, or CLOUDSTORE_MASTER_KEYS) and start "
        "CloudStore anew. May be interrupted and run again."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--add",
            action="store_true",
            help="only add a new key to the secrets' file; then start CloudStore anew",
        )
        parser.add_argument("--dry-run", action="store_true", help="only say which keys are needed")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            report = rotation.rotate(dry_run=options["dry_run"], tell=lambda words: self.stderr.write(words))
        except KeyringError as error:
            raise CommandError(
                f"{error}. What is wrapped with it waits; configure that key beside the new one and run this again"
            ) from None
        self.report(options, report, rotation.words_of(report, options["dry_run"]))
