"""Bringing a drive back from its brokers and the master key alone.

First the rows, from the newest snapshot that is whole; then every object that is newer, into lost+found. Each step may
be interrupted and run again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from django.conf import settings
from django.db.models import F

from accounts import users
from accounts.models import User
from brokers import credentials, health, services
from brokers.errors import BrokerError
from brokers.keyring import Keyring, KeyringError
from brokers.models import Broker, Health
from console import restore
from replication import adopt, epoch, snapshots, transfer, vault
from replication.seal import SealError
from vfs import found, recount
from vfs.upload import expire_uploads

log = logging.getLogger(__name__)
Tell = Callable[[str], None]


class CannotRebuild(Exception):
    """Nothing was changed, or what was done may be continued; the text says what to do."""


@dataclass(frozen=True)
class Given:
    """A place that the operator names."""

    name: str
    driver: str
    options: Mapping[str, Any]
    domain: str = ""


@dataclass
class Candidate:
    """A snapshot that was found, with its copies."""

    number: int
    id: uuid.UUID
    copies: list[vault.Found]

    def manifest(self) -> vault.Manifest:
        """Raises KeyringError when every copy needs another master key, SnapshotDamaged for everything else."""
        errors: list[Exception] = []
        for copy in self.copies:
            try:
                return vault.read_manifest(copy)
            except (BrokerError, SealError, KeyringError) as error:
                errors.append(error)
        if errors and all(isinstance(error, KeyringError) for error in errors):
            raise errors[0]
        raise vault.SnapshotDamaged(
            f"snapshot {self.number}: {errors[0] if errors else 'it has no manifest'}"
        )


@dataclass
class Report:
    """The outcome of a rebuild."""

    snapshot: dict[str, Any] | None = None
    skipped: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    rows: int = 0
    brokers: list[str] = field(default_factory=list)
    operator: str = ""
    password: str = ""
    objects: adopt.Report = field(default_factory=adopt.Report)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Places:
    """The given places, opened without a database. As a context manager it closes them."""

    def __init__(self, given: Sequence[Given]) -> None:
        self.brokers: list[tuple[Given, Broker]] = []
        ring = Keyring(settings.CLOUDSTORE_MASTER_KEYS)
        for number, one in enumerate(given, 1):
            plain, secrets = services.check_options(one.driver, one.options)
            # Rows that are never saved; no saved one has such a number.
            broker = Broker(pk=-number, name=one.name, driver=one.driver, domain=one.name, options=plain)
            credentials.seal_secrets(broker, secrets, ring)
            self.brokers.append((one, broker))

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        for _one, broker in self.brokers:
            transfer.close(broker)

    def snapshots(self, report: Report) -> list[Candidate]:
        """Every snapshot with a manifest anywhere, newest first. Raises CannotRebuild when no place answers."""
        found: dict[uuid.UUID, Candidate] = {}
        for _one, broker in self.brokers:
            try:
                listed = vault.on_broker(broker)
            except BrokerError as error:
                report.unreachable.append(f"{broker.name}: {error.code}: {error}")
                continue
            for copy in listed.values():
                if copy.manifest or copy.parts:
                    one = found.setdefault(copy.id, Candidate(copy.number, copy.id, []))
                    one.copies.append(copy)
        if len(report.unreachable) == len(self.brokers):
            raise CannotRebuild("none of the brokers answers: " + "; ".join(report.unreachable))
        whole = [c for c in found.values() if any(copy.manifest for copy in c.copies)]
        for candidate in whole:
            # A copy without a manifest still lends its parts.
            candidate.copies.sort(key=lambda copy: not copy.manifest)
        return sorted(whole, key=lambda c: c.number, reverse=True)


def listing(given: Sequence[Given], report: Report) -> list[dict[str, Any]]:
    """The snapshots on the given places, newest first."""
    rows = []
    with Places(given) as places:
        for candidate in places.snapshots(report):
            row: dict[str, Any] = {"number": candidate.number, "id": str(candidate.id)}
            row["brokers"] = sorted(copy.broker.name for copy in candidate.copies if copy.manifest)
            try:
                row |= _about(candidate.manifest())
            except (vault.SnapshotDamaged, KeyringError) as error:
                row["damaged"] = str(error)
            rows.append(row)
    return rows


def _about(manifest: vault.Manifest) -> dict[str, Any]:
    return {
        "number": manifest.number,
        "id": str(manifest.id),
        "created_at": manifest.created_at,
        "rows": sum(manifest.rows.values()),
        "files": manifest.rows.get("vfs.Node", 0),
        "master_keys": list(manifest.master_keys),
    }


def rebuild(
    given: Sequence[Given],
    *,
    snapshot: str = "",
    without: bool = False,
    operator: str = "",
    dry_run: bool = False,
    tell: Tell = lambda _words: None,
) -> Report:
    """Restore, adopt, count. `snapshot` is an id or a number, default the newest that is whole; `without` uses none.
    A database that was rebuilt and not yet confirmed goes on with the objects. Raises CannotRebuild, NotEmpty,
    BrokerError."""
    report = Report()
    if _was_rebuilt():
        tell("the rows were restored already; going on with the objects")
    else:
        restore.check_empty()
        with Places(given) as places:
            _restore(places, report, snapshot, without, dry_run, tell)
        if dry_run:
            return report
        _connect(given, report, tell)
    if dry_run:
        adopt.gather(report.objects, tell, dry_run=True)
        return report
    return bring_back(report, operator=operator, tell=tell)


def bring_back(
    report: Report,
    *,
    operator: str = "",
    dry_run: bool = False,
    tell: Tell,
    broker_id: int | None = None,
) -> Report:
    """Give rows to what the brokers (or one of them) hold and this database does not know, and count every user's
    quota anew."""
    searched = Broker.objects.all() if broker_id is None else Broker.objects.filter(pk=broker_id)
    for broker in searched.filter(enabled=True):
        if health.poll(broker.pk).health != Health.ONLINE:
            health.poll(broker.pk)  # one that was down is believed after two good polls
    report.brokers = list(searched.order_by("name").values_list("name", flat=True))
    if dry_run:
        adopt.gather(report.objects, tell, dry_run=True, broker_id=broker_id)
        return report
    expire_uploads()
    owner = _operator(operator, report)
    adopt.gather(report.objects, tell, broker_id=broker_id)
    adopt.finish(lambda content, at, head: _keep(owner, content, at, head), report.objects, tell)
    snapshots.note_all()
    for count in recount.recount():
        if not count.right:
            tell(f"{count.user}: {count.counted_used} bytes counted, {count.used} noted")
    return report


def _keep(owner: User, content: Any, at: Any, head: bytes) -> None:
    found.keep(owner, content, at, head)


def _was_rebuilt() -> bool:
    lock = epoch.lock()
    return lock is not None and lock.reason.startswith(restore.REBUILT)


def _restore(places: Places, report: Report, wanted: str, without: bool, dry_run: bool, tell: Tell) -> None:
    candidates = [] if without else places.snapshots(report)
    if wanted:
        candidates = [c for c in candidates if wanted in (str(c.number), str(c.id), c.id.hex)]
        if not candidates:
            raise CannotRebuild(f"there is no snapshot {wanted} on these brokers; see --list")
    if not candidates:
        if not without:
            raise CannotRebuild(
                "there is no snapshot on these brokers. Name others, or use --without-snapshot: every file then "
                "comes back in lost+found, without its name"
            )
        if not dry_run:
            epoch.lock_now(0, f"{restore.REBUILT} objects alone")
        return
    wrong_key: KeyringError | None = None
    for candidate in candidates:
        try:
            manifest = candidate.manifest()
            missing = set(manifest.master_keys) - set(settings.CLOUDSTORE_MASTER_KEYS)
            if missing:
                raise KeyringError(
                    f"master key version {', '.join(map(str, sorted(missing)))} is not configured"
                )
            tell(f"reading snapshot {manifest.number} of {manifest.created_at[:19]}")
            with vault.read(manifest, candidate.copies) as file:
                if not dry_run:
                    report.rows = sum(restore.restore(file, manifest).values())
        except vault.SnapshotDamaged as error:
            tell(f"{error}; trying the one before")
            report.skipped.append(str(error))
            continue
        except KeyringError as error:
            wrong_key = wrong_key or error
            report.skipped.append(f"snapshot {candidate.number}: {error}")
            continue
        report.snapshot = _about(manifest)
        tell(f"{sum(manifest.rows.values())} rows {'would be ' if dry_run else ''}restored")
        return
    if wrong_key is not None:
        raise CannotRebuild(
            f"no snapshot opens with the configured CLOUDSTORE_MASTER_KEYS ({wrong_key}); nothing was changed. "
            "Give the master key of this drive"
        )
    raise CannotRebuild("no snapshot is whole; nothing was changed: " + "; ".join(report.skipped))


def _connect(given: Sequence[Given], report: Report, tell: Tell) -> None:
    """The given places as rows: a broker of the snapshot gets the options that led to it now, another is added."""
    with Places(given) as places:
        for one, temporary in places.brokers:
            try:
                marker = transfer.marker_of(temporary)
            except BrokerError as error:
                tell(f"{one.name} does not answer: {error.code}: {error}")
                continue
            row = Broker.objects.filter(marker=marker).first() if marker else None
            if row is None:
                services.add_broker(one.name, one.driver, one.domain or one.name, one.options, adopt=True)
                continue
            _plain, secrets = services.check_options(one.driver, one.options)
            options = dict(temporary.options)
            if row.driver == one.driver:
                # What was not given, because the place can be reached without, stays.
                options = {**row.options, **options}
                secrets = {**credentials.open_secrets(row), **secrets}
            credentials.seal_secrets(row, secrets)
            Broker.objects.filter(pk=row.pk).update(
                driver=one.driver,
                options=options,
                sealed_secrets=row.sealed_secrets,
                secrets_key_version=row.secrets_key_version,
                revision=F("revision") + 1,
            )
            transfer.close(row)


def _operator(name: str, report: Report) -> User:
    """Whose lost+found it is. Raises CannotRebuild for a name that is not there."""
    if name:
        owner = User.objects.filter(username=name).first()
        if owner is None:
            raise CannotRebuild(f"there is no user {name!r}")
    else:
        owner = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
    if owner is None:
        owner, report.password = users.create("admin", superuser=True)
    report.operator = owner.get_username()
    return owner
