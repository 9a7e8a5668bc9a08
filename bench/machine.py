"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

RATE_BYTES = 256 * 1024 * 1024
PIECE = 8 * 1024 * 1024


def disk_rate(folder: Path, size: int = RATE_BYTES) -> float:
    """MB/s of one file of that size, written in pieces of 8 MiB and synced once at the end."""
    piece = os.urandom(PIECE)
    pieces = max(1, size // PIECE)
    path = folder / "rate"
    os.sync()
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(pieces):
            file.write(piece)
        os.fdatasync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return pieces * PIECE / seconds / 1e6


def facts(folder: Path, root: Path, size: int = RATE_BYTES) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    with Path("/proc/meminfo").open() as file:
        memory = int(file.readline().split()[1]) * 1024
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": file_system(folder),
        "disk_mb_per_s": round(disk_rate(folder, min(size, RATE_BYTES)), 1),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The type of the file system that holds the folder."""
    best = ("", "?")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if (folder == Path(mount) or Path(mount) in folder.parents) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]
