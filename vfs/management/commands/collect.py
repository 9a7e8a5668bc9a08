from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from replication import collect, orphans
from vfs.upload import expire_uploads


class Command(JsonCommand):
    help = (
        "Give back uploads that nobody continues, and delete from the brokers what nothing refers to any more "
        "and whose grace is over."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--now", action="store_true", help="do not wait for the grace")
        parser.add_argument(
            "--orphans", action="store_true", help="also list the brokers for objects that no row knows"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        dry_run = options["dry_run"]
        uploads = expire_uploads(dry_run=dry_run)
        report = collect.collect(dry_run=dry_run, grace=timedelta(0) if options["now"] else None)
        data = {"uploads": uploads, **asdict(report)}
        would = "would be " if dry_run else ""
        words = (
            f"{uploads} uploads {would}given back; {report.contents} contents and {report.objects} objects "
            f"({report.bytes} bytes) {would}deleted; {report.failed} wait for their broker"
        )
        if report.still_referenced:
            words += (
                f"\n{report.still_referenced} condemned contents are still referenced: see manage.py fsck"
            )
        if options["orphans"]:
            strays = orphans.scan(dry_run=dry_run)
            data["orphans"] = asdict(strays)
            words += (
                f"\n{strays.orphans} unknown objects on {strays.brokers} brokers, {strays.deleted} deleted"
            )
            if strays.needed:
                words += f"\n{strays.needed} of them are last copies of files: see manage.py adopt"
        if report.locked:
            words += f"\nNOTHING IS DELETED: {report.locked}. See manage.py epoch_confirm --dry-run"
        self.report(options, data, words)
