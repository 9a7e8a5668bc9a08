"""kill -9 of everything while twenty clients upload: nothing acknowledged is lost, and no hand is needed.

The product runs as a user runs it: supervisor, web, worker, beat and queue as real processes. The victims and
the moments are drawn from a fixed seed; a moment is a number of uploads begun, so that each falls among them.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ledger import (
    KIB,
    MIB,
    Client,
    Ledger,
    answers,
    at_rest,
    findings,
    noise,
    state,
    until,
)
from tests.servers.product import Product, child_pids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEED = 20261
CLIENTS = 20
# Two small, a middle one; some clients a large one as well.
UPLOADS = 3
# A kill waits until so many are between their connection and their answer.
LEAST_UNDER_WAY = 4
# What each round kills: one, or several at their own moments.
ROUNDS: tuple[tuple[str, ...], ...] = (
    ("web process",),
    ("worker", "queue"),
    ("web",),
    ("web process", "beat", "worker process"),
    ("everything",),
    ("queue and its files", "web process"),
    ("flush", "worker"),
    ("web", "beat", "queue"),
    ("web process", "worker", "flush"),
    ("everything",),
)


@pytest.fixture
def running() -> Iterator[Product]:
    product = Product(
        CLOUDSTORE_HEALTH_INTERVAL="5",
        CLOUDSTORE_BLANK_DWELL="5",
        CLOUDSTORE_SWEEP_INTERVAL="3",
        CLOUDSTORE_REPAIR_LEASE="10",
    )
    try:
        yield product.start()
    finally:
        product.close()


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Killer:
    """Kills by the name of a victim, and keeps what the product said before each new start."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.said: list[str] = []
        self.kills = 0

    def strike(self, victim: str) -> None:
        self.kills += 1
        name, _, part = victim.partition(" ")
        if victim == "everything":
            self._everything()
        elif victim == "flush":
            self._flush()
        elif part == "process":
            kill(child_pids(self._child(name)))
        else:
            kill([self._child(name)])
            if part:
                self._remove_queue_files()

    def _child(self, name: str) -> int:
        until(lambda: name in self.product.children(), f"{name} runs")
        return self.product.children()[name]

    def _everything(self) -> None:
        """As when the machine loses its power, and then starts again."""
        assert self.product.process is not None
        kill(self.product.processes())
        self.product.process.wait(30)
        until(lambda: not self.product.processes(), "all are dead")
        self.said += self.product.lines
        self.product.start()

    def _flush(self) -> None:
        import redis

        def flushed() -> bool:
            try:
                redis.Redis(unix_socket_path=str(self.product.data / "queue" / "valkey.sock")).flushall()
            except (redis.RedisError, OSError):
                return False
            return True

        until(flushed, "the queue is flushed")

    def _remove_queue_files(self) -> None:
        shutil.rmtree(self.product.data / "queue" / "appendonlydir", ignore_errors=True)

    def output(self) -> list[str]:
        return [*self.said, *self.product.lines]


class Round:
    """Twenty clients with a few uploads each, side by side, and the kills among them."""

    def __init__(self, number: int, ledger: Ledger, killer: Killer) -> None:
        self.number = number
        self.ledger = ledger
        self.killer = killer
        self.rng = random.Random(SEED * 1000 + number)
        self.begun = 0
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []

    def run(self, victims: tuple[str, ...]) -> None:
        threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(CLIENTS)]
        total = CLIENTS * UPLOADS
        # All clients begin their first at once: later ones fall among bodies that are under way.
        moments = sorted(self.rng.randrange(CLIENTS + 2, total * 3 // 4) for _ in victims)
        for thread in threads:
            thread.start()
        for moment, victim in zip(moments, victims, strict=True):
            until(lambda m=moment: self.begun >= m or self.errors, f"upload {moment} begins")
            until(lambda: self._busy() or self.errors, "uploads are under way")
            self.killer.strike(victim)
        for thread in threads:
            thread.join(300)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"
        if self.errors:
            raise self.errors[0]

    def _busy(self) -> bool:
        """Whether enough is under way, or as much as there will be."""
        return self.ledger.under_way >= LEAST_UNDER_WAY or self.begun == CLIENTS * UPLOADS

    def _client(self, index: int) -> None:
        rng = random.Random(SEED * 100_000 + self.number * 100 + index)
        sizes = [rng.randrange(4 * KIB, 200 * KIB) for _ in range(2)] + [rng.randrange(300 * KIB, 2 * MIB)]
        if index < 4:
            sizes[0] = rng.randrange(4 * MIB, 12 * MIB)
        if index == 4:
            sizes[0] = rng.randrange(20 * MIB, 28 * MIB)
        rng.shuffle(sizes)
        try:
            for n, size in enumerate(sizes):
                # Some write over what they, or an earlier round, wrote.
                again = self.number > 0 and rng.random() < 0.25
                name = f"kills/{index}/{self.number - again}-{n}.bin"
                # Some give up at the first failure: what they sent must leave nothing.
                patience = 0.0 if rng.random() < 0.3 else 120.0
                with self.lock:
                    self.begun += 1
                if self.ledger.put(name, noise(rng, size), tries=patience) and rng.random() < 0.5:
                    self.ledger.get(name)
        except BaseException as error:
            self.errors.append(error)


# What may be said when processes are killed: by Granian that one of its processes is gone, by Celery that the
# queue is (it even ends itself then, and is started again), and that a file which was given up is not there.
EXPECTED = re.compile(
    r"ERROR _granian: Unexpected exit from worker-1"
    r"|(WARNING|ERROR) celery\.worker\.consumer\.consumer: .*[Cc]onnect"
    r"|CRITICAL celery\.worker: Unrecoverable error: .*(ConnectionError|'hostname')"
    r"|CRITICAL celery\.worker\.request: Couldn't ack .* reason:.*ConnectionError"
    r"|ERROR celery\.beat: beat: Connection error: .* Trying again"
    r"|ERROR celery\.bootsteps: Error on stopping .*(ConnectionError|'hostname')"
    r"|ERROR celery\.(worker|concurrency)\S*: .*(SIGKILL|signal 9|WorkerLostError)"
    r"|WARNING py\.warnings: .*CPendingDeprecationWarning"
    r"|WARNING \S+: The queue cannot be reached"
    r"|WARNING django\.request: Not Found: /api/v1/files/kills/"
)
HEAD = re.compile(r"^(\w+) +\| (?:(DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: )?")
TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL|Traceback|panicked)\b")


def unexpected(lines: list[str]) -> list[str]:
    """The lines of trouble that belong to no expected record. What has no level of its own, as a traceback,
    belongs to the last record of the same process."""
    excused: dict[str, bool] = {}
    found = []
    for line in lines:
        head = HEAD.match(line)
        name = head[1] if head else ""
        if head and head[2]:
            excused[name] = bool(EXPECTED.search(line))
        if TROUBLE.search(line) and not excused.get(name, False):
            found.append(line)
    return found


def test_output_of_its_own_making_is_trouble() -> None:
    trace = "worker     | Traceback (most recent call last):"
    lost = "worker     | WARNING celery.worker.consumer.consumer: consumer: Connection to broker lost."
    assert unexpected([lost, trace]) == []
    assert unexpected([lost, "worker     | ERROR replication.reconcile: failed", trace])[1:] == [trace]
    assert unexpected([lost, trace.replace("worker", "web   ")]) != []
    assert unexpected(["web        | ERROR django.request: Internal Server Error: /x"]) != []


def test_ten_rounds_of_kills_among_twenty_uploads(running: Product) -> None:
    began = time.monotonic()
    ledger = Ledger(Client(running.port, running.token()))
    killer = Killer(running)
    for number, victims in enumerate(ROUNDS):
        Round(number, ledger, killer).run(victims)
        until(lambda: answers(ledger.client), "the web answers")
        print(f"round {number} {victims}: {time.monotonic() - began:.0f} s")
    uploads = time.monotonic() - began
    until(lambda: at_rest(running), f"it comes to rest by itself: {state(running)}", every=2.0)
    rest = time.monotonic() - began
    ledger.read_all_back()
    read = time.monotonic() - began
    print(
        f"{ledger.sent} uploads sent, {ledger.acknowledged} acknowledged, {ledger.cut} cut, "
        f"{ledger.unreachable} not taken, {ledger.refused} refused {ledger.statuses}, {killer.kills} kills, "
        f"{ledger.reads} reads; {uploads:.0f} s of rounds, at rest after {rest:.0f} s, "
        f"read back after {read:.0f} s"
    )
    assert findings(running, "--full") == []
    assert running.manage_json("quota_recount", "--dry-run")["wrong"] == []
    assert ledger.client.json("/api/v1/account")["usage"]["reserved"] == 0
    print(f"fsck and recount after {time.monotonic() - began:.0f} s")
    assert ledger.acknowledged > CLIENTS * UPLOADS * len(ROUNDS) * 0.8
    strikes = sum("web" in " ".join(victims) or "everything" in victims for victims in ROUNDS)
    assert ledger.cut >= strikes, "too little was under way when it was killed"
    given_back = [line for line in killer.output() if " is given back" in line]
    assert given_back, "no upload of a dead process was found and given back"
    bad = unexpected(killer.output())
    assert not bad, "\n".join(bad)


def broker_folder(product: Product, name: str) -> Path:
    return next(Path(r["options"]["root"]) for r in product.manage_json("broker_list") if r["name"] == name)


def objects(folder: Path) -> list[Path]:
    return [path for path in (folder / "cs").rglob("*") if path.is_file()]


def test_a_download_cut_by_a_kill_is_an_error(running: Product) -> None:
    """The client is told a length and gets less: no client takes a part for the whole."""
    ledger = Ledger(Client(running.port, running.token()))
    data = noise(random.Random(SEED), 64 * MIB)
    assert ledger.put("large.bin", data)
    for victim in ("web process", "web"):
        until(lambda: answers(ledger.client), "the web answers")
        link = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        link.request("GET", "/api/v1/files/large.bin", headers=ledger.client.headers)
        answer = link.getresponse()
        assert answer.status == 200
        got = answer.read(MIB)
        Killer(running).strike(victim)
        with pytest.raises((OSError, http.client.HTTPException)):
            while piece := answer.read1(MIB):
                got += piece
            # The end of the stream came early: `read` of the whole is what tells it.
            raise (
                http.client.IncompleteRead(got) if len(got) < len(data) else AssertionError("it was not cut")
            )
        assert data.startswith(got)
        link.close()
    until(lambda: answers(ledger.client), "the web answers")
    ledger.read_all_back()


def test_a_worker_killed_while_it_repairs(running: Product) -> None:
    """A broker comes back empty; the worker dies in the middle of filling it, twice, and the queue is flushed while
    work is due. Another worker goes on when the lease is over; at the end nothing is doubled and nothing strays."""
    ledger = Ledger(Client(running.port, running.token()))
    rng = random.Random(SEED)
    for number in range(24):
        assert ledger.put(f"repair/{number}.bin", noise(rng, rng.randrange(MIB, 3 * MIB)))
    folder, other = broker_folder(running, "Local B"), broker_folder(running, "Local A")
    wanted = len(objects(other))
    shutil.rmtree(folder)
    folder.mkdir()
    killer = Killer(running)
    for share, victim in ((4, "worker"), (2, "worker process")):
        until(lambda s=share: len(objects(folder)) >= wanted // s, "the repair is under way")
        assert len(objects(folder)) < wanted, "the repair was over before the kill"
        killer.strike(victim)
        killer.strike("flush")
    until(lambda: len(objects(folder)) >= wanted and at_rest(running), "the copies are complete", every=2.0)
    assert findings(running, "--full") == []
    assert len(objects(folder)) == len(objects(other)) == wanted
    ledger.read_all_back()
    assert running.manage_json("quota_recount", "--dry-run")["wrong"] == []
    bad = unexpected(killer.output())
    assert not bad, "\n".join(bad)
