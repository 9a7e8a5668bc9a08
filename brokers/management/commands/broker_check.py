"""Poll a broker and prove its driver against the real place."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers import credentials, health
from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.keyring import KeyringError
from brokers.models import Broker, Health
from brokers.open import connect
from brokers.present import as_dict, as_line
from brokers.testing.conformance import Conformance


class Command(JsonCommand):
    help = (
        "Poll a broker, then run the conformance suite under a random prefix of its place and clean up. "
        "About 30 MB are moved each way. The exit status is 1 when something fails."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--poll-only", action="store_true", help="poll, and leave the suite out")

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["name"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['name']!r}")
        broker = health.poll(broker.pk)
        checks, left = [], []
        # Nothing is written to a place that is not surely the broker's own.
        if not options["poll_only"] and broker.enabled and broker.health == Health.ONLINE:
            try:
                secrets = tuple(credentials.open_secrets(broker).values())
                suite = Conformance(lambda: connect(broker), secrets=secrets)
                try:
                    checks = suite.run()
                finally:
                    left = suite.left
            except KeyboardInterrupt:
                for locator in left:
                    self.stderr.write(f"left there: {locator}")
                raise
            except (BrokerError, KeyringError) as error:
                raise CommandError(str(error)) from None
        words = [as_line(broker) + (f": {broker.health_detail}" if broker.health_detail else "")]
        for check in checks:
            mark = (
                "FAIL" if not check.ok else "skip" if check.skipped else "dev " if check.deviation else "ok  "
            )
            why = check.detail if not check.deviation or not check.ok else f"declared: {check.deviation}"
            words.append(f"{mark} {check.name} ({check.seconds:.2f} s) {why}".rstrip())
        words += [f"left there: {locator}" for locator in left]
        result = {"broker": as_dict(broker), "checks": [asdict(check) for check in checks], "left": left}
        self.report(options, result, "\n".join(words))
        failed = [check.name for check in checks if not check.ok]
        if failed:
            raise CommandError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
        if left:
            raise CommandError(f"{len(left)} objects of the suite could not be removed")
        if not broker.enabled or broker.health != Health.ONLINE:
            raise CommandError(f"{broker.name} is {'disabled' if not broker.enabled else broker.health}")
