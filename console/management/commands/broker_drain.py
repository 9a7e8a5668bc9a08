"""Drain a broker: move everything on it to the others."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.models import Broker
from console import operations
from console.operations import Who
from replication import collect, drain, reconcile
from replication.drain import Progress


class Command(JsonCommand):
    help = (
        "Drain a broker: it takes no new copies, is read from, and everything on it is copied to the others, "
        "verified, and then deleted. The workers do it; --wait works here until it is done. May be interrupted."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--dry-run", action="store_true", help="only say what there is to move")
        what.add_argument("--status", action="store_true", help="only say how far it is")
        what.add_argument("--undo", action="store_true", help="use the broker like the others again")
        what.add_argument("--wait", action="store_true", help="move and delete here, and tell the progress")

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        if options["dry_run"] or options["status"]:
            progress = drain.progress(broker.pk)
        elif options["undo"]:
            progress = operations.undo_drain(broker.pk, Who())
        else:
            progress = operations.begin_drain(broker.pk, Who())
            if options["wait"]:
                progress = self._wait(broker.pk, progress)
        self.report(options, progress, drain.words_of(progress))

    def _wait(self, broker_id: int, progress: Progress) -> Progress:
        """Work until the broker is empty, or until a pass of everything due has brought no change."""
        while not progress.empty:
            report = reconcile.sweep(seconds=10)
            gone = collect.collect().objects
            before, progress = progress, drain.progress(broker_id)
            self.stderr.write(drain.words_of(progress))
            if not (report.actions or gone) and before.objects == progress.objects:
                break
        return progress
