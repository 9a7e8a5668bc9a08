"""An upload: reserve quota, write the bytes, then one small transaction that makes the file visible.

`start` -> `write` ... -> `complete` (every byte durable) -> `commit` (visible), or `abort` at any time before. Each
step that touches rows is one transaction; a crash between two leaves an Upload row that `expire_uploads` undoes.
Locks are taken in one order: tree, folder, upload, content, user.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from django.conf import settings
from django.db import DatabaseError, IntegrityError, InterfaceError, transaction
from django.db.models import F, Max
from django.http import HttpRequest

from accounts import audit, quota
from accounts.models import User
from brokers import clock
from brokers.driver import Buffer
from brokers.failpoint import reach
from prepared.change import Delete, insert
from prepared.query import Query, Slot, columns, instances
from replication import contents, tasks
from replication.errors import StateConflict
from replication.write import ContentWriter, Written
from vfs import holder, owed
from vfs.access import locate, visible
from vfs.conditions import Conditions
from vfs.errors import AccountClosed, DigestMismatch, IsAFolder, ParentGone, SizeMismatch
from vfs.models import Node, Upload, Version
from vfs.names import check_place, join_path, validate_name
from vfs.tree import by_id, child_of, deepest, ensure_folders, locked, make, root_of, touch

log = logging.getLogger(__name__)

# Uploads of unknown size reserve quota in such steps.
STEP = 16 * 1024 * 1024
HEARTBEAT = 60.0


_HOLD_FOLDER = Query(
    lambda: Node.objects.select_for_update(no_key=True).filter(pk=Slot("node", Node, "id")).values_list("id")
)
_HOLD_UPLOAD = Query(
    lambda: (
        Upload.objects.select_for_update()
        .filter(pk=Slot("upload", Upload, "id"))
        .values_list(*columns(Upload))
    )
)
_END_UPLOAD = Delete(lambda: Upload.objects.filter(pk=Slot("upload", Upload, "id")))
_ACTIVE = Query(lambda: User.objects.filter(pk=Slot("user", User, "id"), is_active=True).values_list("id"))


@dataclass(frozen=True, slots=True)
class Target:
    """Where an upload goes: names below a folder, the last is the file's. Made by `target_at`/`target_in`."""

    owner: User
    parent: Node
    names: tuple[str, ...]

    @property
    def path(self) -> str:
        return join_path(locate(self.parent).names + self.names)


def target_at(owner: User, names: Sequence[str]) -> Target:
    """The target for a path: the folders that are missing will be made at the commit. Raises InvalidName,
    NotAFolder, IsAFolder."""
    names = tuple(map(validate_name, names))
    check_place(names)
    if not names:
        raise IsAFolder
    root_of(owner)
    node, depth = deepest(owner, names)
    if depth < len(names):
        return Target(owner, node, names[depth:])
    if node.is_folder:
        raise IsAFolder
    assert node.parent is not None  # noqa: S101
    return Target(owner, node.parent, names[-1:])


def target_in(owner: User, folder: Node, name: str) -> Target:
    """The target for a name in a visible folder. Raises InvalidName, IsAFolder."""
    name = validate_name(name)
    check_place((*locate(folder).names, name))
    found = child_of(folder, name)
    if found is not None and found.is_folder:
        raise IsAFolder
    return Target(owner, folder, (name,))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a commit made."""

    node: Node
    created: bool  # False: a new version of a file that was there


class FileUpload:
    """One upload, driven by one thread outside any transaction. As a context manager it aborts what is not
    committed when the block ends.

    `size` None means unknown (but not over `most`): quota is then reserved in steps as the bytes arrive. Raises
    QuotaExceeded and WriteRefused before any byte is taken, and later when a step does not fit or brokers fail;
    StateConflict when the upload expired meanwhile. After any of them only `abort` is of use.
    """

    def __init__(
        self,
        actor: User,
        target: Target,
        *,
        size: int | None = None,
        most: int | None = None,
        conditions: Conditions | None = None,
        request: HttpRequest | None = None,
    ) -> None:
        self.actor = actor
        self.target = target
        self.size = size
        self.most = most
        self.conditions = conditions or Conditions()
        self.written: Written | None = None
        self._request = request
        self._received = 0
        self._reserved = size or 0
        self._open = True
        self.conditions.check(child_of(target.parent, target.names[0]) if len(target.names) == 1 else None)
        now = clock.now()
        owner = target.owner
        with transaction.atomic():
            if not _HOLD_FOLDER(node=target.parent.pk):
                raise ParentGone
            quota.reserve(owner.pk, self._reserved)
            content = contents.create(owner.plan.copies if owner.plan else None)
            row = Upload(
                owner=owner,
                parent=target.parent,
                path="/".join(target.names),
                content=content,
                expected=size,
                reserved=self._reserved,
                holder=holder.current(),
                expires_at=now + settings.CLOUDSTORE_UPLOAD_EXPIRY,
            )
            self.row = insert(row)
        self._beat_at = clock.monotonic() + _heartbeat()
        try:
            self._writer = ContentWriter(content, size=size)
        except BaseException:
            self._open = False
            _give_back_surely(self.row.pk)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, data: Buffer) -> None:
        """Take the next bytes. Raises SizeMismatch for more than `size`."""
        count = memoryview(data).nbytes
        self._received += count
        if self.size is not None:
            if self._received > self.size:
                raise SizeMismatch
        elif self._received > self._reserved:
            self._reserve_more(self._received - self._reserved)
        if clock.monotonic() >= self._beat_at:
            self._beat()
        try:
            self._writer.write(data)
        except IntegrityError as error:
            raise StateConflict("the upload has expired") from error

    def _reserve_more(self, needed: int) -> None:
        """Reserve a step, or just what is needed when a step does not fit."""
        step = STEP if self.most is None else min(STEP, self.most - self._reserved)
        step = max(step, needed)
        try:
            self._grow(step)
        except quota.QuotaExceeded:
            if step == needed:
                raise
            self._grow(needed)

    def _grow(self, count: int) -> None:
        with transaction.atomic():
            changed = Upload.objects.filter(pk=self.row.pk).update(reserved=F("reserved") + count)
            if changed != 1:
                raise StateConflict("the upload has expired")
            quota.reserve(self.target.owner.pk, count)
        self._reserved += count

    def _shrink(self, count: int) -> None:
        """Give back what was reserved too much."""
        if count <= 0:
            return
        with transaction.atomic():
            changed = Upload.objects.filter(pk=self.row.pk).update(reserved=F("reserved") - count)
            if changed != 1:
                raise StateConflict("the upload has expired")
            quota.release(self.target.owner.pk, count)
        self._reserved -= count

    def _beat(self) -> None:
        """Bytes arrive: the upload lives. At most once a minute."""
        changed = Upload.objects.filter(pk=self.row.pk).update(
            expires_at=clock.now() + settings.CLOUDSTORE_UPLOAD_EXPIRY
        )
        if changed != 1:
            raise StateConflict("the upload has expired")
        self._beat_at = clock.monotonic() + _heartbeat()

    def complete(self, *, sha256: str | None = None) -> Written:
        """All bytes have come: wait until they are durable. `sha256` (hex) is what the client says they are.
        Nothing is visible yet. Raises SizeMismatch, DigestMismatch, WriteRefused, StateConflict."""
        if self.size is not None and self._received != self.size:
            raise SizeMismatch
        try:
            written = self._writer.finish()
        except IntegrityError as error:
            raise StateConflict("the upload has expired") from error
        if sha256 is not None and written.sha256 != sha256:
            raise DigestMismatch
        self._shrink(self._reserved - written.size)
        self.written = written
        reach("upload.completed")
        return written

    def commit(self, also: Callable[[list[Outcome]], None] | None = None) -> Outcome:
        """Make the file visible, in one transaction. See `commit_all`."""
        return commit_all([self], also)[0]

    def abort(self) -> None:
        """Give everything back, later when the database is away. Idempotent; does nothing after the commit."""
        if not self._open:
            return
        self._open = False
        try:
            self._writer.abort()
        finally:
            _give_back_surely(self.row.pk)

    def _committed(self) -> None:
        self._open = False


def commit_all(
    uploads: Sequence[FileUpload], also: Callable[[list[Outcome]], None] | None = None
) -> list[Outcome]:
    """Make completed uploads of one owner visible, all or none, in one transaction, in which `also` notes what shall
    stand exactly when they do.

    Raises StateConflict when one expired meanwhile, ParentGone when its folder was deleted, IsAFolder or
    NotAFolder for what stands in the way now, PreconditionFailed, AccountClosed."""
    if not uploads:
        return []
    owner = uploads[0].target.owner
    with locked(owner.pk):
        if any(not _ACTIVE(user=pk) for pk in {owner.pk} | {u.actor.pk for u in uploads}):
            raise AccountClosed
        outcomes = [_commit(upload) for upload in uploads]
        if also is not None:
            also(outcomes)
    reach("upload.committed")
    for upload in uploads:
        upload._committed()
        if upload.written and upload.written.copies < upload.written.wanted:
            tasks.hint(upload.row.content_id)
    return outcomes


def _commit(upload: FileUpload) -> Outcome:
    """One upload, inside the transaction that holds the tree's lock."""
    written = upload.written
    if written is None:
        raise StateConflict("the upload is not complete")
    rows = _HOLD_UPLOAD(upload=upload.row.pk)
    if not rows:
        raise StateConflict("the upload has expired or was cancelled")
    row: Upload
    (row,) = instances(rows[0], Upload)
    parent = by_id(row.parent_id) if row.parent_id else None
    if parent is None or not visible(parent):
        raise ParentGone
    _END_UPLOAD(upload=row.pk)
    *folders, name = upload.target.names
    folder = ensure_folders(parent, folders)
    node = child_of(folder, name)
    if node is not None and node.is_folder:
        raise IsAFolder
    upload.conditions.check(node)
    contents.seal(row.content_id, written)
    node, version = _place(upload, folder, node, name, row.content_id)
    quota.settle(row.owner_id, reserved=row.reserved, used=written.size)
    created = version.number == 1
    audit.record(
        upload.actor,
        "file.created" if created else "version.created",
        node.pk,
        upload._request,
        path=upload.target.path,
        size=written.size,
        number=version.number,
    )
    return Outcome(node, created)


def _place(
    upload: FileUpload, folder: Node, node: Node | None, name: str, content_id: uuid.UUID
) -> tuple[Node, Version]:
    """The new version, of a new file or of the one that is there."""
    now = clock.now()
    if node is None:
        version = Version(content_id=content_id, number=1, created_by=upload.actor, created_at=now)
        new_id = uuid.uuid4()
        version.node_id = new_id
        insert(version)
        node = make(folder, name, Node.Kind.FILE, id=new_id, version=version, created_at=now, modified_at=now)
        touch(folder.pk)
    else:
        number = (node.versions.aggregate(most=Max("number"))["most"] or 0) + 1
        version = Version.objects.create(
            node=node, content_id=content_id, number=number, created_by=upload.actor, created_at=now
        )
        Node.objects.filter(pk=node.pk).update(version=version, modified_at=now)
    fresh = by_id(node.pk)
    assert fresh is not None  # noqa: S101
    return fresh, version


# -- giving back --------------------------------------------------------------------------------------


def give_back(upload_id: uuid.UUID, *, only_expired: bool = False) -> bool:
    """End an upload without a file: its reservation is free and its content left to the collector, in one
    transaction. Idempotent; -> whether this call did it."""
    with transaction.atomic():
        row = Upload.objects.select_for_update().filter(pk=upload_id).first()
        if row is None or (only_expired and not is_expired(row)):
            return False
        row.delete()
        contents.abandon(row.content_id)
        quota.release(row.owner_id, row.reserved)
    return True


def _give_back_surely(upload_id: uuid.UUID) -> None:
    try:
        give_back(upload_id)
    except (DatabaseError, InterfaceError) as error:
        log.info("upload %s is given back later: %s", upload_id, type(error).__name__)
        owed.later(upload_id, give_back)


def is_expired(row: Upload) -> bool:
    """Whether nobody continues an upload: past its time, or of a process that is surely gone."""
    return row.expires_at <= clock.now() or holder.gone(row.holder)


def expire_uploads(*, dry_run: bool = False) -> int:
    """Give back what nobody continues: -> how many uploads. Idempotent, safe beside running uploads: one that
    is expired under way ends in StateConflict."""
    count = 0
    for row in Upload.objects.order_by("expires_at"):
        if is_expired(row) and (dry_run or give_back(row.pk, only_expired=True)):
            count += 1
            log.info("upload %s of content %s is given back", row.pk, row.content_id)
    return count


def _heartbeat() -> float:
    return min(HEARTBEAT, settings.CLOUDSTORE_UPLOAD_EXPIRY.total_seconds() / 4)
