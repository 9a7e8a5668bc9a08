"""What a provider's failures must be called, for every driver that speaks HTTP, through its real SDK.

class TestFaults(FaultTable):
    @pytest.fixture
    def server(self): ...      # a FaultServer
    @pytest.fixture
    def broker(self, server):  # the driver, connected to it

    def say(self, status, headers):      # the same in the provider's words, where these are not plain HTTP
        return Answer(status, b'{"error": ...}', headers)
    differs = {"409": Corrupt, ("416", "put"): Misconfigured}   # where the provider means something else
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from brokers.errors import (
    BrokerError,
    NotFound,
    OutOfSpace,
    RangeError,
    RateLimited,
    Timeout,
    Unauthorized,
    Unavailable,
)
from tests.servers.faults import Answer

CALLS: dict[str, Callable[[Any], object]] = {
    "get": lambda b: b.download_file("x"),
    "range": lambda b: b.download_file("x", 5, 10),
    "put": lambda b: b.upload_file(b"bytes", "x"),
    "stat": lambda b: b.stat_file("x"),
    "delete": lambda b: b.delete_file("x"),
    "list": lambda b: list(b.list_files()),
    "probe": lambda b: b.probe(),
    "prepare": lambda b: b.prepare(),
}
# Of these alone a 404 may be about the object.
ABOUT_AN_OBJECT = frozenset({"get", "range", "stat", "delete"})
Kinds = type[BrokerError] | tuple[type[BrokerError], ...]
FAULTS: dict[str, Kinds] = {
    "401": Unauthorized,
    "403": Unauthorized,
    "404": BrokerError,
    "409": Unavailable,
    "416": (RangeError, Unavailable),
    "429": RateLimited,
    "500": Unavailable,
    "503": (RateLimited, Unavailable),
    "504": (Timeout, Unavailable),
    "507": OutOfSpace,
    "reset": Unavailable,
    "garbage": Unavailable,
    "short": Unavailable,
}
# Where an answer has no body that matters it cannot be short.
PAIRS = [(f, c) for f in FAULTS for c in CALLS if f != "short" or c in ("get", "range")]
RETRY_AFTER = 7


class FaultTable:
    """Subclass as `Test...` with fixtures `server` and `broker`."""

    # fault, or (fault, call) -> what it is with this provider; None: the call does not fail of it.
    differs: ClassVar[Mapping[str | tuple[str, str], Kinds | None]] = {}
    # Calls that ask this provider nothing.
    silent: ClassVar[frozenset[str]] = frozenset()
    # A text that the answers carry and no error may show.
    canary: ClassVar[str] = "canary-in-the-answer"

    def say(self, status: int, headers: dict[str, str]) -> Answer:
        """A failure in the provider's words."""
        return Answer(status, self.canary.encode(), {"Content-Type": "text/plain", **headers})

    def answer(self, fault: str) -> Answer:
        """The answer that makes the fault."""
        if fault == "short":
            return Answer(200, b"part", special="short")
        if not fault.isdecimal():
            return Answer(special=fault)
        return self.say(int(fault), {"Retry-After": str(RETRY_AFTER)} if fault == "429" else {})

    @pytest.mark.parametrize(("fault", "call"), PAIRS)
    def test_a_fault_has_its_name(self, server, broker, fault, call):
        if call in self.silent:
            CALLS[call](broker)
            assert not server.requests
            return
        server.answers = [self.answer(fault)]
        expected = self.differs.get((fault, call), self.differs.get(fault, FAULTS[fault]))
        try:
            CALLS[call](broker)
        except BrokerError as error:
            raised: BrokerError | None = error
        else:
            raised = None
        assert server.requests, "the fault reached nobody"
        if fault == "404" and call == "delete" and raised is None:
            return  # what is not there is deleted
        if fault != "404" or call not in ABOUT_AN_OBJECT:
            assert not isinstance(raised, NotFound), "an outage looks like absence"
        if expected is None:
            assert raised is None
            return
        assert isinstance(raised, expected), f"{fault} at {call} is {raised!r}"
        assert self.canary not in f"{raised} {raised!r}", "quotes what the provider said"
        if isinstance(raised, RateLimited) and fault == "429":
            assert raised.retry_after == RETRY_AFTER

    def test_no_outage_is_retried_below_the_layers(self, server, broker):
        server.answers = [self.say(500, {})]
        with pytest.raises(BrokerError):
            broker.download_file("x")
        assert len(server.requests) == 1
