"""The product as a user runs it: secrets, preparation and supervisor, in a data folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cloudstore.config import BASE_DIR

START_SECONDS = 90.0


def product_variables() -> set[str]:
    """The variables that configure the product: what a developer has set must not reach a test's product."""
    text = (BASE_DIR / ".env.example").read_text()
    names = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    return names | {"ENV_FILE", "DJANGO_SETTINGS_MODULE"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Product:
    """A private CloudStore. `start()` blocks until it answers; `stop()` ends it by its process id.

    `url`, `data`, `password` (of the user `admin`) and `port` describe it. Extra keyword arguments are
    variables of its environment (`Product(CLOUDSTORE_HEALTH_INTERVAL="5")`). When the tests run on PostgreSQL, so
    does it, in a database of its own.
    """

    def __init__(self, data: Path | None = None, **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cs-product-", dir="/tmp"))
        self.data = data or self.folder / "data"
        self.port = free_port()
        self.password: str | None = None
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        clean = {name: value for name, value in os.environ.items() if name not in product_variables()}
        self.env = {
            **clean,
            "CLOUDSTORE_DATA": str(self.data),
            "ENV_FILE": str(self.folder / ".env"),
            "PORT": str(self.port),
            "HOST": "127.0.0.1",
            **env,
        }
        self.database: str | None = None
        if os.environ.get("DATABASE_URL", "").startswith("postgresql:") and "DATABASE_URL" not in env:
            self.database = f"product_{secrets.token_hex(6)}"
            self._postgres(f"CREATE DATABASE {self.database}")
            self.env["DATABASE_URL"] = (
                urlsplit(os.environ["DATABASE_URL"])._replace(path=self.database).geturl()
            )

    def _postgres(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def start(self, *, timeout: float = START_SECONDS) -> Product:
        """What `make run` does once the environment is there; returns when the web server answers."""
        self.spawn()
        self.wait_for("CloudStore is at ", timeout=timeout)
        return self

    def spawn(self) -> None:
        """Starts it without waiting."""
        command = [sys.executable, "-m", "cloudstore.secretfile"]
        subprocess.run(command, env=self.env, cwd=BASE_DIR, check=True, timeout=60, capture_output=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloudstore.supervise", "--init"],
            env=self.env,
            cwd=BASE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.lines.clear()
        self._news = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self.process, self._news), daemon=True).start()

    def _read(self, process: subprocess.Popen[str], news: queue.SimpleQueue[str | None]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in process.stdout:
                self.lines.append(line.rstrip("\n"))
                if found := re.fullmatch(r"\s*password: (\S+)\n", line):
                    self.password = found[1]
                news.put(line.rstrip("\n"))
        news.put(None)

    def wait_for(self, part: str, *, timeout: float = 30.0) -> str:
        """The next line of output, from where the last wait stopped, that contains `part`."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {part!r} within {timeout} s:\n{self.output}") from None
            if line is None:
                raise AssertionError(f"it ended without {part!r}:\n{self.output}")
            if part in line:
                return line

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `manage.py ...` with the product's environment."""
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(
            command, env=self.env, cwd=BASE_DIR, capture_output=True, text=True, timeout=280, check=False
        )
        if check and done.returncode:
            raise AssertionError(
                f"manage.py {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def manage_json(self, *arguments: str) -> Any:
        """The parsed output of `manage.py ... --json`."""
        return json.loads(self.manage(*arguments, "--json").stdout)

    def token(self, user: str = "admin") -> str:
        """A new API token of the user."""
        return self.manage("token_create", user).stdout.strip().splitlines()[-1]

    def children(self) -> dict[str, int]:
        """The supervised processes, by what they are: {"web": pid, "worker": pid, "beat": pid, "queue": pid}."""
        assert self.process is not None
        marks = {
            "cloudstore.web": "web",
            "\0worker\0": "worker",
            "\0beat\0": "beat",
            "valkey-server": "queue",
        }
        found = {}
        for pid in child_pids(self.process.pid):
            command = _read_proc(pid, "cmdline")
            for mark, name in marks.items():
                if mark in command:
                    found[name] = pid
        return found

    def processes(self) -> list[int]:
        """Every process that belongs to it, wherever in the tree it now is (Linux)."""
        mark = f"CLOUDSTORE_DATA={self.data}\0"
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [pid for pid in pids if pid != os.getpid() and mark in _read_proc(pid, "environ")]

    def stop(self, number: int = signal.SIGINT, *, timeout: float = 60.0) -> int | None:
        """Ends it; -> its exit code. Nothing happens when it is not running."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not end within {timeout} s:\n{self.output}") from None
        self.process = None
        return code

    def close(self) -> None:
        """Ends it and removes its files."""
        try:
            self.stop()
        finally:
            if self.database:
                self._postgres(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
                self.database = None
            shutil.rmtree(self.folder, ignore_errors=True)


def child_pids(parent: int) -> list[int]:
    text = _read_proc(parent, f"task/{parent}/children")
    return [int(pid) for pid in text.split()]


def _read_proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def product() -> Iterator[Product]:
    """A running product with nothing in it but the two local brokers and `admin`."""
    running = Product()
    try:
        yield running.start()
    finally:
        running.close()
