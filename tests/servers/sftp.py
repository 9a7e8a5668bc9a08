"""A real SFTP server (tests/servers/sftp_process.py) over a folder that goes with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudstore.config import BASE_DIR

USER = "drive"
PASSWORD = "sftp-password-canary"


@dataclass(frozen=True)
class SftpServer:
    """Where it listens, the folder that it serves, and a driver's options for a folder below that."""

    port: int
    folder: Path

    @property
    def known_hosts(self) -> Path:
        return self.folder.parent / "known_hosts"

    @property
    def key_file(self) -> Path:
        """A private key that the server lets in."""
        return self.folder.parent / "key"

    def options(self, root: str, **more: Any) -> dict[str, str]:
        plain = {
            "host": "127.0.0.1",
            "root_path": root,
            "known_host_file": str(self.known_hosts),
            "params": {"port": self.port, "username": USER},
            **more,
        }
        return {
            "class_path": "storages.backends.sftpstorage.SFTPStorage",
            "class_options": json.dumps(plain),
            "class_secrets": json.dumps({"params": {"password": PASSWORD}}),
        }


@contextmanager
def run_sftp() -> Iterator[SftpServer]:
    """Start the server, wait until it listens, end it."""
    import paramiko

    top = Path(tempfile.mkdtemp(prefix="sftp-"))
    served = top / "served"
    served.mkdir()
    server = SftpServer(0, served)
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(server.key_file))
    arguments = [str(served), str(server.known_hosts), USER, PASSWORD, key.get_base64()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.sftp_process", *arguments],
        cwd=BASE_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # paramiko tells of each client that went away
    )
    assert process.stdin and process.stdout
    try:
        port = process.stdout.readline()
        assert port, "the SFTP server did not start"
        yield SftpServer(int(port), served)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="session")
def sftp() -> Iterator[SftpServer]:
    """One server for each test process."""
    with run_sftp() as server:
        yield server
