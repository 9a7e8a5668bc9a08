"""An HTTP server that answers what a test tells it to, for errors that no real server makes on demand."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from brokers import clock


@dataclass
class Answer:
    """One answer: a status with headers and a body, or what `special` says ("reset": close the connection with a
    reset; "garbage": bytes that are no HTTP; "hang": say nothing until released; "short": promise more bytes than
    are sent; "endless": a body that ends only when the client goes)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    special: str = ""


class FaultServer:
    """Answers every request with `answers` in turn, the last one for ever; records (method, path, headers), the
    bodies, and when each came by the product's clock."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [Answer()]
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.sent_endlessly = 0
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                outer.requests.append((self.command, self.path, dict(self.headers)))
                outer.bodies.append(body)
                outer.times.append(clock.monotonic())
                outer.reply(self, body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reply(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer one request."""
        self.give(handler, self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def give(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.close_connection = True
        if answer.special == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            return
        if answer.special == "garbage":
            handler.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            return
        if answer.special == "hang":
            self.release.wait(30)
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        promised = len(answer.body) + (100 if answer.special == "short" else 0)
        if answer.special != "endless" and "Content-Length" not in answer.headers:
            handler.send_header("Content-Length", str(promised))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if answer.special == "endless":
            self._endless(handler)
            return
        if handler.command != "HEAD":
            handler.wfile.write(answer.body)

    def _endless(self, handler: BaseHTTPRequestHandler) -> None:
        piece = bytes(65536)
        with suppress(OSError):
            while not self.release.is_set() and self.sent_endlessly < 10 << 30:
                handler.wfile.write(piece)
                self.sent_endlessly += len(piece)

    @contextmanager
    def running(self) -> Iterator[FaultServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
