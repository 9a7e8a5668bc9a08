"""Servers under measurement: started on loopback, ended by pid, and what their processes used (from /proc)."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

START_SECONDS = 90.0
STOP_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class CannotMeasure(Exception):
    """A server or client failed; its text says why."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, with nobody on port + 10000 either (SeaweedFS takes that for gRPC)."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
    return found


def descendants(root: int) -> list[int]:
    """The process and all below it, by the kernel's table."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(path.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents.get(pid, [])
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of the processes, with that of their children that have ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS


def reset_peaks(pids: Sequence[int]) -> None:
    """Let VmHWM begin anew (where the kernel permits it: then peaks are of the run, not of the process's life)."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peaks(pids: Sequence[int]) -> dict[int, int]:
    """Peak resident bytes of each process."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    found[pid] = int(line.split()[1]) * 1024
    return found


class Processes:
    """Some processes that belong together, with their output in files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process.pid

    def pids(self) -> list[int]:
        return [pid for process in self.running for pid in descendants(process.pid)]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, port: int, path: str = "/") -> None:
        """Until something answers HTTP on the port. Raises CannotMeasure."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            for process in self.running:
                if process.poll() is not None:
                    logs = "\n".join(
                        log.read_text(errors="replace")[-1500:] for log in self.folder.glob("*.log")
                    )
                    raise CannotMeasure(f"a server ended with {process.returncode}:\n{logs}")
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                link.request("GET", path)
                link.getresponse().read()
                return
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
            finally:
                link.close()
        raise CannotMeasure(f"nothing answers on port {port}")

    def stop(self) -> None:
        """Ends them, and what they left, by pid."""
        everyone = self.pids()
        for process in reversed(self.running):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.running):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        roots = {process.pid for process in self.running}
        for pid in everyone:
            if pid not in roots and os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        self.running.clear()
