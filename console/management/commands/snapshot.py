"""Make, list and drop snapshots of the metadata."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from console.snapshot import make
from replication import snapshots, vault
from replication.models import Snapshot


def as_dict(snapshot: Snapshot) -> dict[str, Any]:
    copies = snapshot.copies.select_related("broker").order_by("broker__name")
    return {
        "id": str(snapshot.pk),
        "number": snapshot.number,
        "state": snapshot.state,
        "created_at": snapshot.created_at.isoformat(),
        "rows": snapshot.rows,
        "bytes": snapshot.size,
        "parts": snapshot.parts,
        "master_keys": snapshot.master_keys,
        "brokers": [copy.broker.name for copy in copies if copy.verified_at is not None],
    }


def as_line(snapshot: Snapshot) -> str:
    said = as_dict(snapshot)
    where = ", ".join(said["brokers"]) or "no broker"
    alone = (
        "" if len(said["brokers"]) >= vault.LEAST_COPIES else " (ONE COPY ONLY)" if said["brokers"] else ""
    )
    return (
        f"{snapshot.number:>8}  {snapshot.created_at:%Y-%m-%d %H:%M:%S}  {snapshot.state:9} {snapshot.rows} rows, "
        f"{snapshot.size} bytes on {where}{alone}"
    )


class Command(JsonCommand):
    help = "Put a sealed snapshot of all metadata on at least two brokers, and drop those no longer kept."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--list", action="store_true", help="list the snapshots; make none")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            rows = list(Snapshot.objects.all())
            words = "\n".join(map(as_line, rows)) or "no snapshots yet; make one with `manage.py snapshot`"
            self.report(options, [as_dict(row) for row in rows], words)
            return
        try:
            made = make()
        except vault.SnapshotRefused as error:
            raise CommandError(str(error)) from None
        dropped = snapshots.retain()
        self.report(
            options, {**as_dict(made), "dropped": dropped}, f"{as_line(made)}; {dropped} older dropped"
        )
