import sys
from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from vfs import fsck


class Command(JsonCommand):
    help = "Name every violation of the invariants. The exit status is 1 when there is one. Mends nothing."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--full", action="store_true", help="also re-read every object on every broker")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = fsck.check(full=options["full"])
        words = "\n".join(map(str, findings)) or "everything is as it should be"
        data = {"findings": [{"code": f.code, "detail": f.detail} for f in findings]}
        self.report(options, data, words)
        if findings:
            sys.exit(1)
