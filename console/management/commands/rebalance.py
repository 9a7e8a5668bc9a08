"""Move load between brokers in proportion to their free space."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from brokers import clock
from brokers.commands import JsonCommand
from console import operations
from console.operations import Who
from replication import collect, rebalance, reconcile
from replication.rebalance import Outlook

PAUSE = 2.0


class Command(JsonCommand):
    help = (
        "Move copies until each broker's load is in proportion to its free space and weight. The workers do it in "
        "batches, no faster than CLOUDSTORE_REBALANCE_RATE, and stop by themselves; --wait works here until then. May "
        "be interrupted."
    )

    def add_options(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--dry-run", action="store_true", help="only say what would move")
        what.add_argument("--status", action="store_true", help="only say how far it is")
        what.add_argument("--stop", action="store_true", help="end it where it is")
        what.add_argument("--wait", action="store_true", help="move and delete here, and tell the progress")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"] or options["status"]:
            outlook = rebalance.look()
        elif options["stop"]:
            outlook = operations.stop_rebalance(Who())
        else:
            outlook = operations.begin_rebalance(Who())
            if options["wait"]:
                outlook = self._wait(outlook)
        self.report(options, outlook, words_of(outlook))

    def _wait(self, outlook: Outlook) -> Outlook:
        """Work until it has ended. Between two batches, and while a broker is away, it waits."""
        while outlook.running:
            if not (reconcile.sweep(seconds=10).actions or collect.collect().objects):
                clock.sleep(PAUSE)
            outlook = rebalance.look()
            self.stderr.write(words_of(outlook))
        return outlook


def words_of(outlook: Outlook) -> str:
    state = "running" if outlook.running else "not running"
    even = "load is even" if outlook.balanced else "load is uneven"
    words = f"rebalance {state}; {even}; {outlook.moves} copies ({outlook.bytes} bytes) to move"
    if outlook.pending:
        words += f"; {outlook.pending} copies ({outlook.pending_bytes} bytes) under way"
    if outlook.seconds_left:
        words += f"; about {outlook.seconds_left} s"
    for share in outlook.shares:
        words += f"\n{share.broker}: {share.held} bytes, its part is {share.goal}"
    return f"{words}\n{outlook.blocked}" if outlook.blocked else words
