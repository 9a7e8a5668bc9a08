"""Broker "storage": any Django storage class (django-storages has many) by its dotted path.

What such classes do differently from the contract is made good here: names that change on a save, writes that can
be seen half done, ranges, deletes that fail or hide their failure, listings of one level or of everything, and
exceptions of every SDK. Absence is believed only of an answer that says so, from a place that is there.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.core.files.base import ContentFile

from brokers import clock, entropy
from brokers.driver import MAX_OBJECT_SIZE, CloudBroker, StorageInfo, StoredFile
from brokers.drivers.storage_known import known
from brokers.drivers.storage_options import StorageOptions, load, merged, parse
from brokers.endpoint import retry_after
from brokers.errors import (
    BrokerError,
    Corrupt,
    InvalidKey,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RangeError,
    RateLimited,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from brokers.names import is_object_key

# What is on its way to its name. Listings leave it out.
TEMPORARY = "cs-tmp"
# A temporary file this old, in seconds, belongs to a process that died.
STALE_SECONDS = 3600
PIECE = 1024 * 1024
DEEPEST = 20
PAYLOAD = b"CloudStore probe\n"

_STATUS: dict[int, type[BrokerError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: Timeout,
    413: TooLarge,
    416: RangeError,
    429: RateLimited,
    504: Timeout,
    507: OutOfSpace,
}
# Parts of the names of exception classes, asked in this order where there is no status and no errno.
_TYPES: tuple[tuple[str, type[BrokerError]], ...] = (
    ("hostkey", Misconfigured),
    ("authentication", Unauthorized),
    ("credential", Unauthorized),
    ("permissiondenied", Unauthorized),
    ("forbidden", Unauthorized),
    ("timeout", Timeout),
)
_BUGS = (TypeError, AttributeError, NameError, NotImplementedError, ImportError)


class _Exists(Unavailable):
    """A save was refused because the name is taken. Does not leave this module."""


class StorageBroker(CloudBroker):
    slug = "storage"
    label = "Django storage class (Azure, SFTP, ...)"
    OptionsForm = StorageOptions
    secret_options = frozenset({"class_secrets"})
    concurrency = 4

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._cls = load(str(self.options["class_path"]))
        self._known = known(self._cls)
        try:
            self._arguments = merged(
                parse(str(self.options.get("class_options") or "")),
                parse(str(self.options.get("class_secrets") or "")),
            )
        except ValueError:
            raise Misconfigured("the class's options are no JSON object") from None
        folder = str(self.options.get("folder") or "")
        self._prefix = f"{folder}/" if folder else ""
        # Storage classes do not promise to be safe for many threads: each call has an instance for itself.
        self._lock = threading.Lock()
        self._idle: list[Any] = []

    # -- the contract -------------------------------------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        """Where the class offers a rename, under a temporary name first; else by its one save."""
        name = self._name(filename)
        with self._storage() as storage:
            if self._known.replace is not None:
                temporary = f"{self._prefix}{TEMPORARY}/{entropy.token_hex(16)}"
                try:
                    self._save(storage, temporary, file_data)
                    self._known.replace(storage, temporary, name)
                except Exception:
                    with suppress(Exception):
                        storage.delete(temporary)
                    raise
            else:
                try:
                    self._save(storage, name, file_data)
                except _Exists:
                    if self._read(storage, name, 0, None) == file_data:
                        return filename
                    if is_object_key(filename):
                        raise Corrupt(f"{filename} holds other bytes already; they stay") from None
                    storage.delete(name)  # the marker, a snapshot: these may be written anew
                    self._save(storage, name, file_data)
            self._check_size(storage, name, len(file_data))
        return filename

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        name = self._name(storage_path)
        with self._storage(name) as storage:
            return self._read(storage, name, start, length)

    def delete_file(self, storage_path: str) -> None:
        """Some classes hide why a delete failed: it is done when the place says that the object is gone."""
        name = self._name(storage_path)
        try:
            with self._storage(name) as storage:
                storage.delete(name)
                self._size(storage, name)
        except NotFound:
            return
        raise Unauthorized("the object is still there after its deletion")

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        """Sizes are -1: most classes ask the provider once for each, which the listing of a whole place is not
        worth."""
        wanted = self._prefix + path
        folder = wanted.rpartition("/")[0]
        with self._storage() as storage:
            found = set()
            for name in self._walk(storage, folder, wanted, DEEPEST):
                found.add(name)
        for name in sorted(found):
            shown = name.removeprefix(self._prefix)
            if not shown.startswith(f"{TEMPORARY}/"):
                yield StoredFile(shown, -1)

    def stat_file(self, storage_path: str) -> StoredFile:
        name = self._name(storage_path)
        with self._storage(name) as storage:
            return StoredFile(storage_path, self._size(storage, name))

    def get_storage_info(self) -> StorageInfo:
        """Django's interface has no way to ask."""
        return StorageInfo(total=None, used=None, available=None)

    def prepare(self) -> None:
        with self._storage() as storage:
            self._confirm_place(storage)

    def probe(self) -> None:
        """Write, read and remove a temporary file; what processes that died left there goes as well."""
        name = f"{TEMPORARY}/probe-{entropy.token_hex(8)}"
        try:
            self.upload_file(PAYLOAD, name)
        except Unauthorized as error:
            # Credentials that may list but not write make the place read-only; else they are wrong or revoked.
            with self._storage() as storage:
                self._confirm_place(storage)
            raise ReadOnly(str(error)) from error
        if self.download_file(name) != PAYLOAD:
            raise Corrupt("a probe read back differently")
        self.delete_file(name)
        with self._storage() as storage:
            self._sweep(storage)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for storage in idle:
            _close(storage)

    # -- below it -----------------------------------------------------------------------------------------

    def _name(self, name: str) -> str:
        for part in name.split("/"):
            if not part or part != part.strip() or part.startswith(".") or part.endswith("."):
                raise InvalidKey("a name's parts are not empty, and have no dots or spaces at their ends")
        if "\\" in name or not name.isprintable() or not name.isascii():
            raise InvalidKey("a name is printable ASCII without backslashes")
        return self._prefix + name

    @contextmanager
    def _storage(self, name: str | None = None) -> Iterator[Any]:
        """An instance of the class that no other thread uses. It is not used again after an error other than
        absence: its connection may be broken. With the object's `name`, absence becomes NotFound."""
        with self._lock:
            storage = self._idle.pop() if self._idle else None
        good = False
        try:
            try:
                if storage is None:
                    storage = self._new()
                yield storage
                good = True
            except BrokerError as error:
                good = isinstance(error, NotFound | RangeError | InvalidKey)
                raise
            except Exception as error:
                named = _named(error)
                if not isinstance(named, NotFound):
                    raise named from error
                if name is None:
                    raise Misconfigured("the place (folder, container) is not there") from error
                if not _says_object(error):
                    self._confirm(storage)
                good = True
                raise NotFound(name.removeprefix(self._prefix)) from error
        finally:
            if good:
                with self._lock:
                    self._idle.append(storage)
            elif storage is not None:
                _close(storage)

    def _new(self) -> Any:
        try:
            storage: Any = self._cls(**self._arguments)
        except (ImproperlyConfigured, TypeError, ValueError, KeyError) as error:
            # Their messages may quote an option.
            raise Misconfigured(
                f"the class does not take these options ({type(error).__name__}): look for a name that it does not know"
            ) from error
        # Django's save() may choose another name; the contract says that it is this one.
        storage.get_available_name = _same_name
        self._known.start(storage)
        return storage

    def _save(self, storage: Any, name: str, data: bytes) -> None:
        try:
            saved = storage.save(name, ContentFile(data, name=name))
        except Exception as error:
            if _status(error) in (409, 412) or isinstance(error, FileExistsError):
                raise _Exists("the name is taken") from error
            raise
        if saved != name:
            with suppress(Exception):
                storage.delete(saved)
            raise Misconfigured("the class stores under other names than it is given")

    def _size(self, storage: Any, name: str) -> int:
        size = storage.size(name)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise Unavailable("the class tells no size")
        return size

    def _check_size(self, storage: Any, name: str, size: int) -> None:
        try:
            stored = self._size(storage, name)
        except BrokerError:
            raise
        except Exception as error:
            named = _named(error)
            raise (
                Unavailable("what was stored is not there") if isinstance(named, NotFound) else named
            ) from error
        if stored != size:
            raise Unavailable(f"{stored} bytes are there where {size} were stored")

    def _read(self, storage: Any, name: str, start: int, length: int | None) -> bytes:
        most = MAX_OBJECT_SIZE - start if length is None else length
        with storage.open(name, "rb") as file:
            skip = _seek(file, start)
            data = _take(file, skip + max(most, 0) + (length is None))
        data = data[skip:]
        if len(data) < most:  # the end, or what looks like it
            size = self._size(storage, name)
            if start and start >= size:
                raise RangeError(f"the object has {size} bytes")
            if start + len(data) != size:
                raise Unavailable("the object ended before its end")
        elif len(data) > most:
            raise Corrupt(f"more came than the {MAX_OBJECT_SIZE} bytes that an object may have")
        return data

    def _walk(self, storage: Any, folder: str, wanted: str, deep: int) -> Iterator[str]:
        """Every file below `folder` whose name starts with `wanted`. Classes list one level by bare names, or (as
        Azure's) everything below by full names, or a mix of them."""
        if deep == 0:
            raise Misconfigured("the folders are too deep, or lead back to themselves")
        try:
            folders, files = storage.listdir(folder)
        except Exception as error:
            if not isinstance(_named(error), NotFound):
                raise
            if folder:
                self._confirm(storage)
                return  # a folder that is not there holds nothing
            raise
        for entry in files:
            name = self._full(storage, folder, entry)
            if name.startswith(wanted) and not name.endswith("/"):
                yield name
        for entry in folders:
            below = self._full(storage, folder, entry).rstrip("/")
            if below == folder or below.rpartition("/")[2] in ("", ".", ".."):
                continue
            if f"{below}/".startswith(wanted) or wanted.startswith(f"{below}/"):
                yield from self._walk(storage, below, wanted, deep - 1)

    def _full(self, storage: Any, folder: str, entry: Any) -> str:
        """The name that the class's other methods take, of an entry of its listing."""
        if not isinstance(entry, str):
            raise Unavailable("the listing has an entry that is no name")
        base = f"{folder}/" if folder else ""
        location = str(getattr(storage, "location", "") or "").strip("/")
        if location and entry.startswith(f"{location}/{base}"):
            return entry[len(location) + 1 :]
        return entry if base and entry.startswith(base) else base + entry

    def _confirm(self, storage: Any) -> None:
        """`_confirm_place` outside of `_storage`: names what it raises."""
        try:
            self._confirm_place(storage)
        except BrokerError:
            raise
        except Exception as error:
            named = _named(error)
            if isinstance(named, NotFound):
                raise Misconfigured("the place (folder, container) is not there") from error
            raise named from error

    def _confirm_place(self, storage: Any) -> None:
        """List something that does not exist: a container answers with nothing, and only where there is one. A
        server of folders says that it is not there, and then its top must be."""
        try:
            storage.listdir(f"{self._prefix}{TEMPORARY}/{entropy.token_hex(16)}")
        except Exception as error:
            if not isinstance(_named(error), NotFound):
                raise
            storage.listdir("")

    def _sweep(self, storage: Any) -> None:
        oldest = clock.now().timestamp() - STALE_SECONDS
        folder = f"{self._prefix}{TEMPORARY}"
        for name in self._walk(storage, folder, f"{folder}/", 2):
            try:
                old = storage.get_modified_time(name).timestamp() < oldest
            except NotImplementedError:
                return
            except Exception as error:
                if isinstance(_named(error), NotFound):
                    continue  # another has removed it
                raise
            if old:
                storage.delete(name)


def _same_name(name: str, max_length: int | None = None) -> str:
    return name


def _close(storage: Any) -> None:
    """Classes with a connection have a `close`; what it says at the end is of no interest."""
    close = getattr(storage, "close", None)
    if callable(close):
        with suppress(Exception):
            close()


def _seek(file: Any, start: int) -> int:
    """Go to `start`, or else tell how many bytes to read and drop."""
    if not start:
        return 0
    try:
        # Some classes open the file at the first read: what was sought before that would be forgotten.
        if file.read(0) == b"" and file.seekable():
            file.seek(start)
            if file.tell() == start:
                return 0
    except (OSError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        if isinstance(_named(error), NotFound) or _status(error) or getattr(error, "errno", None):
            raise  # not for want of a way to seek
    if hasattr(file, "tell"):
        with suppress(ValueError, TypeError, AttributeError, NotImplementedError):
            return start - int(file.tell())
    return start


def _take(file: Any, most: int) -> bytes:
    """Up to `most` bytes; fewer only at the end of the file."""
    pieces, rest = [], most
    while rest > 0:
        piece = file.read(min(rest, MAX_OBJECT_SIZE + 1))
        if not isinstance(piece, bytes):
            raise Unavailable("the class reads something else than bytes")
        if not piece:
            break
        pieces.append(piece)
        rest -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _status(error: BaseException) -> int:
    """The HTTP status that an SDK's exception carries; 0 for none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # boto3
        response = response.get("ResponseMetadata", {})
        return int(response.get("HTTPStatusCode", 0)) if isinstance(response, Mapping) else 0
    for place in (error, response):
        for attribute in ("status_code", "status", "code"):
            value = getattr(place, attribute, None)
            if isinstance(value, int) and not isinstance(value, bool) and 100 <= value < 600:
                return int(value)
    return 0


def _says_object(error: BaseException) -> bool:
    """Whether the provider's own code says that it is the object that is missing, and not what holds it."""
    return str(getattr(error, "error_code", "") or "").split(".")[-1] in ("BlobNotFound", "NoSuchKey")


def _named(error: BaseException) -> BrokerError:
    """Our error for any SDK's; messages are left out, they may quote a secret."""
    if isinstance(error, BrokerError):
        return error
    name, status = type(error).__name__, _status(error)
    shown = f"status {status}" if status else name
    code = str(getattr(error, "error_code", "") or "")
    if status == 404 and any(word in code for word in ("Container", "Bucket", "Account", "Share")):
        return Misconfigured("the place (folder, container) is not there")
    if status in _STATUS:
        kind = _STATUS[status]
        if kind is RateLimited:
            headers = getattr(getattr(error, "response", None), "headers", None) or {}
            return RateLimited("the provider asks to slow down", retry_after(headers.get("Retry-After")))
        return kind(f"the provider answered {shown}")
    if status:
        permanent = 400 <= status < 500 and status not in (409, 412, 425)
        return (Misconfigured if permanent else Unavailable)(f"the provider answered {shown}")
    if isinstance(error, FileNotFoundError):
        return NotFound("the file is not there")
    if isinstance(error, PermissionError):
        return Unauthorized("permission was refused")
    if isinstance(error, SuspiciousOperation):
        return InvalidKey("the class refuses the name")
    if isinstance(error, ImproperlyConfigured):
        return Misconfigured("the class says that its options are wrong")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace("no space left")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return ReadOnly("the place is read-only")
    if isinstance(error, TimeoutError):
        return Timeout("the provider does not answer")
    for part, kind in _TYPES:
        if part in name.lower():
            return kind(f"the provider refused the connection ({name})" if kind is not Timeout else name)
    if isinstance(error, _BUGS):
        return Misconfigured(f"the class does not work ({name})")
    return Unavailable(f"no proper answer from the provider ({name})")
