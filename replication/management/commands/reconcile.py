from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from brokers.health import poll_due
from replication import reconcile


class Command(JsonCommand):
    help = "Poll the brokers that are due, then do all copying and repair that can be done now."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--content", help="only this content (its id)")

    def handle(self, *args: Any, **options: Any) -> None:
        poll_due()
        if options["content"]:
            report = reconcile.reconcile_content(options["content"])
        else:
            report = reconcile.run_to_rest()
        words = (
            f"{report.looked_at} segments looked at: {report.copied} copied, {report.verified} verified, "
            f"{report.lost} lost, {report.doomed} dropped, {report.failed} failed"
        )
        for why, count in sorted(report.blocked.items()):
            words += f"\nwaiting: {count} segments: {why}"
        self.report(options, report, words)
