"""The case `slow`: what readers notice of one slow broker among three."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench import results
from bench.cases import RANGE, Bench
from bench.product import CloudStore

SECONDS = 2.0
BROKERS = ("a", "b", "c")
WARM_UP = 20
# p99 wants many more runs of the request than a median does.
TIMES = 5


class CloudStoreOnThree(CloudStore):
    """The product with three brokers on three domains, of which one can be made slow."""

    name = "cloudstore-three"
    title = "CloudStore on three brokers"

    def start(self) -> None:
        self.env["DJANGO_SETTINGS_MODULE"] = "bench.apps.slow_settings"
        super().start()
        for broker in BROKERS:
            root = self.place(broker)
            place = ["--driver", "slow", "--domain", f"domain-{broker}", "--option", f"root={root}"]
            self.manage("broker_add", f"Slow {broker}", *place)
        for broker in ("Local A", "Local B"):
            self.manage("broker_set", broker, "--disable")

    def place(self, broker: str) -> Path:
        return self.folder / "data" / "brokers" / f"slow-{broker}"

    def delay(self, broker: str, seconds: float) -> None:
        """Every call of this broker waits so long from now on."""
        path = self.place(broker).with_suffix(".slow")
        fresh = path.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(path)

    def reads(self) -> Counter[str]:
        """How often each of the three was read since the start."""
        counts = {broker: self.place(broker).with_suffix(".reads") for broker in BROKERS}
        return Counter({broker: path.stat().st_size for broker, path in counts.items() if path.exists()})


def slow(bench: Bench) -> None:
    """Random ranges while one of three brokers takes 2 s for each call, beside the same ranges before."""
    peer = CloudStoreOnThree(bench.source.parent / CloudStoreOnThree.name, Path(), bench.database_url)
    try:
        peer.start()
        bench.make_folder(peer, "big")
        for number in range(bench.plan.runs):
            # Another file each time: its segments lie on other pairs of brokers.
            name = f"big-{number}.bin"
            bench.client(peer, "upload", ask=peer.put("big"), file=str(bench.source), names=[name])
            measure(bench, peer, name, number)
    finally:
        peer.stop()


def measure(bench: Bench, peer: CloudStoreOnThree, name: str, number: int) -> None:
    def read(count: int, seed: int) -> tuple[list[float], Counter[str]]:
        before = peer.reads()
        found = bench.client(
            peer, "ranges", ask=peer.get("big"), name=name, file=str(bench.source), size=bench.plan.size,
            length=RANGE, count=count, seed=seed,
        )  # fmt: skip
        return found["wholes"], peer.reads() - before

    count = bench.plan.ranges * TIMES
    read(WARM_UP, 1000 + number)
    healthy, reads_healthy = read(count, number)
    # The one that serves most of the reads: of another less would be noticed.
    favourite = max(reads_healthy, key=lambda broker: reads_healthy[broker])
    peer.delay(favourite, SECONDS)
    try:
        worst, _reads = read(WARM_UP, 2000 + number)
        slow_times, reads_slow = read(count, number)
    finally:
        peer.delay(favourite, 0.0)
    for state, times in (("healthy", healthy), ("slow", slow_times)):
        for percent in (50, 99):
            value = results.percentile(times, percent) * 1000
            bench.recorder.add("slow", peer.name, f"{state}_p{percent}_ms", value)
    bench.recorder.add("slow", peer.name, "worst_while_warming_ms", max(worst) * 1000)
    ratio = results.percentile(slow_times, 99) / results.percentile(healthy, 99)
    bench.recorder.add("slow", peer.name, "p99_ratio", ratio)
    bench.recorder.add("slow", peer.name, "more_requests", reads_slow.total() / reads_healthy.total() - 1)
