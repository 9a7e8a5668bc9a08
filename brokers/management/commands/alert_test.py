"""Try the channels that tell of the brokers' states."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from brokers import alerts
from brokers.commands import JsonCommand


class Command(JsonCommand):
    help = "Send a test over every configured channel: CLOUDSTORE_ALERT_MAIL, CLOUDSTORE_ALERT_WEBHOOK."

    def handle(self, *args: Any, **options: Any) -> None:
        outcome = alerts.test()
        if not outcome:
            raise CommandError(
                "no channel is configured: set CLOUDSTORE_ALERT_MAIL or CLOUDSTORE_ALERT_WEBHOOK"
            )
        lines = [f"{channel}: {failure or 'sent'}" for channel, failure in outcome.items()]
        if any(outcome.values()):
            raise CommandError("; ".join(lines))
        self.report(options, dict.fromkeys(outcome, "sent"), "\n".join(lines))
