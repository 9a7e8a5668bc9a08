"""Import: objects of others at a broker become files of a user's drive. The objects stay as they are.

The job walks the listing; each object is read in ranges and goes through the upload that all files go through (quota,
names, sealing, copies). Its ImportedFile row is written in the transaction that makes the file visible: after a kill
anywhere, what has a row is passed over and nothing is brought in twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

from django.db.models import F

from accounts.models import User
from accounts.quota import QuotaExceeded
from brokers import clock
from brokers.driver import StoredFile
from brokers.errors import BrokerError, NotFound
from brokers.failpoint import reach
from brokers.health import note_failure
from brokers.models import Broker
from brokers.names import MARKER_NAME, META_PREFIX, OBJECT_PREFIX, is_object_key, name_in
from console import browse, jobs
from console.jobs import Ended, JobRefused, Later, Stop, Turn
from console.models import ImportedFile, Job
from console.operations import Who
from replication import transfer
from replication.errors import StateConflict, WriteRefused
from vfs.conditions import Conditions
from vfs.errors import AccountClosed, DigestMismatch, IsAFolder, PreconditionFailed, SizeMismatch, VfsError
from vfs.names import join_path, split_path, validate_name
from vfs.upload import FileUpload, Outcome, target_at

log = logging.getLogger(__name__)
State = ImportedFile.State

WINDOW = 200
PIECE = 4 * 1024 * 1024
ATTEMPTS = 3
# So many names are tried for one object: "a.txt", "a (2).txt", ...
NAMES = 1000
_FINAL = (State.DONE, State.SKIPPED, State.REFUSED)


class Changed(Exception):
    """The object is another one than when its reading began."""


def start(
    broker_id: int,
    owner: User,
    who: Who,
    *,
    prefix: str = "",
    folder: str = "/",
    conflict: str = Job.Conflict.KEEP_BOTH,
) -> Job:
    """Order an import: -> the job. Names below `folder` are those of the objects after the last slash of `prefix`.
    Raises JobRefused, InvalidName, AccountClosed."""
    if not owner.is_active:
        raise AccountClosed
    if conflict not in Job.Conflict.values:
        raise JobRefused("invalid", f"there is no such policy: {conflict}")
    if prefix.startswith((OBJECT_PREFIX, META_PREFIX, MARKER_NAME)):
        raise JobRefused("not_importable", "what begins so is CloudStore's own; it holds no files of others")
    path = join_path(split_path(folder, folder=True))
    broker = Broker.objects.get(pk=broker_id)
    return jobs.begin(
        Job.Kind.IMPORT, broker, who, prefix=prefix, owner=owner, folder=path, conflict=conflict
    )


def preview(broker_id: int, prefix: str = "") -> tuple[int, int]:
    """How many objects, and how many bytes, an import would look at. Raises BrokerError."""
    return _count(_foreign(Broker.objects.get(pk=broker_id), prefix))


def _count(objects: Iterator[StoredFile]) -> tuple[int, int]:
    count = size = 0
    for found in objects:
        count, size = count + 1, size + max(0, found.size)
    return count, size


def _foreign(broker: Broker, prefix: str) -> Iterator[StoredFile]:
    """Every object that is not ours, by its name."""
    for found in transfer.listing(broker, prefix):
        name = name_in(found.path, broker.marker_locator)
        if not is_object_key(name) and not browse.metadata_of(name):
            yield found


# -- the work -----------------------------------------------------------------------------------------


def work(turn: Turn) -> bool:
    """Bring in what there is, until it is time to leave: -> whether all is done. Raises Ended, Stop, Later."""
    job, broker = turn.job, turn.broker
    assert broker is not None  # noqa: S101
    if job.owner is None or not job.owner.is_active:
        raise Stop("the account is closed")
    try:
        if job.objects_there is None:
            job.objects_there, job.bytes_there = _count(_beating(turn, _foreign(broker, job.prefix)))
            turn.change(objects_there=job.objects_there, bytes_there=job.bytes_there)
        for window in _windows(_foreign(broker, job.prefix)):
            if not _window(turn, broker, window):
                return False
    except BrokerError as error:  # of the listing: what concerns one object is dealt with there
        note_failure(broker.pk, error)
        raise Later(f"{broker.name}: {error.code}: {error}") from None
    if job.files.filter(state=State.FAILED, attempts__lt=ATTEMPTS).exists():
        raise Later("some objects failed and are tried again")
    return True


def _beating(turn: Turn, objects: Iterator[StoredFile]) -> Iterator[StoredFile]:
    for found in objects:
        turn.beat()
        yield found


def _windows(objects: Iterator[StoredFile]) -> Iterator[list[StoredFile]]:
    window: list[StoredFile] = []
    for found in objects:
        window.append(found)
        if len(window) == WINDOW:
            yield window
            window = []
    yield window


def _window(turn: Turn, broker: Broker, window: list[StoredFile]) -> bool:
    digests = {digest_of(found.path): found for found in window}
    rows = {row.digest: row for row in turn.job.files.filter(digest__in=list(digests))}
    for digest, found in digests.items():
        row = rows.get(digest)
        if row is not None and (row.state in _FINAL or row.attempts >= ATTEMPTS):
            continue
        if turn.over:
            return False
        turn.beat(now=True)
        _Import(turn, broker, found, digest).run()
        reach("import.object")
        turn.tell(shown(found.path))
    return True


def digest_of(path: str) -> str:
    """What tells an object from others within a job, whatever signs its name has."""
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()


def shown(path: str) -> str:
    """A name as a database takes it."""
    return path.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


class _Import:
    """One object on its way into the drive."""

    def __init__(self, turn: Turn, broker: Broker, found: StoredFile, digest: str) -> None:
        assert turn.job.owner is not None  # noqa: S101
        self.turn, self.broker, self.found, self.digest = turn, broker, found, digest
        self.job, self.owner = turn.job, turn.job.owner

    def run(self) -> None:
        """Bring it in, or note why not. Raises Ended, Stop, Later."""
        try:
            names = self._names()
            if names is None:
                self._note(State.SKIPPED, "it stands for a folder")
                return
            self._bring_in(names)
        except QuotaExceeded as error:
            raise Stop(
                f"the drive of {self.owner} is full: {error.needed} bytes are needed for {shown(self.found.path)}"
            ) from None
        except AccountClosed as error:
            raise Stop(str(error)) from None
        except WriteRefused as error:
            raise Later(f"uploads are refused now: {error}") from None
        except NotFound:
            self._note(State.SKIPPED, "it is gone")
        except BrokerError as error:
            note_failure(self.broker.pk, error)
            self._note(State.FAILED, f"{error.code}: {error}")
        except (Changed, StateConflict, SizeMismatch, DigestMismatch) as error:
            self._note(State.FAILED, str(error))
        except VfsError as error:  # a name that no drive takes, a file where a folder should be
            self._note(State.REFUSED, f"{error.code}: {error}")

    def _names(self) -> tuple[str, ...] | None:
        """Where it goes in the drive; None for a placeholder of a folder. Raises InvalidName."""
        name = name_in(self.found.path, self.broker.marker_locator)
        below = name[self.job.prefix.rfind("/") + 1 :]
        if (not below or below.endswith("/")) and self.found.size <= 0:
            return None
        return split_path(self.job.folder, folder=True) + tuple(map(validate_name, below.split("/")))

    def _bring_in(self, names: tuple[str, ...]) -> None:
        for number in range(1, NAMES):
            tried = (*names[:-1], numbered(names[-1], number))
            try:
                self._upload(tried)
            except (PreconditionFailed, IsAFolder):  # the name is taken
                if self.job.conflict == Job.Conflict.SKIP:
                    self._note(State.SKIPPED, "there is a file or folder of this name")
                    return
            else:
                return
        self._note(State.REFUSED, f"{NAMES} files of this name are there")

    def _upload(self, names: tuple[str, ...]) -> None:
        """Raises PreconditionFailed or IsAFolder, before a byte is read, for a name that is taken."""
        target = target_at(self.owner, names)
        conditions = Conditions(if_none_match=("*",))
        before = transfer.stat(self.broker, self.found.path)
        size = before.size
        whole = transfer.fetch_all(self.broker, self.found.path) if size < 0 else None
        if whole is not None:  # a driver that does not tell sizes
            size = len(whole)
        actor = self.job.created_by if self.job.created_by and self.job.created_by.is_active else self.owner
        with FileUpload(actor, target, size=size, conditions=conditions) as upload:
            for piece in self._pieces(size) if whole is None else [whole]:
                upload.write(piece)
            kind, _colon, value = (before.checksum or "").partition(":")
            upload.complete(sha256=value if kind == "sha256" else None)
            # Ranges of two objects make none of both.
            if transfer.stat(self.broker, self.found.path) != before:
                raise Changed("the object changed while it was read")

            def note(outcomes: list[Outcome]) -> None:
                # Under this lock the job is still ours, or nothing of this stands.
                if not self.turn.rows().update(lease_until=clock.now() + self.turn.lease):
                    raise Ended
                self._note(State.DONE, "", node=outcomes[0].node.pk, path=join_path(names), size=size)

            upload.commit(note)

    def _pieces(self, size: int) -> Iterator[bytes]:
        for start in range(0, size, PIECE):
            self.turn.beat()
            yield transfer.fetch(self.broker, self.found.path, start, min(PIECE, size - start))

    def _note(self, state: str, detail: str, **values: Any) -> None:
        values.setdefault("size", max(0, self.found.size))
        values |= {"state": state, "detail": detail[:300], "at": clock.now()}
        row, created = ImportedFile.objects.get_or_create(
            job=self.job, digest=self.digest, defaults={"name": shown(self.found.path), **values}
        )
        if created:
            return
        failed = ImportedFile.objects.filter(pk=row.pk, state=State.FAILED)
        if not failed.update(**values, attempts=F("attempts") + 1):
            raise Ended  # another worker was faster


def numbered(name: str, number: int) -> str:
    """ "a.txt" -> "a (2).txt", cut to what a name may have. Number 1 is the name itself."""
    if number == 1:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, "", ""
    tail = f" ({number}){dot}{ending}"
    room = 255 - len(tail.encode())
    if room < 1:
        stem, tail = name, f" ({number})"
        room = 255 - len(tail.encode())
    return stem.encode()[:room].decode(errors="ignore") + tail
