"""Import files of others, which lie at a broker, into a user's drive."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from accounts.models import User
from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.models import Broker
from console import imports, jobs
from console.jobs import JobRefused
from console.models import Job
from console.operations import Who
from vfs.errors import VfsError


class Command(JsonCommand):
    help = (
        "Bring the objects of a broker that CloudStore has not stored into a user's drive; they stay at the broker as "
        "they are. The workers do it; --wait does it here. May be interrupted: `manage.py jobs` shows how far it is, "
        "and nothing is brought in twice. Audited."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("broker")
        parser.add_argument("user")
        parser.add_argument("--prefix", default="", help="only objects whose name begins so")
        parser.add_argument("--folder", default="/", help="where in the drive, e.g. /imported")
        parser.add_argument(
            "--conflict",
            choices=[str(value) for value in Job.Conflict.values],
            default=str(Job.Conflict.KEEP_BOTH),
            help="when there is a file of that name (default: %(default)s, as 'name (2)')",
        )
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--dry-run", action="store_true", help="only count the objects")
        what.add_argument("--wait", action="store_true", help="work here, and tell each object")

    def handle(self, *args: Any, **options: Any) -> None:
        broker = Broker.objects.filter(name=options["broker"]).first()
        if broker is None:
            raise CommandError(f"there is no broker {options['broker']!r}")
        owner = User.objects.filter(username=options["user"]).first()
        if owner is None:
            raise CommandError(f"there is no user {options['user']!r}")
        try:
            if options["dry_run"]:
                count, size = imports.preview(broker.pk, options["prefix"])
                words = f"{count} objects ({size} bytes) would be looked at"
                self.report(options, {"objects_there": count, "bytes_there": size}, words)
                return
            job = imports.start(
                broker.pk,
                owner,
                Who(),
                prefix=options["prefix"],
                folder=options["folder"],
                conflict=options["conflict"],
            )
        except (JobRefused, BrokerError, VfsError) as error:
            raise CommandError(f"{error.code}: {error}") from None
        if options["wait"]:
            job = jobs.run(job.pk, tell=lambda words: self.stderr.write(words)) or job
        now = jobs.progress(job)
        self.report(options, asdict(now), jobs.words_of(now))
