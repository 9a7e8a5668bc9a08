from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from replication import policy


class Command(JsonCommand):
    help = "Show the rules for copies, or change those that are given; effective at once."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--copies", type=int, help="copies of every segment, on distinct domains")
        parser.add_argument("--ack-copies", type=int, help="verified copies before an upload is acknowledged")
        degraded = parser.add_mutually_exclusive_group()
        degraded.add_argument(
            "--allow-degraded",
            action="store_const",
            const=True,
            dest="allow_degraded",
            help="take uploads with fewer copies while fewer domains are healthy",
        )
        degraded.add_argument(
            "--refuse-degraded", action="store_const", const=False, dest="allow_degraded", help="refuse them"
        )
        parser.add_argument("--scrub-days", type=int, help="every stored byte is re-read within so many days")

    def handle(self, *args: Any, **options: Any) -> None:
        given = {name: options[name] for name in policy.CHANGEABLE if options[name] is not None}
        try:
            rules = policy.change(**given) if given else policy.current()
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from None
        words = (
            f"{rules.copies} copies, acknowledged after {policy.acknowledged_after(rules.copies, rules)}; "
            f"degraded uploads are {'taken' if rules.allow_degraded else 'refused'}; "
            f"every byte is re-read within {rules.scrub_days} days"
        )
        self.report(options, {name: getattr(rules, name) for name in policy.CHANGEABLE}, words)
