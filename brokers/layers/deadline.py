"""Ends the wait for a call that takes too long.

Python cannot stop a thread, so every call runs on a thread of the broker's own small pool: when it takes too
long the caller gets Timeout and the thread stays behind until the driver returns. When all threads are stuck
the broker answers Unavailable at once, and no caller waits for a broker that is known to hang. The threads are
daemons, so that a hung driver never keeps the process from ending.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from queue import Empty, SimpleQueue
from typing import Any

from brokers.errors import Timeout, Unavailable
from brokers.layers.call import Call, Handler

IDLE_SECONDS = 30.0
_Job = tuple["Future[Any]", Callable[[], Any]]


class Workers:
    """At most `most` daemon threads, started when needed, gone when idle; made anew after a fork."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0

    @property
    def busy(self) -> int:
        return self._busy

    def submit(self, work: Callable[[], Any]) -> Future[Any] | None:
        """Run `work` on a thread; None when every thread is busy."""
        if self._pid != os.getpid():
            self._begin()
        future: Future[Any] = Future()
        with self._lock:
            if self._busy >= self._most:
                return None
            self._busy += 1
            if self._busy > self._threads:
                self._threads += 1
                thread = threading.Thread(
                    target=self._run, args=(self._jobs,), name=f"broker {self._name}", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # the machine has no more threads
                    self._threads -= 1
                    self._busy -= 1
                    return None
        self._jobs.put((future, work))
        return future

    def _run(self, jobs: SimpleQueue[_Job | None]) -> None:
        while True:
            try:
                job = jobs.get(timeout=IDLE_SECONDS)
            except Empty:
                job = None
            if job is None:
                with self._lock:
                    # A job may have been counted in meanwhile: it needs this thread.
                    if self._busy >= self._threads:
                        continue
                    self._threads -= 1
                    return
            future, work = job
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                self._done()
                future.set_exception(error)
            else:
                self._done()
                future.set_result(result)
            del job, future, work  # hold neither bytes nor errors while idle

    def _done(self) -> None:
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._idle.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until no thread works, for at most so long: -> whether none does."""
        if self._pid != os.getpid():
            return True  # a parent's threads are not here
        with self._idle:
            return self._idle.wait_for(lambda: not self._busy, seconds)

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call."""
        if self._pid == os.getpid():
            with self._lock:
                count = self._threads
            for _ in range(count):
                self._jobs.put(None)


class Deadline:
    def __init__(self, inner: Handler, threads: int, name: str) -> None:
        self._inner = inner
        self.workers = Workers(threads, name)

    def __call__(self, call: Call) -> Any:
        future = self.workers.submit(lambda: self._inner(call))
        if future is None:
            raise Unavailable(f"{self.workers.busy} calls to this broker hang")
        try:
            return future.result(call.timeout)
        except FutureTimeout:
            # A driver's own TimeoutError is the same class since Python 3.11; adapt has turned it into Timeout.
            raise Timeout(f"no answer within {call.timeout:g} s") from None
