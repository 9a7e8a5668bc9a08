"""Delete chosen objects of ours that no row knows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.models import Broker
from console import brokers
from console.operations import Who
from replication.models import Orphan


class Command(JsonCommand):
    help = (
        "Delete orphans on a broker now instead of waiting for the daily scan: named by us, known to no row, seen by "
        "two scans apart, older than CLOUDSTORE_ORPHAN_AGE, never while deletion is locked, never a last copy. Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument(
            "locators", nargs="*", metavar="OBJECT", help="as `browse --kind orphan` shows them"
        )
        parser.add_argument(
            "--all", action="store_true", help="every orphan of the broker that a scan has noted"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only say what would be deleted, and why not"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        if bool(options["locators"]) == options["all"]:
            raise CommandError("name objects, or give --all")
        locators = options["locators"] or list(
            Orphan.objects.filter(broker=broker).order_by("pk").values_list("locator", flat=True)
        )
        outcomes = brokers.delete_orphans(broker.pk, locators, Who(), dry_run=options["dry_run"])
        verb = "would be deleted" if options["dry_run"] else "deleted"
        words = [
            f"{o.locator}: {verb if o.deleted else f'left alone ({o.refused}): {o.detail}'}" for o in outcomes
        ]
        self.report(options, [asdict(o) for o in outcomes], "\n".join(words) or "there are no orphans")
