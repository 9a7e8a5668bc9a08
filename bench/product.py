"""CloudStore itself, as `make run` starts it: supervisor, web, worker, scheduler, queue, database, access checks."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.peers import ROOT, Ask, Peer, clean_environment, form
from bench.processes import CannotMeasure, descendants, free_ports

COMMAND_SECONDS = 900
TIMED = """
import io, json, time
from django.core.management import call_command
output, started = io.StringIO(), time.perf_counter()
call_command(*{command!r}, json=True, stdout=output)
print(json.dumps([time.perf_counter() - started, json.loads(output.getvalue())]))
"""
UNLIMITED = "from accounts.models import User; User.objects.update(quota=10**15)"


def product_variables() -> set[str]:
    """What configures the product must come from here, not from who runs the bench."""
    text = (ROOT / ".env.example").read_text()
    return set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE)) | {"ENV_FILE", "DJANGO_SETTINGS_MODULE"}


class CloudStore(Peer):
    name = "cloudstore"
    title = "CloudStore, sealed, 2 copies, fsync"
    copies = 2
    syncs = True
    seals = True

    def __init__(self, folder: Path, venv: Path, server: str = "") -> None:
        """`server` is the URL of a PostgreSQL in which it makes a database of its own; SQLite without."""
        super().__init__(folder, venv)
        (self.port,) = free_ports(1)
        ours = product_variables()
        self.folder_ids: dict[str, str] = {}
        self.env = {
            **{name: value for name, value in clean_environment().items() if name not in ours},
            "CLOUDSTORE_DATA": str(folder / "data"),
            "CLOUDSTORE_LOCAL_ROOTS": str(folder),
            "ENV_FILE": str(folder / "no.env"),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            # Nothing of the operator's clock may fall into a run.
            "CLOUDSTORE_HEALTH_INTERVAL": "3600",
        }
        self.server = server
        self.database = ""

    def _on_server(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement.encode())

    def start(self) -> None:
        if self.server:
            self.database = f"bench_{secrets.token_hex(6)}"
            self._on_server(f"CREATE DATABASE {self.database}")
            self.env["DATABASE_URL"] = urlsplit(self.server)._replace(path=self.database).geturl()
        self._python("-m", "cloudstore.secretfile")
        self.manage("init")
        # As an operator does on the console: the measured user may store more than the default quota.
        self.manage("shell", "-v", "0", "-c", UNLIMITED)
        if not self.syncs:
            for broker in ("Local A", "Local B"):
                self.manage("broker_set", broker, "--option", "sync=false")
        self.serve()
        token = self.manage("token_create", "admin").split()[-1]
        self.headers = {"Authorization": f"Bearer {token}"}

    def serve(self) -> None:
        """Starts what `make run` starts; blocks until it answers."""
        command = [sys.executable, "-m", "cloudstore.supervise", "--init"]
        self.processes.start("cloudstore", command, self.env, ROOT)
        self.processes.wait_for(self.port)
        time.sleep(2.0)  # the worker is still importing

    def stop(self) -> None:
        super().stop()
        if self.database:
            self._on_server(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
            self.database = ""

    def _python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode:
            raise CannotMeasure(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def manage(self, *arguments: str) -> str:
        """Runs `manage.py ...`; -> what it printed. Raises CannotMeasure."""
        return self._python("manage.py", *arguments)

    def web_pids(self) -> list[int]:
        """The web server's processes: Granian's main process and its worker."""
        for pid in self.pids():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"cloudstore.web" in line:
                return descendants(pid)
        raise CannotMeasure("CloudStore has no web server")

    def put(self, folder: str) -> Ask:
        return self.ask("PUT", f"/api/v1/files/{folder}/{{name}}")

    def get(self, folder: str) -> Ask:
        return self.ask("GET", f"/api/v1/files/{folder}/{{name}}")

    def delete(self, folder: str) -> Ask:
        return self.ask("DELETE", f"/api/v1/files/{folder}/{{name}}?purge=true")

    def list(self, folder: str) -> Ask:
        return self.ask("GET", f"/api/v1/files/{folder}/?limit=1000")

    def make_folder(self, folder: str) -> Ask | None:
        headers = {"Content-Type": "application/json"}
        return self.ask("POST", "/api/v1/folders", headers=headers, prefix=f'{{"path": "/{folder}"}}')

    def folder_made(self, folder: str, answer: str) -> None:
        self.folder_ids.setdefault(folder, json.loads(answer).get("id", ""))

    def form(self, folder: str) -> Ask:
        """The upload of a form, as a browser sends it."""
        return self.ask("POST", f"/api/v1/nodes/{self.folder_ids[folder]}/files", **form("file"))

    def timed(self, *command: str) -> tuple[float, dict[str, Any]]:
        """A command's seconds without the start of Python and Django, and its report."""
        answer = self.manage("shell", "-v", "0", "-c", TIMED.format(command=command))
        seconds, report = json.loads(answer.strip().splitlines()[-1])
        return seconds, report

    def tidy(self) -> None:
        self.manage("collect", "--now")


class CloudStoreUnsynced(CloudStore):
    name = "cloudstore-nosync"
    title = "CloudStore, sealed, 2 copies, no fsync"
    syncs = False
