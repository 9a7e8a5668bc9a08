"""`manage.py init`: makes what CloudStore needs to run; changes nothing that is there."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from brokers.models import Broker
from brokers.services import add_broker

ADMIN = "admin"
LOCAL_BROKERS = (("Local A", "local-a", "a"), ("Local B", "local-b", "b"))
ONE_DISK = (
    "Two local brokers, Local A and Local B, hold your files. They are two folders on one disk: that protects\n"
    "from damage or deletion in one of them, but not from the death of the disk. Add brokers elsewhere and\n"
    "keep a copy of the secrets' file before you trust CloudStore with the only copy of anything."
)


class Command(BaseCommand):
    help = "Database, static files, two local brokers and an administrator, each only when it is missing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.add_argument("--no-brokers", action="store_true", help="add no local brokers")

    def handle(self, *args: Any, **options: Any) -> None:
        self.plain = not options["json"]
        report = {
            "migrated": self._migrate(),
            "static_files_collected": self._collect_static(),
            "brokers_added": [] if options["no_brokers"] else self._add_brokers(),
        }
        self._add_admin(report)

    def _migrate(self) -> bool:
        from django.db import connection
        from django.db.migrations.executor import MigrationExecutor

        executor = MigrationExecutor(connection)
        due = bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
        if due:
            call_command("migrate", interactive=False, verbosity=0)
            self._say("The database is up to date.")
        return due

    def _collect_static(self) -> bool:
        """Collects static files anew when one of them changed since the last time."""
        stamp = Path(settings.STATIC_ROOT) / ".collected"
        print_ = static_fingerprint()
        if stamp.is_file() and stamp.read_text() == print_:
            return False
        call_command("collectstatic", interactive=False, verbosity=0, clear=True)
        stamp.write_text(print_)
        return True

    def _add_brokers(self) -> list[str]:
        """The two local brokers of a first start; none once there is any broker."""
        if Broker.objects.exists():
            return []
        for name, domain, folder in LOCAL_BROKERS:
            root = settings.CLOUDSTORE_DATA / "brokers" / folder
            add_broker(name=name, driver="local", domain=domain, options={"root": str(root)})
        self._say(ONE_DISK)
        return [name for name, _, _ in LOCAL_BROKERS]

    def _add_admin(self, report: dict[str, Any]) -> None:
        """The administrator of a first start. The password is printed before the commit: one that was lost
        between the two would lock the operator out."""
        users = get_user_model().objects
        with transaction.atomic():
            if not users.exists():
                password = secrets.token_urlsafe(15)
                users.create_superuser(username=ADMIN, email="", password=password)
                report["admin"] = {"username": ADMIN, "password": password}
                self._say(f"Sign in with this account; its password is not shown again.\n  user: {ADMIN}")
                self._say(f"  password: {password}")
            if not self.plain:
                self.stdout.write(json.dumps(report))
            self.stdout.flush()

    def _say(self, text: str) -> None:
        if self.plain:
            self.stdout.write(text)


def static_fingerprint() -> str:
    """Changes with any static file's path, size or time, and with Django's version."""
    digest = hashlib.sha256(django.__version__.encode())
    for finder in get_finders():
        for path, storage in finder.list([]):
            info = Path(storage.path(path)).stat()
            digest.update(f"\0{path}\0{info.st_size}\0{info.st_mtime_ns}".encode())
    return digest.hexdigest()
