"""What imports and adoptions do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from console import jobs
from console.jobs import JobRefused
from console.models import ImportedFile, Job
from console.operations import Who

SHOWN = 20


class Command(JsonCommand):
    help = "Show the latest jobs, or one; cancel it, go on with it, work at it here, or list its objects."

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument("id", type=int, nargs="?")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--cancel", action="store_true", help="end it where it is; what it has done stays")
        what.add_argument("--resume", action="store_true", help="go on with one that was stopped")
        what.add_argument("--run", action="store_true", help="work at it here until it ends or waits")
        what.add_argument(
            "--files",
            choices=[str(value) for value in ImportedFile.State.values],
            help="list the objects of an import that ended so",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["id"] is None:
            shown = [jobs.progress(job) for job in Job.objects.all()[:SHOWN]]
            self.report(
                options, [asdict(p) for p in shown], "\n".join(map(jobs.words_of, shown)) or "no jobs"
            )
            return
        job = Job.objects.filter(pk=options["id"]).first()
        if job is None:
            raise CommandError(f"there is no job {options['id']}")
        if options["files"]:
            rows = job.files.filter(state=options["files"]).values("name", "state", "detail", "path", "size")
            words = "\n".join(f"{row['name']}: {row['detail'] or row['path']}" for row in rows) or "none"
            self.report(options, list(rows), words)
            return
        try:
            if options["cancel"]:
                job = jobs.cancel(job.pk, Who())
            elif options["resume"]:
                job = jobs.resume(job.pk, Who())
            elif options["run"]:
                job = jobs.run(job.pk, tell=lambda words: self.stderr.write(words)) or job
        except JobRefused as error:
            raise CommandError(f"{error.code}: {error}") from None
        now = jobs.progress(job)
        self.report(options, asdict(now), jobs.words_of(now))
