import uuid
from typing import Any

from django.core.management.base import CommandParser

from brokers.commands import JsonCommand
from brokers.health import poll
from brokers.models import Broker, Health
from replication import reconcile


class Command(JsonCommand):
    help = "Poll every broker, then do all copying and repair that can be done now."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("--content", type=uuid.UUID, help="only this content (its id)")

    def handle(self, *args: Any, **options: Any) -> None:
        for broker in Broker.objects.filter(enabled=True):
            # One that comes back is believed after two good polls.
            if poll(broker.pk).health != Health.ONLINE:
                poll(broker.pk)
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
