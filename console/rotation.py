"""A new master key: what is wrapped with an older one is wrapped anew, in the database alone.

No object on a broker is touched: their headers carry the content's key as it was wrapped when they were sealed, so an
older master key is needed as long as a drive may have to be rebuilt without a snapshot that was made since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import Q

from accounts import audit
from brokers import credentials
from brokers.failpoint import reach
from brokers.keyring import keyring
from console.snapshot import key_versions
from replication import snapshots
from replication.keys import PURPOSE
from replication.models import Content, Snapshot

BATCH = 500


@dataclass
class Report:
    """`in_use` are the versions that rows are still wrapped with, `uploading` uploads in progress that began with an
    older one. A version in `retirable` may be taken out of the configuration; one in `waiting` not before a snapshot
    made since stands on two brokers (run `manage.py snapshot`)."""

    current: int = 0
    configured: list[int] = field(default_factory=list)
    contents: int = 0
    brokers: int = 0
    uploading: int = 0
    in_use: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    retirable: list[int] = field(default_factory=list)
    older_snapshots: dict[str, int] = field(default_factory=dict)


def rotate(*, dry_run: bool = False, tell: Callable[[str], None] = lambda _words: None) -> Report:
    """Wrap everything with the newest configured master key: -> what was done and what is still needed. May be
    interrupted anywhere and run again; readers and writers go on meanwhile. Raises KeyringError when a version that
    rows need is not configured; what was wrapped until then stays."""
    ring = keyring()
    report = Report(current=ring.current, configured=sorted(ring.keys))
    if not dry_run:
        report.contents = _rewrap(ring.current, tell)
        report.brokers = credentials.reseal_all()
        if report.contents or report.brokers:
            audit.record(
                None, "master_key.rotated", ring.current, contents=report.contents, brokers=report.brokers
            )
    _still_needed(report)
    return report


def _older(current: int) -> Q:
    # An upload in progress writes its headers with the key it began with: it is left until it is done.
    return ~Q(key_version=current) & ~Q(state=Content.State.OPEN)


def _rewrap(current: int, tell: Callable[[str], None]) -> int:
    ring, done = keyring(), 0
    while True:
        batch = list(Content.objects.filter(_older(current)).order_by("pk")[:BATCH])
        if not batch:
            return done
        with transaction.atomic():
            for content in batch:
                key = ring.open(PURPOSE, content.key_version, bytes(content.wrapped_key), content.pk.bytes)
                version, wrapped = ring.seal(PURPOSE, key, content.pk.bytes)
                done += Content.objects.filter(pk=content.pk, key_version=content.key_version).update(
                    key_version=version, wrapped_key=wrapped
                )
                reach("rotation.content_wrapped")
        tell(f"{done} contents wrapped with master key {current}")


def _still_needed(report: Report) -> None:
    report.in_use = key_versions()
    open_ = Content.objects.filter(state=Content.State.OPEN)
    report.uploading = open_.exclude(key_version=report.current).count()
    whole = snapshots.standing()
    newest = whole[0].master_keys if whole else report.configured
    for version in report.configured:
        if version == report.current or version in report.in_use:
            continue
        (report.waiting if version in newest else report.retirable).append(version)
    for snapshot in Snapshot.objects.filter(state=Snapshot.State.STANDING):
        for version in snapshot.master_keys:
            if version != report.current:
                name = str(version)
                report.older_snapshots[name] = report.older_snapshots.get(name, 0) + 1


def words_of(report: Report, dry_run: bool) -> str:
    words = [f"master key {report.current} is the current one; configured: {_list(report.configured)}"]
    if not dry_run:
        words.append(f"wrapped anew: {report.contents} contents, credentials of {report.brokers} brokers")
    old = [version for version in report.in_use if version != report.current]
    if old:
        words.append(
            f"still wrapped with {_list(old)}: rows of {report.uploading} uploads in progress"
            + (" and more" if dry_run else "")
            + "; run this again when they are done"
        )
    if report.waiting:
        words.append(
            f"keep {_list(report.waiting)} until a snapshot made from now on stands on two brokers: manage.py snapshot"
        )
    if report.retirable:
        words.append(
            f"{_list(report.retirable)} may be taken out of CLOUDSTORE_MASTER_KEYS. Keep a copy with your recovery "
            "papers: objects on the brokers cannot be opened without it when every snapshot is lost"
        )
    for name, count in sorted(report.older_snapshots.items()):
        words.append(f"{count} standing snapshots can only be used with master key {name} as well")
    return "\n".join(words)


def _list(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
