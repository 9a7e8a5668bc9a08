"""Sealed snapshots on brokers: opaque bytes in parts, a manifest written last, found again without a database.

A snapshot is sealed exactly as a content is (replication/seal.py), under a random key of its own that the master key
wraps. Its objects stand under `cs-meta/snapshot-<number>-<id>/`: the parts by their position, and `manifest`, put
after every part was read back. So what has a manifest is whole, and a snapshot that was cut short is never taken for
one. What the bytes mean is not known here (console/snapshot.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO

from django.conf import settings

from brokers import clock, entropy
from brokers.driver import Buffer
from brokers.errors import BrokerError
from brokers.failpoint import reach
from brokers.health import note_failure
from brokers.keyring import Keyring, KeyringError, keyring
from brokers.models import Broker
from brokers.names import META_PREFIX
from replication import placement, policy, targets, transfer
from replication.models import Snapshot, SnapshotCopy
from replication.seal import KEY_SIZE, SEGMENT_SIZE, Sealed, SealError, open_object, parse_header, seal

log = logging.getLogger(__name__)

PURPOSE = b"snapshot key"
PREFIX = f"{META_PREFIX}snapshot-"
# The manifest is sealed like a part, at a position that no part has.
MANIFEST_POSITION = 2**32 - 1
MANIFEST = "manifest"
LEAST_COPIES = 2
WINDOW = 3
_NAME = re.compile(re.escape(PREFIX) + r"([0-9]{12})-([0-9a-f]{32})/(manifest|[0-9]{6,10})\Z")


class SnapshotDamaged(Exception):
    """A snapshot cannot be read whole from any of the brokers at hand."""


class SnapshotRefused(Exception):
    """No snapshot was made; the text says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot says of itself. `parts` are (bytes, SHA-256) of the objects by position; `sha256` and `size`
    speak of the plain bytes of all parts together; `master_keys` are the versions needed to use it."""

    id: uuid.UUID
    number: int
    created_at: str
    size: int
    sha256: str
    parts: tuple[tuple[int, str], ...]
    rows: Mapping[str, int]
    master_keys: tuple[int, ...]


def name_of(number: int, snapshot_id: uuid.UUID, position: int | str) -> str:
    last = position if isinstance(position, str) else f"{position:06d}"
    return f"{PREFIX}{number:012d}-{snapshot_id.hex}/{last}"


class Spool:
    """Seals a stream of plain bytes into parts, kept in an unnamed temporary file until they are stored: nothing is
    read from the database while brokers are slow, and memory holds one part."""

    def __init__(self, snapshot_id: uuid.UUID) -> None:
        self.id = snapshot_id
        self._key = entropy.token_bytes(KEY_SIZE)
        self.key_version, self._wrapped = keyring().seal(PURPOSE, self._key, bound_to=snapshot_id.bytes)
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.parts: list[tuple[int, str]] = []
        self._starts: list[int] = []

    def write(self, data: Buffer) -> None:
        self._sha256.update(data)
        self._buffer += data
        while len(self._buffer) > SEGMENT_SIZE:
            self._part(bytes(self._buffer[:SEGMENT_SIZE]), last=False)
            del self._buffer[:SEGMENT_SIZE]

    def finish(self) -> None:
        self._part(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _seal(self, plain: bytes, position: int, offset: int, last: bool) -> Sealed:
        return seal(
            self._key, plain, content_id=self.id, position=position, offset=offset, last=last,
            key_version=self.key_version, wrapped_key=self._wrapped,
        )  # fmt: skip

    def _part(self, plain: bytes, *, last: bool) -> None:
        sealed = self._seal(plain, len(self.parts), self.size, last)
        self._starts.append(self._file.tell())
        self._file.write(sealed.data)
        self.size += len(plain)
        self.parts.append((len(sealed.data), sealed.checksum))

    def part(self, position: int) -> bytes:
        self._file.seek(self._starts[position])
        return self._file.read(self.parts[position][0])

    def manifest(self, snapshot: Snapshot, rows: Mapping[str, int], master_keys: Sequence[int]) -> Sealed:
        facts = {
            "format": "cloudstore snapshot",
            "version": 1,
            "id": str(snapshot.pk),
            "number": snapshot.number,
            "created_at": snapshot.created_at.isoformat(),
            "size": self.size,
            "sha256": self._sha256.hexdigest(),
            "parts": self.parts,
            "rows": dict(rows),
            "master_keys": sorted({*master_keys, self.key_version}),
        }
        return self._seal(json.dumps(facts).encode(), MANIFEST_POSITION, 0, True)

    def close(self) -> None:
        self._file.close()


# -- storing ------------------------------------------------------------------------------------------


def store(snapshot: Snapshot, spool: Spool, manifest: Sealed) -> list[Broker]:
    """Put a finished spool on as many brokers as the policy wants copies, at least two, on distinct domains; another
    is tried where one fails: -> those on which it now stands, read back. Outside any transaction."""
    wanted = max(LEAST_COPIES, policy.current().copies)
    stored: list[Broker] = []
    tried: set[int] = set()
    while len(stored) < wanted:
        domains = {broker.domain for broker in stored}
        chosen = placement.choose(
            targets.load().values(), 1, spool.size, entropy.uniform, taken_domains=domains, tried=tried
        )
        if not chosen:
            break
        broker = Broker.objects.get(pk=chosen[0])
        tried.add(broker.pk)
        # Intent before effect: a crash leaves objects of a snapshot that is known to be there.
        copy, _created = SnapshotCopy.objects.get_or_create(snapshot=snapshot, broker=broker)
        reach("vault.copy_planned")
        try:
            _store_on(broker, snapshot, spool, manifest)
        except BrokerError as error:
            note_failure(broker.pk, error)
            log.info("snapshot %s does not stand on %s: %s", snapshot.pk, broker.name, error.code)
            continue
        SnapshotCopy.objects.filter(pk=copy.pk).update(verified_at=clock.now())
        stored.append(broker)
    return stored


def _store_on(broker: Broker, snapshot: Snapshot, spool: Spool, manifest: Sealed) -> None:
    running: deque[Future[str]] = deque()
    try:
        for position, (_size, checksum) in enumerate(spool.parts):
            name = name_of(snapshot.number, snapshot.pk, position)
            running.append(transfer.pool().submit(_put, broker, name, spool.part(position), checksum))
            if len(running) == WINDOW:
                running.popleft().result()
        while running:
            running.popleft().result()
    finally:
        for future in running:
            future.cancel()
    reach("vault.parts_stored")
    name = name_of(snapshot.number, snapshot.pk, MANIFEST)
    _put(broker, name, manifest.data, manifest.checksum)
    reach("vault.manifest_stored")


def _put(broker: Broker, name: str, data: Buffer, checksum: str) -> str:
    """Store one object and read it back."""
    locator = transfer.put(broker, name, data, checksum)
    transfer.fetch_whole(broker, locator, len(data), checksum)
    return locator


# -- finding and reading ------------------------------------------------------------------------------


@dataclass
class Found:
    """The objects of one snapshot on one broker, as its listing shows them."""

    number: int
    id: uuid.UUID
    broker: Broker
    manifest: str = ""
    parts: dict[int, str] = field(default_factory=dict)

    @property
    def locators(self) -> list[str]:
        """The manifest first: what has none is not taken for a snapshot."""
        return [*([self.manifest] if self.manifest else []), *self.parts.values()]


def on_broker(broker: Broker) -> dict[uuid.UUID, Found]:
    """All snapshots on a broker, whole or not. Raises BrokerError."""
    snapshots: dict[uuid.UUID, Found] = {}
    for entry in transfer.listing(broker, PREFIX):
        match = _NAME.search(entry.path)
        if not match:
            continue
        snapshot_id = uuid.UUID(match[2])
        found = snapshots.setdefault(snapshot_id, Found(int(match[1]), snapshot_id, broker))
        if match[3] == MANIFEST:
            found.manifest = entry.path
        else:
            found.parts[int(match[3])] = entry.path
    return snapshots


def _key(data: bytes, snapshot_id: uuid.UUID, position: int) -> bytes:
    """The snapshot's key, from the header of one of its objects. Raises KeyringError, SealError."""
    header = parse_header(data)
    if (header.content_id, header.position) != (snapshot_id, position):
        raise SealError("it is another object")
    # Not the checked keyring: there may be no database yet.
    ring = Keyring(settings.CLOUDSTORE_MASTER_KEYS)
    return ring.open(PURPOSE, header.key_version, header.wrapped_key, snapshot_id.bytes)


def read_manifest(found: Found) -> Manifest:
    """Raises BrokerError, SealError when it was changed, KeyringError without its master key."""
    data = transfer.fetch_all(found.broker, found.manifest)
    said = json.loads(open_object(_key(data, found.id, MANIFEST_POSITION), data))
    if (said.get("format"), said.get("version")) != ("cloudstore snapshot", 1):
        raise SealError(f"a snapshot of an unknown format: {said.get('format')} {said.get('version')}")
    return Manifest(
        id=uuid.UUID(said["id"]),
        number=said["number"],
        created_at=said["created_at"],
        size=said["size"],
        sha256=said["sha256"],
        parts=tuple((size, checksum) for size, checksum in said["parts"]),
        rows=said["rows"],
        master_keys=tuple(said["master_keys"]),
    )


def read(manifest: Manifest, copies: Sequence[Found]) -> IO[bytes]:
    """All plain bytes of a snapshot, verified, in an unnamed temporary file at its start. Each part comes from
    whichever copy has it intact. Raises SnapshotDamaged."""
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    sha256 = hashlib.sha256()
    try:
        for position in range(len(manifest.parts)):
            plain = _read_part(manifest, position, copies)
            sha256.update(plain)
            file.write(plain)
        if sha256.hexdigest() != manifest.sha256:
            raise SnapshotDamaged(f"snapshot {manifest.id}: its parts are not what its manifest says")
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _read_part(manifest: Manifest, position: int, copies: Sequence[Found]) -> bytes:
    size, checksum = manifest.parts[position]
    why = "it is not there"
    for found in copies:
        if position not in found.parts:
            continue
        try:
            data = transfer.fetch_whole(found.broker, found.parts[position], size, checksum)
            return open_object(_key(data, manifest.id, position), data)
        except (BrokerError, SealError, KeyringError) as error:
            why = f"{found.broker.name}: {error}"
    raise SnapshotDamaged(f"snapshot {manifest.id}: part {position} cannot be read ({why})")


# -- removing -----------------------------------------------------------------------------------------


def remove(found: Found) -> None:
    """Delete a snapshot from one broker, its manifest first. Idempotent. Raises BrokerError."""
    for locator in found.locators:
        transfer.remove(found.broker, locator)
        reach("vault.object_removed")
