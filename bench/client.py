"""The client of all measurements: a process of its own that speaks HTTP/1.1 on plain sockets.

It is meant to cost as little as can be, so that the server is what is measured: uploads go out by sendfile() from a
prepared file, downloads are received into one buffer, connections stay open. `python -m bench.client` reads one job as
JSON from standard input and prints one JSON answer; nothing but the standard library is imported.

A request is described by an *ask*: {"method", "path", "headers", "prefix", "suffix"}, where `{name}` in path, prefix
and suffix stands for the file's name, and prefix and suffix go around the body (a form's parts).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TIMEOUT = 300.0
BUFFER = 1024 * 1024


class WrongAnswer(Exception):
    """The server answered what was not asked for: the measurement is void."""


class Connection:
    """One keep-alive connection; opens again when the server closed it."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.socket: socket.socket | None = None
        self.buffer = bytearray(BUFFER)
        self.rest = b""

    def open(self) -> socket.socket:
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=TIMEOUT)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.rest = b""
        return self.socket

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def send(self, ask: dict[str, Any], name: str, body: bytes | BinaryIO = b"", more: str = "") -> None:
        """Sends a request; `body` is bytes, or a file that goes out whole."""
        link = self.open()
        prefix, suffix = (ask.get(part, "").replace("{name}", name).encode() for part in ("prefix", "suffix"))
        size = len(body) if isinstance(body, bytes) else Path(body.name).stat().st_size
        lines = [
            f"{ask['method']} {ask['path'].replace('{name}', name)} HTTP/1.1",
            f"Host: localhost:{self.address[1]}",
            *(f"{key}: {value}" for key, value in ask.get("headers", {}).items()),
        ]
        if ask["method"] in {"PUT", "POST"}:
            lines.append(f"Content-Length: {len(prefix) + size + len(suffix)}")
        head = ("\r\n".join(lines) + f"\r\n{more}\r\n").encode()
        if isinstance(body, bytes):
            link.sendall(head + prefix + body + suffix)
            return
        link.sendall(head + prefix)
        sent = link.sendfile(body, 0)
        if sent != size:
            raise WrongAnswer(f"only {sent} of {size} bytes went out")
        if suffix:
            link.sendall(suffix)

    def receive(self, keep: bool = True, digest: Any = None) -> tuple[int, bytes | int, float]:
        """-> status, body (or its length, when it is not to be kept) and the moment of the body's first byte."""
        link = self.open()
        head = self.rest
        while b"\r\n\r\n" not in head:
            part = link.recv(65536)
            if not part:
                self.close()
                raise WrongAnswer("the server closed the connection before it answered")
            head += part
        head, _, rest = head.partition(b"\r\n\r\n")
        status = int(head[9:12])
        fields = head.lower()
        if status == 100:
            self.rest = rest
            return self.receive(keep, digest)
        first = time.perf_counter() if rest else 0.0
        if b"transfer-encoding: chunked" in fields:
            body = self._chunks(link, rest)
            self._maybe_close(fields)
            return status, body if keep else len(body), first or time.perf_counter()
        found = re.search(rb"\r\ncontent-length:\s*(\d+)", fields)
        wanted = int(found[1]) if found else (0 if status in {204, 304} else -1)
        if keep:
            parts = bytearray(rest)
            while len(parts) < wanted or wanted < 0:
                part = link.recv(BUFFER)
                first = first or time.perf_counter()
                if not part:
                    break
                parts += part
            got, body = len(parts), bytes(parts)
        else:
            got = len(rest)
            if digest:
                digest.update(rest)
            view = memoryview(self.buffer)
            while got < wanted or wanted < 0:
                count = link.recv_into(view)
                first = first or time.perf_counter()
                if not count:
                    break
                if digest:
                    digest.update(view[:count])
                got += count
        if wanted >= 0 and got != wanted:
            raise WrongAnswer(f"{got} of {wanted} bytes came")
        self.rest = b""
        self._maybe_close(fields, wanted < 0)
        return status, body if keep else got, first or time.perf_counter()

    def _chunks(self, link: socket.socket, rest: bytes) -> bytes:
        """A chunked body: small here (lists), so it is collected whole."""
        data, body, at = bytearray(rest), bytearray(), 0
        while True:
            while (end := data.find(b"\r\n", at)) < 0:
                data += self._more(link)
            size = int(data[at:end].split(b";")[0], 16)
            while len(data) < end + 2 + size + 2:
                data += self._more(link)
            body += data[end + 2 : end + 2 + size]
            at = end + 2 + size + 2
            if size == 0:
                self.rest = bytes(data[at:])
                return bytes(body)

    def _more(self, link: socket.socket) -> bytes:
        part = link.recv(BUFFER)
        if not part:
            raise WrongAnswer("the connection ended within a chunked body")
        return part

    def _maybe_close(self, fields: bytes, ended: bool = False) -> None:
        if ended or b"\r\nconnection: close" in fields or fields.startswith(b"http/1.0"):
            self.close()


def check(status: int, what: str, body: Any = b"") -> None:
    if not 200 <= status < 300:
        text = body[:300].decode(errors="replace") if isinstance(body, bytes) else ""
        raise WrongAnswer(f"{what}: status {status} {text}")


def in_parallel(count: int, work: Callable[[int], None]) -> float:
    """Runs `work(0..count-1)` in threads that begin together; -> seconds until the last ended."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count + 1)

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if errors:
        raise errors[0]
    return seconds


def upload(job: dict[str, Any]) -> dict[str, Any]:
    """Sends `file` once for each of `names`, all at the same time."""

    def one(index: int) -> None:
        link = Connection(job["host"], job["port"])
        with Path(job["file"]).open("rb") as body:
            link.send(job["ask"], job["names"][index], body)
            status, text, _ = link.receive()
        link.close()
        check(status, "upload", text)

    return {"seconds": in_parallel(len(job["names"]), one)}


def download(job: dict[str, Any]) -> dict[str, Any]:
    """Receives a file of `size` bytes; with `sha256` it is compared (which costs, so never in a timed run)."""
    link = Connection(job["host"], job["port"])
    digest = hashlib.sha256() if job.get("sha256") else None
    started = time.perf_counter()
    link.send(job["ask"], job["name"])
    status, size, first = link.receive(keep=False, digest=digest)
    seconds = time.perf_counter() - started
    link.close()
    check(status, "download")
    if size != job["size"]:
        raise WrongAnswer(f"download: {size!r} bytes instead of {job['size']}")
    if digest and digest.hexdigest() != job["sha256"]:
        raise WrongAnswer("download: wrong bytes")
    return {"seconds": seconds, "first": first - started}


def ranges(job: dict[str, Any]) -> dict[str, Any]:
    """Random ranges, one after the other on one connection; each is compared with the file that was uploaded."""
    link = Connection(job["host"], job["port"])
    dice = random.Random(job["seed"])
    firsts, wholes = [], []
    with Path(job["file"]).open("rb") as source:
        for _ in range(job["count"]):
            start = dice.randrange(job["size"] - job["length"])
            more = f"Range: bytes={start}-{start + job['length'] - 1}\r\n"
            began = time.perf_counter()
            link.send(job["ask"], job["name"], more=more)
            status, body, first = link.receive()
            ended = time.perf_counter()
            source.seek(start)
            if status not in job.get("statuses", [206]) or body != source.read(job["length"]):
                raise WrongAnswer(f"range: status {status}, or wrong bytes")
            firsts.append(first - began)
            wholes.append(ended - began)
    link.close()
    return {"firsts": firsts, "wholes": wholes}


def small(job: dict[str, Any]) -> dict[str, Any]:
    """Creates, reads, lists and deletes `count` files with `clients` connections; -> operations per second of each
    step, for the list entries per second. A step begins nothing new after `limit` seconds: then `files` is less."""
    dice = random.Random(job["seed"])
    filling = dice.randbytes(job["length"] - 8)
    names = [f"file-{number:06d}.bin" for number in range(job["count"])]
    links = [Connection(job["host"], job["port"]) for _ in range(job["clients"])]
    found: dict[str, Any] = {}

    def step(key: str, number: int, work: Callable[[Connection, int], None]) -> int:
        numbers = iter(range(number))
        lock = threading.Lock()
        done = 0
        end = time.perf_counter() + job["limit"]

        def one(index: int) -> None:
            nonlocal done
            while time.perf_counter() < end:
                with lock:
                    mine = next(numbers, None)
                    if mine is None:
                        return
                    done += 1
                work(links[index], mine)

        seconds = in_parallel(job["clients"], one)
        found[key] = done / seconds
        return done

    def create(link: Connection, number: int) -> None:
        link.send(job["put"], names[number], number.to_bytes(8) + filling)
        status, body, _ = link.receive()
        check(status, "create", body)

    def read(link: Connection, number: int) -> None:
        link.send(job["get"], names[number])
        status, body, _ = link.receive()
        check(status, "read", body)
        if body != number.to_bytes(8) + filling:
            raise WrongAnswer("read: wrong bytes")

    def listing(link: Connection, number: int) -> None:
        link.send(job["list"], "")
        status, body, _ = link.receive()
        check(status, "list", body)
        seen = len(set(re.findall(rb"file-\d{6}\.bin", body if isinstance(body, bytes) else b"")))
        if seen != len(names):
            raise WrongAnswer(f"list: {seen} of {len(names)} names")

    def delete(link: Connection, number: int) -> None:
        link.send(job["delete"], names[number])
        status, body, _ = link.receive()
        check(status, "delete", body)

    del names[step("create", len(names), create) :]
    step("read", len(names), read)
    step("list", max(5, job["clients"]), listing)
    found["list"] *= len(names)
    found["files"] = len(names)
    step("delete", len(names), delete)
    for link in links:
        link.close()
    return found


def ask_once(job: dict[str, Any]) -> dict[str, Any]:
    """One request with its answer, for preparations."""
    link = Connection(job["host"], job["port"])
    link.send(job["ask"], job.get("name", ""), job.get("body", "").encode())
    status, body, _ = link.receive()
    link.close()
    return {"status": status, "body": body.decode(errors="replace") if isinstance(body, bytes) else ""}


KINDS = {"upload": upload, "download": download, "ranges": ranges, "small": small, "ask": ask_once}


def main() -> int:
    job = json.load(sys.stdin)
    try:
        print(json.dumps(KINDS[job["kind"]](job)))
    except (OSError, WrongAnswer) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
