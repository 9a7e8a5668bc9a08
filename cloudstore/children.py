"""Child processes of the supervisor, and the guard that ends them when the supervisor itself is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence

BACK_OFF = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_SECONDS = 60.0  # who lived this long starts again without waiting
LONGEST_LINE = 64 * 1024


def kill_group(group: int, number: int) -> bool:
    """Signals a whole process group; False when it has no process any more."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


class Child:
    """One supervised command: its process in a group of its own, its output, and when to start it again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        patience: float,
        env: Mapping[str, str] | None = None,
        mute: str = "\0",
    ) -> None:
        self.name = name
        self.command = list(command)
        self.patience = patience  # seconds that it may take to end
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self.mute = mute  # lines with this in them are not passed on
        self.process: subprocess.Popen[bytes] | None = None
        self.ends = 0  # in a row, each before it was steady
        self.start_at = 0.0
        self._started = 0.0
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def output(self) -> int:
        """The descriptor of its output, standard and error together."""
        return self._running().stdout.fileno()  # type: ignore[union-attr]

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self.process

    def start(self) -> None:
        """Starts the command in its own process group, so that Ctrl-C in a terminal does not reach it."""
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.env,
            process_group=0,
        )
        os.set_blocking(self.output, False)

    def lines(self) -> tuple[list[str], bool]:
        """The whole lines that arrived, and whether more can come."""
        try:
            data = os.read(self.output, LONGEST_LINE)
        except BlockingIOError:
            return [], True
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) >= LONGEST_LINE:
            whole, self._rest = [*whole, self._rest] if self._rest else whole, b""
        return self._words(whole), bool(data)

    def last_lines(self) -> list[str]:
        """What is left of the output after the end."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output, LONGEST_LINE):
                self._rest += data
        found, self._rest = self._rest.splitlines(), b""
        return self._words(found)

    def _words(self, lines: list[bytes]) -> list[str]:
        texts = (line.decode("utf-8", "replace").rstrip() for line in lines)
        return [text for text in texts if self.mute not in text]

    def reap(self) -> str | None:
        """How the process ended, or None while it lives. Whatever it left behind in its group is killed: a
        new start must not find an old process on its port. Plans the next start."""
        if self.process is None or self.process.poll() is None:
            return None
        kill_group(self.pid, signal.SIGKILL)
        now = time.monotonic()
        self.ends = 1 if now - self._started >= STEADY_SECONDS else self.ends + 1
        self.start_at = now + BACK_OFF[min(self.ends, len(BACK_OFF)) - 1]
        code = self.process.returncode
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None


class Guard:
    """A tiny process that outlives the supervisor's death by `kill -9` and then ends its children.

    It holds the reading end of a pipe whose writing end only the supervisor has: end of file means that the
    supervisor is gone. It inherits the lock on the data folder and so keeps it until the last child is gone.
    """

    def __init__(self, keep: int, patience: float = 10.0) -> None:
        self._keep = keep
        self._patience = patience
        self.pid = 0
        self._pipe = -1

    def start(self, groups: Iterable[int] = ()) -> None:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._watch(read_end)
            finally:
                os._exit(0)
        os.close(read_end)
        if self._pipe >= 0:
            os.close(self._pipe)
        self.pid, self._pipe = pid, write_end
        for group in groups:
            self.tell("+", group)

    def tell(self, sign: str, group: int) -> None:
        """`+` a group to end with the supervisor, `-` one that has ended."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, f"{sign}{group}\n".encode())

    def died(self) -> bool:
        """Whether the guard's own process ended (it is reaped here)."""
        return bool(self.pid) and os.waitpid(self.pid, os.WNOHANG)[0] == self.pid

    def dismiss(self) -> None:
        os.close(self._pipe)
        os.waitpid(self.pid, 0)

    def _watch(self, read_end: int) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        first, last = sorted((read_end, self._keep))
        os.closerange(0, first)
        os.closerange(first + 1, last)
        os.closerange(last + 1, 1024)
        groups: set[int] = set()
        with os.fdopen(read_end) as lines:
            for line in lines:
                (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + self._patience
            groups = {group for group in groups if kill_group(group, number)}
            while groups and time.monotonic() < deadline:
                time.sleep(0.05)
                groups = {group for group in groups if kill_group(group, 0)}
