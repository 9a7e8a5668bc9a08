"""The bench's client against a real web server: it must see every wrong byte, or the bench measures nothing."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench import client

pytestmark = pytest.mark.only_on("sqlite")

DATA = bytes(range(256)) * 1024


class Handler(BaseHTTPRequestHandler):
    """Keeps what is put; serves it whole, in ranges, and as a chunked list. `/wrong/` flips the first byte."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(201)

    def do_DELETE(self) -> None:
        del self.files[self.path]
        self.answer(204)

    def do_GET(self) -> None:
        if self.path.endswith("/"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for name in self.files:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(name), name.encode()))
            self.wfile.write(b"0\r\n\r\n")
            return
        body = self.files[self.path.replace("/wrong/", "/d/")]
        if "/wrong/" in self.path:
            body = bytes([body[0] ^ 1]) + body[1:]
        if given := self.headers.get("Range"):
            first, last = map(int, given.removeprefix("bytes=").split("-"))
            self.answer(206, body[first : last + 1])
        else:
            self.answer(200, body)


@pytest.fixture
def where(tmp_path: Path) -> Iterator[dict[str, Any]]:
    Handler.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    source = tmp_path / "source"
    source.write_bytes(DATA)
    yield {"host": "127.0.0.1", "port": server.server_address[1], "file": str(source), "size": len(DATA)}
    server.shutdown()
    thread.join()
    server.server_close()


def ask(method: str, path: str, **more: str) -> dict[str, Any]:
    return {"method": method, "path": path, **more}


def test_it_uploads_the_file_with_what_goes_around_it(where: dict[str, Any]) -> None:
    put = ask("PUT", "/d/{name}", prefix="<{name}>", suffix="</{name}>")
    assert client.upload({**where, "ask": put, "names": ["x", "y"]})["seconds"] > 0
    assert Handler.files == {f"/d/{n}": f"<{n}>".encode() + DATA + f"</{n}>".encode() for n in "xy"}


def test_it_compares_a_download(where: dict[str, Any]) -> None:
    Handler.files["/d/x"] = DATA
    job = {**where, "ask": ask("GET", "/d/{name}"), "name": "x", "sha256": hashlib.sha256(DATA).hexdigest()}
    assert 0 < client.download(job)["first"] <= client.download(job)["seconds"] + 1
    with pytest.raises(client.WrongAnswer, match="wrong bytes"):
        client.download({**job, "ask": ask("GET", "/wrong/{name}")})
    with pytest.raises(client.WrongAnswer, match="bytes instead of"):
        client.download({**job, "size": 5})


def test_it_compares_every_range(where: dict[str, Any]) -> None:
    Handler.files["/d/x"] = DATA
    Handler.files["/d/z"] = b"\xff" * len(DATA)
    job = {**where, "ask": ask("GET", "/d/{name}"), "name": "x", "length": 1000, "count": 5, "seed": 1}
    found = client.ranges(job)
    assert len(found["firsts"]) == len(found["wholes"]) == 5
    with pytest.raises(client.WrongAnswer):
        client.ranges({**job, "name": "z"})


def test_it_creates_reads_lists_and_deletes_small_files(where: dict[str, Any]) -> None:
    job = {
        **where, "put": ask("PUT", "/d/{name}"), "get": ask("GET", "/d/{name}"), "list": ask("GET", "/d/"),
        "delete": ask("DELETE", "/d/{name}"), "count": 30, "length": 100, "clients": 4, "seed": 1, "limit": 60,
    }  # fmt: skip
    found = client.small(job)
    assert found["files"] == 30 and all(found[step] > 0 for step in ("create", "read", "list", "delete"))
    assert Handler.files == {}
    with pytest.raises(client.WrongAnswer, match="read: wrong bytes"):
        client.small({**job, "get": ask("GET", "/wrong/{name}")})


def test_a_step_begins_nothing_after_its_time(where: dict[str, Any]) -> None:
    one = ask("PUT", "/d/{name}")
    job = {
        **where,
        "put": one,
        "get": one,
        "list": ask("GET", "/d/"),
        "delete": one,
        "count": 9,
        "length": 100,
    }
    assert client.small({**job, "clients": 2, "seed": 1, "limit": 0})["files"] == 0
    assert Handler.files == {}
