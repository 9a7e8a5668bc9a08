"""The cases. Each takes the running peers in turns, run by run (A B C, A B C), and records every single run.

Before each run everything dirty is written out (sync), so that no run pays for another's pages; what is read lies in
the page cache for all. Times are taken in the client's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import results
from bench.peers import ROOT, Ask, Nginx, Peer, PlainSynced
from bench.processes import CannotMeasure, cpu_seconds, peaks, reset_peaks
from bench.product import CloudStore, CloudStoreUnsynced

CLIENT_SECONDS = 900
RANGE = 64 * 1024
SMALL = 10 * 1024
PARALLEL = 8
FORM = "cloudstore-form"  # CloudStore without fsync again, by the door that a browser's form takes
STEP_SECONDS = (
    8.0  # after which a step with small files begins nothing new, so that one slow peer stays bounded
)


@dataclass
class Plan:
    """How much is measured."""

    size: int
    runs: int
    short_runs: int  # of cases that take a second
    ranges: int
    files: int
    clients: tuple[int, ...]


FULL = Plan(size=1024**3, runs=3, short_runs=5, ranges=300, files=1000, clients=(1, 8, 32))
QUICK = Plan(size=256 * 1024**2, runs=3, short_runs=3, ranges=100, files=200, clients=(1, 8, 32))


@dataclass
class Bench:
    """The state of one measurement: what is sent, who is measured, what was found."""

    plan: Plan
    source: Path
    sha256: str
    peers: list[Peer]
    recorder: results.Recorder
    database_url: str = ""
    placed: dict[str, str] = field(default_factory=dict)  # peer -> the name of its big file

    def client(self, peer: Peer, kind: str, **job: Any) -> dict[str, Any]:
        """One job in a client process; -> its answer. Raises CannotMeasure."""
        text = json.dumps({"kind": kind, "host": "127.0.0.1", "port": peer.port, **job})
        done = subprocess.run(
            [sys.executable, "-m", "bench.client"],
            input=text,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=False,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise CannotMeasure(f"the client failed: {done.stderr[-800:]}") from None
        if "error" in answer:
            raise CannotMeasure(answer["error"])
        return answer

    def ask(self, peer: Peer, ask: Ask, name: str = "", wanted: Iterable[int] = range(200, 300)) -> str:
        answer = self.client(peer, "ask", ask=ask, name=name)
        if answer["status"] not in wanted:
            raise CannotMeasure(f"{ask['method']} {ask['path']}: {answer['status']} {answer['body'][:300]}")
        return str(answer["body"])

    def make_folder(self, peer: Peer, folder: str) -> None:
        if ask := peer.make_folder(folder):
            peer.folder_made(folder, self.ask(peer, ask, wanted={*range(200, 300), 405, 409}))

    def in_turns(self, case: str, runs: int, peers: list[Peer], work: Any) -> None:
        """`work(peer, number)` for every peer, run by run; a peer that fails is left out from there on."""
        for number in range(runs):
            for peer in peers:
                if self.recorder.is_out(case, peer.name):
                    continue
                os.sync()
                try:
                    work(peer, number)
                except (CannotMeasure, subprocess.TimeoutExpired) as error:
                    self.recorder.leave_out(case, peer.name, str(error))

    def used(self, case: str, peer: Peer, cpu: float, bytes_moved: int, shown_as: str = "") -> None:
        """Records what the peer's processes used since `cpu` and the last reset of the peaks."""
        pids, name = peer.pids(), shown_as or peer.name
        self.recorder.add(case, name, "cpu_s_per_gb", (cpu_seconds(pids) - cpu) / (bytes_moved / 1e9))
        self.recorder.add(case, name, "peak_rss_mib", sum(peaks(pids).values()) / 2**20)


def upload(bench: Bench) -> None:
    """The big file, one client; afterwards each peer keeps one of them for the next cases."""
    size = bench.plan.size
    makers = [peer for peer in bench.peers if not isinstance(peer, Nginx)]
    for peer in makers:
        bench.make_folder(peer, "big")

    def one(peer: Peer, number: int) -> None:
        send(bench, peer, peer.put("big"), f"big-{number}.bin", peer.name)
        if isinstance(peer, CloudStoreUnsynced):
            send(bench, peer, peer.form("big"), f"form-{number}.bin", FORM)

    copies = [Copies("cp", bench.source), Copies("cp-sync", bench.source)]
    for number in range(bench.plan.runs):
        bench.in_turns("upload", 1, makers, lambda peer, _, number=number: one(peer, number))
        for copy in copies:
            os.sync()
            bench.recorder.add("upload", copy.name, "mb_per_s", size / copy.seconds() / 1e6)


def send(bench: Bench, peer: Peer, ask: Ask, name: str, shown_as: str) -> None:
    """One upload with what it used; then the peer's earlier big file goes."""
    os.sync()
    pids = peer.pids()
    reset_peaks(pids)
    before = cpu_seconds(pids)
    found = bench.client(peer, "upload", ask=ask, file=str(bench.source), names=[name])
    bench.recorder.add("upload", shown_as, "mb_per_s", bench.plan.size / found["seconds"] / 1e6)
    bench.used("upload", peer, before, bench.plan.size, shown_as)
    os.sync()
    forget_big(bench, peer)
    bench.placed[peer.name] = name


def forget_big(bench: Bench, peer: Peer) -> None:
    """Deletes the peer's big file and frees its space; not timed."""
    if name := bench.placed.pop(peer.name, None):
        bench.ask(peer, peer.delete("big"), name)
        peer.tidy()


class Copies:
    """`cp` twice, the limit of the disk and the page cache; `cp-sync` waits for the disk."""

    def __init__(self, name: str, source: Path) -> None:
        self.name = name
        self.source = source

    def seconds(self) -> float:
        targets = [self.source.with_name(f"copy-{part}") for part in "ab"]
        started = time.perf_counter()
        for target in targets:
            subprocess.run(["cp", "--reflink=never", str(self.source), str(target)], check=True)
        if self.name == "cp-sync":
            for target in targets:
                with target.open("rb") as file:
                    os.fdatasync(file.fileno())
        found = time.perf_counter() - started
        for target in targets:
            target.unlink()
        return found


def place(bench: Bench, case: str) -> list[Peer]:
    """Sees to it that every peer that serves downloads has the big file; verifies it, which warms it too."""
    ready = []
    for peer in bench.peers:
        if isinstance(peer, PlainSynced | CloudStoreUnsynced) or bench.recorder.is_out("upload", peer.name):
            continue
        try:
            if peer.name not in bench.placed:
                if isinstance(peer, Nginx):
                    peer.place(bench.source, "big", "big.bin")
                else:
                    bench.make_folder(peer, "big")
                    job = {"ask": peer.put("big"), "file": str(bench.source), "names": ["big.bin"]}
                    bench.client(peer, "upload", **job)
                bench.placed[peer.name] = "big.bin"
                os.sync()
            download_once(bench, peer, sha256=bench.sha256)
            ready.append(peer)
        except CannotMeasure as error:
            bench.recorder.leave_out(case, peer.name, str(error))
    return ready


def download_once(bench: Bench, peer: Peer, **more: Any) -> dict[str, Any]:
    job = {"ask": peer.get("big"), "name": bench.placed[peer.name], "size": bench.plan.size, **more}
    return bench.client(peer, "download", **job)


def download(bench: Bench) -> None:
    """The big file, one client, from the page cache."""

    def one(peer: Peer, _: int) -> None:
        pids = peer.pids()
        reset_peaks(pids)
        before = cpu_seconds(pids)
        found = download_once(bench, peer)
        bench.recorder.add("download", peer.name, "mb_per_s", bench.plan.size / found["seconds"] / 1e6)
        bench.used("download", peer, before, bench.plan.size)

    bench.in_turns("download", bench.plan.short_runs, place(bench, "download"), one)


def ranges(bench: Bench) -> None:
    """Random ranges of 64 KiB of the big file, one client, one after the other."""

    def one(peer: Peer, number: int) -> None:
        found = bench.client(
            peer,
            "ranges",
            ask=peer.get("big"),
            name=bench.placed[peer.name],
            file=str(bench.source),
            size=bench.plan.size,
            length=RANGE,
            count=bench.plan.ranges,
            seed=number,
            statuses=[200, 206],
        )
        for key, values in (("first_byte", found["firsts"]), ("range", found["wholes"])):
            for percent in (50, 95):
                value = results.percentile(values, percent) * 1000
                bench.recorder.add("range", peer.name, f"{key}_p{percent}_ms", value)

    ready = [peer for peer in place(bench, "range") if peer.ranges]
    bench.in_turns("range", bench.plan.short_runs, ready, one)


def small(bench: Bench) -> None:
    """Files of 10 KiB created, read, listed and deleted, with 1, 8 and 32 clients."""
    makers = [peer for peer in bench.peers if peer.small_files and not isinstance(peer, Nginx)]
    for clients in bench.plan.clients:

        def one(peer: Peer, number: int, clients: int = clients) -> None:
            folder = f"small-{clients}-{number}"
            bench.make_folder(peer, folder)
            before = cpu_seconds(peer.pids())
            found = bench.client(
                peer,
                "small",
                put=peer.put(folder),
                get=peer.get(folder),
                list=peer.list(folder),
                delete=peer.delete(folder),
                count=bench.plan.files,
                length=SMALL,
                clients=clients,
                seed=number,
                limit=STEP_SECONDS,
            )
            for step in results.STEPS:
                bench.recorder.add("small", peer.name, f"{step}_{clients}_per_s", found[step])
            spent = cpu_seconds(peer.pids()) - before
            bench.recorder.add("small", peer.name, f"cpu_ms_{clients}", spent * 1000 / max(1, found["files"]))
            if found["files"] < bench.plan.files:
                bench.recorder.add("small", peer.name, f"files_{clients}", found["files"])

        bench.in_turns("small", bench.plan.runs, makers, one)


def memory(bench: Bench) -> None:
    """Eight uploads of the big file at the same time: the peak of CloudStore's web worker."""
    for peer in bench.peers:
        if type(peer) is not CloudStore:
            continue
        bench.make_folder(peer, "many")
        peer.processes.stop()  # what earlier cases left in the memory of the process is not of these uploads
        peer.serve()
        os.sync()
        pids = peer.web_pids()
        reset_peaks(pids)
        names = [f"many-{number}.bin" for number in range(PARALLEL)]
        found = bench.client(peer, "upload", ask=peer.put("many"), file=str(bench.source), names=names)
        bench.recorder.add("memory", peer.name, "web_worker_peak_rss_mib", max(peaks(pids).values()) / 2**20)
        moved = bench.plan.size * PARALLEL
        bench.recorder.add("memory", peer.name, "mb_per_s", moved / found["seconds"] / 1e6)
        for name in names:
            bench.ask(peer, peer.delete("many"), name)
        peer.tidy()


def repair(bench: Bench) -> None:
    """`manage.py scrub --all`, and `manage.py reconcile` after the copies were set from 2 to 3."""
    for peer in bench.peers:
        if type(peer) is not CloudStore:
            continue
        bench.placed.setdefault(peer.name, "")
        if not bench.placed[peer.name]:
            bench.make_folder(peer, "big")
            job = {"ask": peer.put("big"), "file": str(bench.source), "names": ["big.bin"]}
            bench.client(peer, "upload", **job)
            bench.placed[peer.name] = "big.bin"
        peer.processes.stop()  # no worker shall do the work first
        try:
            third = [
                "--driver",
                "local",
                "--domain",
                "local-c",
                "--option",
                f"root={peer.folder}/data/brokers/c",
            ]
            peer.manage("broker_add", "Local C", *third)
            os.sync()
            for _ in range(bench.plan.runs):
                seconds, report = peer.timed("scrub", "--all")
                bench.recorder.add("repair", peer.name, "scrub_mb_per_s", report["bytes"] / seconds / 1e6)
            peer.manage("policy", "--copies", "3")
            os.sync()
            seconds, report = peer.timed("reconcile")
            if not report["copied"]:
                raise CannotMeasure("reconcile copied nothing")
            bench.recorder.add("repair", peer.name, "repair_mb_per_s", bench.plan.size / seconds / 1e6)
        except CannotMeasure as error:
            bench.recorder.leave_out("repair", peer.name, str(error))


CASES = {
    "upload": upload,
    "download": download,
    "range": ranges,
    "small": small,
    "memory": memory,
    "repair": repair,
}
