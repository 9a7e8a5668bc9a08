"""Between the product and a real S3 server: passes requests on, and fails those that a test names.

    with S3Proxy(seaweedfs.url).running() as proxy:
        proxy.rules.append(lambda call: "drop" if call.method == "PUT" else None)

A rule sees the call and answers None (the next rule is asked; at last it is passed on), "drop" (passed on, and the
connection is closed without the answer), or an `Answer` that is given in the server's place.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from brokers.testing import faulty
from tests.servers.faults import Answer, FaultServer

_BETWEEN_TWO = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass(frozen=True)
class S3Call:
    """A request; `number` counts those of its method from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    number: int


Rule = Callable[[S3Call], Answer | str | None]


class S3Proxy(FaultServer):
    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = urlsplit(target)
        self.rules: list[Rule] = []

    def reply(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        number = sum(method == handler.command for method, _path, _headers in self.requests)
        call = S3Call(handler.command, handler.path, dict(handler.headers), body, number)
        verdict = next((v for v in (rule(call) for rule in list(self.rules)) if v is not None), None)
        if verdict is not None and faulty.on_fault is not None:
            faulty.on_fault()
        if isinstance(verdict, Answer):
            self.give(handler, verdict)
            return
        answer = self._pass_on(call)
        self.give(handler, Answer(special="reset") if verdict == "drop" else answer)

    def _pass_on(self, call: S3Call) -> Answer:
        """The signature covers the Host header, which stays as the client sent it."""
        connection = http.client.HTTPConnection(str(self._target.hostname), self._target.port, timeout=60)
        try:
            connection.putrequest(call.method, call.path, skip_host=True, skip_accept_encoding=True)
            for name, value in call.headers.items():
                if name.lower() not in _BETWEEN_TWO - {"content-length"}:
                    connection.putheader(name, value)
            connection.endheaders(call.body)
            answer = connection.getresponse()
            data = answer.read()
            headers = {n: v for n, v in answer.getheaders() if n.lower() not in _BETWEEN_TWO}
            if call.method == "HEAD" and (length := answer.getheader("Content-Length")):
                headers["Content-Length"] = length
            return Answer(answer.status, data, headers)
        finally:
            connection.close()
