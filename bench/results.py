"""What was measured, and what it means: medians, ratios, the targets, tables for terminal and documentation."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<!-- bench: written by command, do not edit -->", "<!-- bench: end -->"
STEPS = ("create", "read", "list", "delete")
Medians = dict[str, dict[str, dict[str, float]]]


@dataclass
class Recorder:
    """Every single run, and who was left out of a case and why."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    out: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, case: str, peer: str, metric: str, value: float) -> None:
        self.runs.append({"case": case, "peer": peer, "metric": metric, "value": round(value, 4)})
        sys.stderr.write(f"  {case:9} {peer:18} {metric:24} {value:10.2f}\n")
        sys.stderr.flush()

    def leave_out(self, case: str, peer: str, why: str) -> None:
        self.out.setdefault(case, {})[peer] = why
        sys.stderr.write(f"  {case:9} {peer:18} LEFT OUT: {why}\n")
        sys.stderr.flush()

    def is_out(self, case: str, peer: str) -> bool:
        return peer in self.out.get(case, {}) or peer in self.out.get("start", {})


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def medians(runs: Sequence[dict[str, Any]]) -> Medians:
    """case -> peer -> metric -> the median of its runs; for peaks of memory the highest."""
    collected: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        collected.setdefault((run["case"], run["peer"], run["metric"]), []).append(run["value"])
    found: Medians = {}
    for (case, peer, metric), values in collected.items():
        value = max(values) if "peak" in metric else statistics.median(values)
        found.setdefault(case, {}).setdefault(peer, {})[metric] = round(value, 4)
    return found


@dataclass(frozen=True)
class Target:
    """One thing that the product shall reach; `measured` is None when its case or a peer was not measured."""

    text: str
    limit: float
    at_most: bool
    measured: float | None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


def ratio(found: Medians, case: str, metric: str, ours: str, theirs: str) -> float | None:
    """Ours / theirs, or None where one of them was not measured."""
    own = found.get(case, {}).get(ours, {}).get(metric)
    other = found.get(case, {}).get(theirs, {}).get(metric)
    return round(own / other, 3) if own is not None and other else None


def small_ratio(found: Medians, step: str, ours: str, theirs: str) -> tuple[float | None, str]:
    """The worst ratio over the numbers of clients, and all of them in words."""
    metrics = [m for m in found.get("small", {}).get(ours, {}) if m.startswith(f"{step}_")]
    each = {m.split("_")[1]: ratio(found, "small", m, ours, theirs) for m in metrics}
    known = {clients: value for clients, value in each.items() if value is not None}
    words = ", ".join(f"{clients}: {value:.2f}" for clients, value in known.items())
    return (min(known.values()) if known else None), words


def targets(found: Medians) -> list[Target]:
    """Like is compared with like: a peer that does not wait for the disk with CloudStore that does not either."""
    crypt, ours, unsynced = "rclone-crypt", "cloudstore", "cloudstore-nosync"

    def least(text: str, limit: float, case: str, metric: str, mine: str, theirs: str) -> Target:
        return Target(text, limit, False, ratio(found, case, metric, mine, theirs))

    rows = [
        least("upload / rclone crypt over union (no fsync)", 4.0, "upload", "mb_per_s", unsynced, crypt),
        least("upload / two plain copies (no fsync)", 0.5, "upload", "mb_per_s", unsynced, "plain"),
        least("upload / two plain copies (fdatasync)", 0.6, "upload", "mb_per_s", ours, "plain-sync"),
        least("download / rclone crypt over union", 2.5, "download", "mb_per_s", ours, crypt),
        least("download / nginx sendfile", 0.7, "download", "mb_per_s", ours, "nginx"),
        Target("random 64 KiB range, p50 / rclone crypt's", 0.5, True,
               ratio(found, "range", "range_p50_ms", ours, crypt)),
    ]  # fmt: skip
    for step in STEPS:
        worst, words = small_ratio(found, step, unsynced, crypt)
        text = f"small files, {step} / rclone crypt (no fsync), worst of all clients"
        rows.append(Target(text, 1.0, False, worst, words))
    three = found.get("slow", {}).get("cloudstore-three", {})
    rows.append(
        Target("one of three brokers 2 s slow: p99 of ranges / healthy", 1.5, True, three.get("p99_ratio"))
    )
    rows.append(Target("the same: further requests, as a part", 0.05, True, three.get("more_requests")))
    peak = found.get("memory", {}).get(ours, {}).get("web_worker_peak_rss_mib")
    rows.append(Target("web worker, 8 parallel uploads, peak RSS in MiB", 250.0, True, peak))
    return rows


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """A table; first column to the left, the others to the right."""
    if markdown:
        lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


Column = tuple[str, str, int]
BIG: list[Column] = [
    ("MB/s", "mb_per_s", 0),
    ("CPU s/GB", "cpu_s_per_gb", 2),
    ("peak RSS MiB", "peak_rss_mib", 0),
]
COLUMNS: dict[str, list[Column]] = {
    "upload": BIG,
    "download": BIG,
    "range": [
        ("first byte p50 ms", "first_byte_p50_ms", 2),
        ("p95", "first_byte_p95_ms", 2),
        ("whole p50 ms", "range_p50_ms", 2),
        ("p95 ", "range_p95_ms", 2),
    ],
    "memory": [
        ("web worker peak RSS MiB", "web_worker_peak_rss_mib", 0),
        ("MB/s, all together", "mb_per_s", 0),
    ],
    "repair": [("scrub MB/s", "scrub_mb_per_s", 0), ("repair MB/s", "repair_mb_per_s", 0)],
    "slow": [
        ("healthy p50 ms", "healthy_p50_ms", 2),
        ("p99", "healthy_p99_ms", 2),
        ("one slow p50 ms", "slow_p50_ms", 2),
        ("p99 ", "slow_p99_ms", 2),
        ("worst while warming up, ms", "worst_while_warming_ms", 0),
    ],
}


def headings(plan: dict[str, Any]) -> dict[str, str]:
    size = f"{plan['size'] // 2**20} MiB"
    return {
        "upload": f"Upload of {size} by HTTP, one client",
        "download": f"Download of {size} by HTTP, one client, from the page cache",
        "range": f"Random 64 KiB ranges of a file of {size}, one client",
        "small": f"{plan['files']} files of 10 KiB, operations (of lists: entries) per second, by clients",
        "memory": f"8 uploads of {size} at the same time",
        "slow": "Random 64 KiB ranges while one of three brokers takes 2 s for each call, one client",
        "repair": "Scrub (every copy re-read and hashed) and repair (a third copy of everything)",
    }


def tables(report: dict[str, Any], *, markdown: bool = False) -> str:
    """All cases that were measured, the targets, and who was left out."""
    found: Medians = report["medians"]
    titles: dict[str, str] = report["titles"]
    parts = []
    for case, heading in headings(report["plan"]).items():
        if case not in found:
            continue
        parts.append(("### " if markdown else "") + heading)
        if case == "small":
            parts.append(small_table(found, titles, markdown))
            continue
        columns = COLUMNS[case]
        rows = [
            [titles.get(peer, peer), *(number(values.get(metric), digits) for _, metric, digits in columns)]
            for peer, values in found[case].items()
        ]
        parts.append(grid(["", *(name for name, _, _ in columns)], rows, markdown=markdown))
    parts.append(("### " if markdown else "") + "Targets")
    parts.append(target_table(found, markdown))
    for case, peers in report["left_out"].items():
        parts += [
            f"Left out of {case}: {titles.get(p, p)}: {why.splitlines()[0]}" for p, why in peers.items()
        ]
    return "\n\n".join(parts)


def small_table(found: Medians, titles: dict[str, str], markdown: bool) -> str:
    metrics = list(dict.fromkeys(m for v in found["small"].values() for m in v if m.endswith("_per_s")))
    clients = list(dict.fromkeys(m.split("_")[1] for m in metrics))
    head = ["", *(f"{step} x{n}" for step in STEPS for n in clients), "CPU ms/file"]
    rows = []
    for peer, values in found["small"].items():
        rates = [number(values.get(f"{step}_{n}_per_s")) for step in STEPS for n in clients]
        spent = max((value for metric, value in values.items() if metric.startswith("cpu_ms_")), default=None)
        rows.append([titles.get(peer, peer), *rates, number(spent, 1)])
    cut = []
    for peer, values in found["small"].items():
        fewer = {m.removeprefix("files_"): v for m, v in values.items() if m.startswith("files_")}
        if fewer:
            each = ", ".join(f"{count:.0f} with {n}" for n, count in fewer.items())
            cut.append(f"Cut short, so fewer files by clients: {titles.get(peer, peer)}: {each}")
    return "\n\n".join([grid(head, rows, markdown=markdown), *cut])


def target_table(found: Medians, markdown: bool) -> str:
    words = {True: "yes", False: "NO", None: "not measured"}
    rows = [
        [
            t.text,
            ("<= " if t.at_most else ">= ") + f"{t.limit:g}",
            number(t.measured, 2),
            words[t.met],
            t.note,
        ]
        for t in targets(found)
    ]
    return grid(["target", "wanted", "measured", "met", "by clients"], rows, markdown=markdown)


def summary(report: dict[str, Any]) -> str:
    """The dated part of docs/performance.md, without its markers."""
    facts = report["machine"]
    machine = (
        f"{facts['cores']} cores ({facts['processor']}), {facts['memory_bytes'] / 2**30:.0f} GiB of memory, "
        f"Linux {facts['kernel']}, {facts['file_system']}, disk {facts['disk_mb_per_s']:.0f} MB/s "
        f"(256 MiB with one fdatasync), Python {facts['python']}, {report['database']}, commit {facts['commit']}"
    )
    quick = "" if not report["quick"] else " A quick run: sizes are small, figures are rough."
    return (
        f"Measured on {report['date'][:10]} with `{report['command']}`: {machine}.{quick}\n\n"
        f"{tables(report, markdown=True)}"
    )


def replace_between(text: str, new: str) -> str:
    """The document with what is between the markers replaced. Raises ValueError without exactly one pair."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError("the document needs the bench's two markers, once each")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{rest.partition(END)[2]}"


def strict_failures(found: Medians, say: Callable[[str], object]) -> int:
    """How many targets were missed or not measured; says which."""
    missed = [target for target in targets(found) if not target.met]
    for target in missed:
        say(f"not met: {target.text}")
    return len(missed)
