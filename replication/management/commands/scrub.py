from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from replication import scrub


class Command(JsonCommand):
    help = "Re-read and hash the copies that were proven longest ago; what is damaged becomes due for repair."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--all", action="store_true", help="every copy, however recently it was proven")
        parser.add_argument("--bytes", type=int, help="at most about so many bytes")

    def handle(self, *args: Any, **options: Any) -> None:
        report = scrub.scrub(options["bytes"], everything=options["all"])
        self.report(
            options,
            report,
            f"{report.replicas} copies read ({report.bytes} bytes): {report.lost} lost, "
            f"{report.unreachable} did not answer",
        )
