"""`make bench`: starts everything on loopback in a temporary folder, measures, ends everything, prints a table."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import cases as all_cases
from bench import results
from bench.cases import FORM, FULL, QUICK, Bench
from bench.machine import facts
from bench.peers import PEERS, ROOT, Peer
from bench.processes import CannotMeasure, cpu_seconds
from bench.product import CloudStore, CloudStoreUnsynced
from bench.slow import CloudStoreOnThree, slow

DOCUMENT = ROOT / "docs" / "performance.md"
IDLE_SECONDS = 2
RESULTS = ROOT / "bench" / "results"
CASES = {**all_cases.CASES, "slow": slow}
ALL: dict[str, type[Peer]] = {
    CloudStore.name: CloudStore,
    CloudStoreUnsynced.name: CloudStoreUnsynced,
    **PEERS,
}
TITLES = {
    **{name: peer.title for name, peer in ALL.items()},
    CloudStoreOnThree.name: CloudStoreOnThree.title,
    FORM: "CloudStore, the same by a browser's form",
    "cp": "cp twice",
    "cp-sync": "cp twice, fdatasync",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all when none is named"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: rough figures in two minutes")
    parser.add_argument("--only", default="", metavar="PEER,...", help=f"of {', '.join(ALL)}")
    parser.add_argument("--runs", type=int, help="runs of each peer in each case")
    parser.add_argument("--size", type=int, metavar="MIB", help="size of the big file")
    parser.add_argument("--files", type=int, help="number of small files")
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "bench", help="where all bytes go")
    parser.add_argument(
        "--database-url", default="", help="CloudStore makes its databases in this PostgreSQL"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--strict", action="store_true", help="end with 1 when a target is missed")
    parser.add_argument(
        "--summary", action="store_true", help="write the dated summary into docs/performance.md"
    )
    parser.add_argument("--from", dest="file", type=Path, help="measure nothing, take an earlier JSON result")
    parser.add_argument("--peers", type=Path, default=ROOT / "var" / "bench" / "venv", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for given, known in ((options.cases, CASES), ([n for n in options.only.split(",") if n], ALL)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return options


def prepare_source(folder: Path, size: int) -> tuple[Path, str]:
    """Random bytes, which nothing compresses or shares; freshly written, so they lie in the page cache."""
    path, digest = folder / "source.bin", hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, 2**22):
            piece = os.urandom(min(2**22, size - start))
            digest.update(piece)
            file.write(piece)
    return path, digest.hexdigest()


def start_peers(options: argparse.Namespace, folder: Path, recorder: results.Recorder) -> list[Peer]:
    wanted = [name for name in ALL if not options.only or name in options.only.split(",")]
    running: list[Peer] = []
    for name in wanted:
        kind = ALL[name]
        if issubclass(kind, CloudStore):
            peer: Peer = kind(folder / name, options.peers.absolute(), options.database_url)
        else:
            peer = kind(folder / name, options.peers.absolute())
        say(f"starting {peer.title}")
        try:
            peer.start()
            running.append(peer)
        except (CannotMeasure, OSError) as error:
            recorder.leave_out("start", name, str(error))
            peer.stop()
        except BaseException:
            for one in [*running, peer]:
                one.stop()
            raise
    return running


def idle_share(peers: list[Peer]) -> float:
    """How much of one core all servers together use while nobody asks them: they stay up beside each other."""
    before = sum(cpu_seconds(peer.pids()) for peer in peers)
    time.sleep(IDLE_SECONDS)
    return (sum(cpu_seconds(peer.pids()) for peer in peers) - before) / IDLE_SECONDS


def measure(options: argparse.Namespace, command: str) -> dict[str, Any]:
    plan = QUICK if options.quick else FULL
    if options.runs:
        plan = replace(plan, runs=options.runs, short_runs=options.runs)
    if options.size:
        plan = replace(plan, size=options.size * 2**20)
    if options.files:
        plan = replace(plan, files=options.files)
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=options.folder.absolute()))
    recorder = results.Recorder()
    peers: list[Peer] = []
    started = time.monotonic()
    took: dict[str, float] = {}
    try:
        machine = facts(folder, ROOT, plan.size)
        source, digest = prepare_source(folder, plan.size)
        peers = start_peers(options, folder, recorder)
        machine["idle_share_of_a_core"] = round(idle_share(peers), 3)
        bench = Bench(plan, source, digest, peers, recorder, options.database_url)
        for name in CASES:
            if not options.cases or name in options.cases:
                say(f"{name}: {CASES[name].__doc__}")
                began = time.monotonic()
                CASES[name](bench)
                took[name] = round(time.monotonic() - began, 1)
    finally:
        for peer in peers:
            peer.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "database": "PostgreSQL" if options.database_url else "SQLite",
        "quick": options.quick,
        "seconds": round(time.monotonic() - started, 1),
        "seconds_of_cases": took,
        "cache": "what is sent and read lies in the page cache; sync before every run",
        "machine": machine,
        "plan": asdict(plan),
        "titles": TITLES,
        "medians": results.medians(recorder.runs),
        "left_out": recorder.out,
        "runs": recorder.runs,
    }


def finish(report: dict[str, Any]) -> dict[str, Any]:
    """Adds the ratios to the medians."""
    return {**report, "targets": [{**asdict(t), "met": t.met} for t in results.targets(report["medians"])]}


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    hidden = {"--peers", str(options.peers), "--summary", options.database_url}
    visible = [part for part in arguments if part not in hidden]
    command = " ".join(["make bench", *([f'ARGS="{" ".join(visible)}"'] if visible else [])])
    if options.file:
        report = json.loads(options.file.read_text())
    else:
        report = finish(measure(options, command))
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        say(f"every single run is in {path}; all took {report['seconds']:.0f} s")
    print(results.tables(report))
    if options.summary:
        DOCUMENT.write_text(results.replace_between(DOCUMENT.read_text(), results.summary(report)))
        say(f"wrote the summary into {DOCUMENT.relative_to(ROOT)}")
    failures = results.strict_failures(report["medians"], say) if options.strict else 0
    return 1 if failures else 0


def stop_asked(*_: object) -> None:
    """Whoever ends the bench ends its servers too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop_asked)
    try:
        sys.exit(main(sys.argv[1:]))
    except CannotMeasure as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
