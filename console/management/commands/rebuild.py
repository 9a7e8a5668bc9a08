"""Bring a drive back from its brokers and the master key alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser

from brokers.commands import JsonCommand
from brokers.errors import BrokerError
from brokers.keyring import KeyringError
from console import rebuild
from console.rebuild import CannotRebuild, Given, Report
from console.restore import NotEmpty


class Command(JsonCommand):
    help = (
        "Restore the newest whole snapshot of the metadata into an empty database, then bring every newer file back "
        "in lost+found. Needs the brokers and CLOUDSTORE_MASTER_KEYS. Nothing is deleted; may be run again."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--broker",
            nargs="+",
            action="append",
            default=[],
            metavar=("NAME DRIVER", "OPTION=VALUE"),
            help="a place, e.g. --broker Disk local root=/srv/disk; OPTION=env:VARIABLE takes the value from the "
            "environment (for secrets); domain=... sets the failure domain of one that the snapshot does not know",
        )
        parser.add_argument(
            "--brokers",
            type=Path,
            metavar="FILE",
            help='JSON: [{"name", "driver", "options": {...}, "domain"}]',
        )
        parser.add_argument("--list", action="store_true", help="list the snapshots; change nothing")
        parser.add_argument("--snapshot", default="", metavar="ID", help="this one (its number or id)")
        parser.add_argument(
            "--without-snapshot",
            action="store_true",
            help="bring back everything in lost+found, without names",
        )
        parser.add_argument(
            "--operator", default="", metavar="USER", help="whose lost+found (default: the first)"
        )
        parser.add_argument("--dry-run", action="store_true", help="read and verify; change nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        given = read_places(options)
        try:
            if options["list"]:
                self._list(given, options)
                return
            if not options["dry_run"]:
                call_command("migrate", interactive=False, verbosity=0)
            report = rebuild.rebuild(
                given,
                snapshot=options["snapshot"],
                without=options["without_snapshot"],
                operator=options["operator"],
                dry_run=options["dry_run"],
                tell=lambda words: self.stderr.write(words),
            )
        except (CannotRebuild, NotEmpty, KeyringError) as error:
            raise CommandError(str(error)) from None
        except BrokerError as error:
            raise CommandError(f"{error.code}: {error}") from None
        self.report(options, report.as_dict(), words_of(report, options["dry_run"]))

    def _list(self, given: list[Given], options: dict[str, Any]) -> None:
        report = Report()
        rows = rebuild.listing(given, report)
        words = [
            f"{row['number']:>8}  {row.get('created_at', '')[:19]}  "
            + (row.get("damaged") or f"{row['rows']} rows on {', '.join(row['brokers'])}")
            for row in rows
        ]
        words += [f"not reachable: {text}" for text in report.unreachable]
        data = {"snapshots": rows, "unreachable": report.unreachable}
        self.report(options, data, "\n".join(words) or "there is no snapshot on these brokers")


def words_of(report: Report, dry_run: bool) -> str:
    """The outcome for people."""
    objects = report.objects
    said = report.snapshot
    words = []
    if said:
        verb = "would be restored" if dry_run else "restored"
        words.append(
            f"{verb}: snapshot {said['number']} of {said['created_at'][:19]}, {said['rows']} rows, "
            f"{said['files']} files and folders"
        )
    words += [f"passed over: {text}" for text in report.skipped]
    words += [f"not reachable: {text}" for text in [*report.unreachable, *objects.unreachable]]
    if not dry_run or objects.objects:
        words.append(
            f"{objects.objects} objects on {objects.brokers} brokers, {objects.unknown} newer than the snapshot: "
            f"{objects.contents} files ({objects.bytes} bytes) brought back to lost+found of {report.operator or '-'}, "
            f"{objects.copies} more copies, {objects.deleted_before} of deleted files, {objects.not_ours} not of this "
            f"drive, {len(objects.incomplete)} files incomplete, {len(objects.damaged)} damaged"
        )
    words += [f"incomplete: {one['content']} ({one['bytes']} bytes are there)" for one in objects.incomplete]
    words += [f"damaged: {one['content']}" for one in objects.damaged]
    if report.password:
        words.append(f"A new operator was made.\n  user: {report.operator}\n  password: {report.password}")
    if not dry_run:
        words.append("Deletion is locked until you have looked and run: manage.py epoch_confirm")
    return "\n".join(words)


def read_places(options: dict[str, Any]) -> list[Given]:
    """The places on the command line and in the file. Raises CommandError."""
    given = [_place(words) for words in options["broker"]]
    if options["brokers"]:
        try:
            for row in json.loads(options["brokers"].read_text()):
                options_of = dict(row.get("options", {}))
                given.append(Given(row["name"], row["driver"], options_of, row.get("domain", "")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"{options['brokers']}: {type(error).__name__}: {error}") from None
    if not given:
        raise CommandError(
            "name at least one broker: --broker NAME DRIVER OPTION=VALUE ..., or --brokers FILE"
        )
    return given


def _place(words: list[str]) -> Given:
    if len(words) < 2 or "=" in words[1]:
        raise CommandError("write --broker NAME DRIVER OPTION=VALUE ...")
    name, driver, *rest = words
    values: dict[str, str] = {}
    for text in rest:
        option, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"--broker {name}: write OPTION=VALUE, not {option!r}")
        if value.startswith("env:"):
            variable = value.removeprefix("env:")
            if variable not in os.environ:
                raise CommandError(f"--broker {name}: the environment variable {variable} is not set")
            value = os.environ[variable]
        elif value == "-":
            value = sys.stdin.readline().rstrip("\r\n")
        values[option] = value
    return Given(name, driver, {n: v for n, v in values.items() if n != "domain"}, values.get("domain", ""))
