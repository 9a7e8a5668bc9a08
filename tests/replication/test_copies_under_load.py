"""Copies changed 2 -> 3 -> 1 -> 2 with three brokers while uploads and downloads run: it converges, and no byte
is ever in danger on the way."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from brokers.services import add_broker
from replication import contents, policy, reconcile
from replication.collect import collect
from replication.fsck import check
from replication.models import Content, Replica
from tests.replication.kit import State, copies, load, store

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


class Watch:
    """Samples every sealed content: its copies never fall below min(what is wanted, what there was)."""

    def __init__(self) -> None:
        self.wanted = 2
        self.least_since_sample = 2
        self.seen: dict[object, int] = {}
        self.violations: list[str] = []
        self.samples = 0

    def want(self, wanted: int) -> None:
        self.wanted = wanted
        self.least_since_sample = min(self.least_since_sample, wanted)

    def sample(self) -> None:
        allowed = self.least_since_sample
        rows = Replica.objects.filter(state=State.STORED, segment__content__state=Content.State.SEALED)
        domains: dict[object, set[str]] = {}
        for segment, domain in rows.values_list("segment_id", "broker__domain"):
            domains.setdefault(segment, set()).add(domain)
        for segment, have in domains.items():
            before = self.seen.get(segment)
            if before is not None and len(have) < min(before, allowed):
                self.violations.append(
                    f"segment {segment}: {before} -> {len(have)} while {allowed} were wanted"
                )
            self.seen[segment] = len(have)
        self.violations += [f"segment {segment} has no copy" for segment in self.seen.keys() - domains.keys()]
        self.least_since_sample = min(self.wanted, allowed) if self.wanted < allowed else self.wanted
        self.samples += 1


def test_copies_change_under_load(tmp_path: Path, settings: Any) -> None:
    settings.CLOUDSTORE_TRIM_DWELL = timedelta(0)
    settings.CLOUDSTORE_LOCAL_ROOTS = [tmp_path]
    for name in "abc":
        add_broker(name, "local", f"domain-{name}", {"root": str(tmp_path / name), "sync": False})
    stop = threading.Event()
    errors: list[BaseException] = []
    files: dict[object, tuple[Content, str]] = {}
    watch = Watch()

    def forever(work: Callable[[random.Random], None], seed: int) -> threading.Thread:
        def run() -> None:
            dice = random.Random(seed)
            try:
                while not stop.is_set():
                    work(dice)
            except BaseException as error:
                errors.append(error)
                stop.set()
            finally:
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def upload(dice: random.Random) -> None:
        if len(files) >= 60:
            stop.wait(0.02)
            return
        data = os.urandom(dice.randrange(0, 400_000))
        content = store(data)
        files[content.pk] = (content, hashlib.sha256(data).hexdigest())

    def download(dice: random.Random) -> None:
        if not files:
            return
        content, checksum = dice.choice(list(files.values()))
        assert hashlib.sha256(load(content)).hexdigest() == checksum

    def work(dice: random.Random) -> None:
        reconcile.sweep(seconds=0.2)
        collect()

    threads = [forever(f, n) for n, f in enumerate([upload, upload, download, download, work, work])]
    threads.append(forever(lambda dice: watch.sample(), 99))
    try:
        for wanted in (3, 1, 2):
            while len(files) < 20 * (1 + (3, 1, 2).index(wanted)) and not stop.is_set():
                stop.wait(0.02)
            if wanted < watch.wanted:
                watch.want(wanted)
            policy.change(copies=wanted, ack_copies=min(2, wanted))
            watch.want(wanted)
    finally:
        stop.set() if errors else None
        while len(files) < 60 and not stop.is_set():
            stop.wait(0.02)
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors
    assert watch.violations == []
    assert watch.samples > 10
    reconcile.run_to_rest()
    collect()
    assert reconcile.run_to_rest().actions == 0
    for content, checksum in files.values():
        assert copies(content) == 2
        assert hashlib.sha256(load(content)).hexdigest() == checksum
    assert {f.code for f in check(full=True)} == {"unreferenced"}
    assert {s.text.split(":")[0] for s in contents.copy_status(files).values()} == {"2 of 2"}
