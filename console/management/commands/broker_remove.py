"""Remove a broker."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.models import Broker
from console import operations
from console.operations import Removal, Who, as_dict
from replication.removal import RemovalRefused


class Command(JsonCommand):
    help = (
        "Remove a broker that holds no needed copy (drain it first) and leave nothing of ours at its place. "
        "--force NAME removes it whatever it holds, and says what is lost. Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--dry-run", action="store_true", help="only say what stands against it")
        parser.add_argument(
            "--leave-objects", action="store_true", help="touch nothing at the place, as when it is gone"
        )
        parser.add_argument(
            "--force", metavar="NAME", help="the broker's name once more: lose what is on it alone"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        if options["dry_run"]:
            result = operations.look_at_removal(broker.pk)
        else:
            try:
                if options["force"] is not None:
                    result = operations.remove_by_force(broker.pk, options["force"], Who())
                else:
                    result = operations.remove(broker.pk, Who(), leave_objects=options["leave_objects"])
            except (RemovalRefused, BrokerError) as error:
                if error.code == "copies_needed":
                    self.stderr.write(words_of(operations.look_at_removal(broker.pk)))
                raise CommandError(f"{error.code}: {error}") from None
        self.report(options, as_dict(result), words_of(result))


def words_of(result: Removal) -> str:
    words = f"{result.broker}: {'removed' if result.removed else 'not removed'}"
    if result.needed:
        words += f"; {result.needed} needed copies ({result.bytes} bytes) of {result.contents} contents"
        words += "".join(f"\nhas a copy here: {name}" for name in result.files)
    if result.contents_only_here:
        words += f"\n{result.contents_only_here} contents have no whole copy elsewhere"
        words += "".join(f"\nonly here: {name}" for name in result.lost)
    if result.left_there:
        words += f"\n{result.left_there} objects stay at the place"
    return f"{words}\n{result.refused}" if result.refused else words
