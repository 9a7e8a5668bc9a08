"""Which process holds an upload, and whether it is surely gone.

A holder is `host/boot/namespace/pid/start`: the machine, its boot, the pid namespace, the process and when it
started. Gone is only what this machine can prove; of other machines it knows nothing, their uploads expire by time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path

_PROC = Path("/proc")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _machine() -> str:
    identity = f"{socket.gethostname()} {_read(Path('/etc/machine-id'))}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _boot() -> str:
    return _read(_PROC / "sys/kernel/random/boot_id")


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When the process started, in ticks since the boot; "" when there is none, or no /proc."""
    stat = _read(_PROC / str(pid) / "stat")
    # The command's name, in parentheses, may contain anything.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


@functools.lru_cache(maxsize=2)
def _of(pid: int) -> str:
    return "/".join((_machine(), _boot(), _namespace(), str(pid), _start(pid)))


def current() -> str:
    """This process, as an upload's holder."""
    return _of(os.getpid())


def gone(holder: str) -> bool:
    """Whether the process that held the upload surely no longer runs."""
    parts = holder.split("/")
    if len(parts) != 5:
        return False
    machine, boot, namespace, pid, start = parts
    own_machine, own_boot, own_namespace, _own_pid, own_start = current().split("/")
    if machine != own_machine or not boot or not start or not own_start:
        return False
    if boot != own_boot:
        return True
    return namespace == own_namespace and _start(int(pid)) != start
