"""Broker "dropbox": a folder of a Dropbox app.

Through Dropbox's own SDK, one request for each object, without the SDK's retries. django-storages' class is not used:
its listings stop after the first page, it writes in pieces of 4 MiB, and takes every error for absence.

Dropbox takes names without regard to case; those of this product are lowercase. A deleted file goes where Dropbox keeps
deleted files for some time: that does not count towards the account's room, and only business accounts can end it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

from brokers import endpoint
from brokers.driver import MAX_OBJECT_SIZE, CloudBroker, StorageInfo, StoredFile
from brokers.drivers.dropbox_errors import EXPIRED, MISSING, Refused
from brokers.drivers.dropbox_options import DropboxOptions
from brokers.errors import (
    BrokerError,
    Corrupt,
    InvalidKey,
    Misconfigured,
    NotFound,
    RangeError,
    ReadOnly,
    Timeout,
    Unauthorized,
    Unavailable,
)
from brokers.names import PROBE_NAME, is_object_key

PIECE = 65536
# Dropbox's own limits: of a listing's page, and of one part of a path.
LARGEST_PAGE = 2000
LONGEST_PART = 255
# What is not there, or not a file.
ABSENT = frozenset({"not_found", "not_file", "not_folder"})


class DropboxBroker(CloudBroker):
    slug = "dropbox"
    label = "Dropbox"
    OptionsForm = DropboxOptions
    secret_options = frozenset({"app_secret", "refresh_token", "access_token"})
    # Writes into one account wait for each other there, and are refused when too many do.
    concurrency = 4
    list_page = 1000

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        try:
            import brokers.drivers.dropbox_client  # noqa: F401
        except ImportError:
            raise Misconfigured(MISSING) from None
        folder = str(self.options.get("folder") or "")
        self._folder = f"/{folder}" if folder else ""
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._made: Any = None
        self._there = False
        self._pid = os.getpid()

    # -- the contract -------------------------------------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        """One request, into a folder that was seen once. Mode "add" stores nothing where the name is taken: the same
        bytes are success, others a conflict. What may be written anew (the marker, a snapshot) is overwritten."""
        from dropbox.files import WriteMode

        path = self._path(filename)
        if not self._there:
            self._confirm_folder()  # an upload would make it anew, and hide that it was gone
        lasting = is_object_key(filename)
        digest = _content_hash(file_data)
        try:
            with self._errors():
                told = self._client.files_upload(
                    file_data,
                    path,
                    mode=WriteMode.add if lasting else WriteMode.overwrite,
                    autorename=False,
                    mute=True,
                    strict_conflict=False,
                    content_hash=digest,  # the provider refuses other bytes
                )
        except Refused as error:
            if "conflict" not in error.tags:
                raise
            return self._taken(filename, len(file_data), digest)
        with self._errors():
            if (
                told.size != len(file_data)
                or (told.content_hash or digest) != digest
                or told.path_lower != path.lower()
            ):
                # Not what an object of ours may be: it goes again, and the call can be repeated.
                self._client.files_delete_v2(str(told.path_lower), parent_rev=told.rev)
                raise Unavailable("Dropbox stored something else than it was sent")
        return filename

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        ranged = bool(start) or length is not None
        headers = None
        if ranged:
            end = "" if length is None else str(start + length - 1)
            headers = {"Range": f"bytes={start}-{end}"}
        most = max(MAX_OBJECT_SIZE - start, 1) if length is None else length
        try:
            with self._errors(storage_path):
                about, answer = self._client.files_download(self._path(storage_path), extra_headers=headers)
                with closing(answer):
                    cut = answer.status_code == 206
                    if cut and not (
                        ranged and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
                    ):
                        raise Unavailable("another range came than was asked for")
                    data = _read(answer, most if cut else MAX_OBJECT_SIZE)
        except RangeError:
            if start == 0:
                return b""  # any range of an empty object is refused; from 0 it is just empty
            raise
        if not cut:
            if len(data) != about.size or (about.content_hash and _content_hash(data) != about.content_hash):
                raise Unavailable("the bytes changed on the way: their content hash is another")
            if start and start >= len(data):
                raise RangeError(f"{storage_path} has {len(data)} bytes")
            return data[start:] if length is None else data[start : start + length]
        if len(data) != min(most, about.size - start):
            raise Unavailable("another range came than was asked for")
        return data

    def delete_file(self, storage_path: str) -> None:
        """Of names that are not a segment's only what is a file is deleted: Dropbox deletes a folder with all in it."""
        path = self._path(storage_path)
        revision = None
        try:
            if not is_object_key(storage_path):
                revision = self._about(storage_path).rev
            with self._errors(storage_path):
                self._client.files_delete_v2(path, parent_rev=revision)
        except NotFound:
            return

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        """From the deepest folder that the prefix names. What changes meanwhile may come up a second time: of a
        segment it cannot, the few other names are remembered."""
        from dropbox.files import FileMetadata

        seen: set[str] = set()
        for entries in self._pages(path.rpartition("/")[0]):
            for entry in entries:
                if not isinstance(entry, FileMetadata):
                    continue
                name = self._name(entry)
                if not name.startswith(path) or name in seen:
                    continue
                if not is_object_key(name):
                    seen.add(name)
                yield _stored(name, entry)

    def stat_file(self, storage_path: str) -> StoredFile:
        """Dropbox's content hash is none of the contract's checksums; uploads and whole reads are compared with it."""
        return _stored(storage_path, self._about(storage_path))

    def get_storage_info(self) -> StorageInfo:
        """Of a member of a team: the member's own limit where there is one, and no more than the team has left."""
        with self._errors():
            usage = self._client.users_get_space_usage()
            if usage.allocation.is_individual():
                return _room(usage.allocation.get_individual().allocated, usage.used)
            if not usage.allocation.is_team():
                return StorageInfo(total=None, used=int(usage.used), available=None)
            team = usage.allocation.get_team()
            shared = _room(team.allocated, team.used)
            limit = team.user_within_team_space_allocated
            if not limit or team.user_within_team_space_limit_type.is_off():
                return shared
            own = _room(limit, usage.used)
            return StorageInfo(
                total=own["total"],
                used=own["used"],
                available=min(own["available"] or 0, shared["available"] or 0),
            )

    def prepare(self) -> None:
        if self._folder:
            try:
                with self._errors():
                    self._client.files_create_folder_v2(self._folder, autorename=False)
            except Refused as error:
                if "conflict" not in error.tags:
                    raise
        self._confirm_folder()

    def probe(self) -> None:
        """Write one tiny object, always the same."""
        try:
            self.upload_file(b"CloudStore probe\n", PROBE_NAME)
        except Unauthorized as error:
            # A token that may list but not write makes the place read-only; else it is expired or revoked.
            self._confirm_folder()
            raise ReadOnly(str(error)) from error

    def tidy(self, folder: str) -> None:
        from dropbox.files import FileMetadata, FolderMetadata

        full, empty = set(), set()
        for entries in self._pages(folder):
            for entry in entries:
                above = str(entry.path_lower)
                if isinstance(entry, FolderMetadata):
                    empty.add(above)
                elif isinstance(entry, FileMetadata):
                    while above := above.rpartition("/")[0]:
                        full.add(above)
        for gone in sorted(empty - full, key=len):
            if gone.rpartition("/")[0] not in empty - full:  # with all the empty ones below it
                try:
                    with self._errors(gone):
                        self._client.files_delete_v2(gone)
                except NotFound:
                    continue

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, None
        if made is not None and self._pid == os.getpid():
            made.close()

    # -- below it -----------------------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        """One for all threads of a process: a fork's child makes its own."""
        from brokers.drivers.dropbox_client import Client

        if self._pid != os.getpid():
            self._fresh()
        with self._lock:
            if self._made is None:
                names = ("app_key", "app_secret", "refresh_token", "access_token")
                self._made = Client(**{name: str(self.options.get(name) or "") for name in names})
            return self._made

    def _path(self, name: str) -> str:
        parts = name.split("/")
        if not name.isprintable() or any(
            part in ("", ".", "..") or len(part) > LONGEST_PART or "\\" in part for part in parts
        ):
            raise InvalidKey("a name has parts of 1 to 255 printable characters between single slashes")
        return f"{self._folder}/{name}"

    def _name(self, entry: Any) -> str:
        """The name of a listed file. Dropbox keeps the case of the last part alone for sure."""
        lower, shown = (
            str(path)[len(self._folder) + 1 :]
            for path in (entry.path_lower, entry.path_display or entry.path_lower)
        )
        return shown if shown.lower() == lower and not is_object_key(lower) else lower

    def _about(self, name: str) -> Any:
        from dropbox.files import FileMetadata

        with self._errors(name):
            about = self._client.files_get_metadata(self._path(name))
            if not isinstance(about, FileMetadata):
                raise NotFound(name)
            return about

    def _taken(self, name: str, size: int, digest: str) -> str:
        try:
            there = self._about(name)
        except NotFound:
            raise Unavailable("the name was taken a moment ago, and holds no file now") from None
        if there.size == size and there.content_hash == digest:
            return name
        raise Corrupt(f"{name} holds other bytes already; they stay")

    def _pages(self, below: str) -> Iterator[list[Any]]:
        """Every page of what is in a folder and those in it; none when only that folder is not there."""
        try:
            with self._errors(below):
                path = f"{self._folder}/{below}".rstrip("/")
                limit = max(1, min(int(self.list_page or LARGEST_PAGE), LARGEST_PAGE))
                page = self._client.files_list_folder(path, recursive=True, limit=limit)
        except NotFound:
            return
        while True:
            yield page.entries
            if not page.has_more:
                return
            with self._errors():
                before = page
                page = self._client.files_list_folder_continue(before.cursor)
                if page.has_more and not page.entries and page.cursor == before.cursor:
                    raise Unavailable("the listing does not go on")

    def _confirm_folder(self) -> None:
        with self._errors():
            self._client.files_list_folder(self._folder, limit=1)
        self._there = True

    @contextmanager
    def _errors(self, name: str | None = None) -> Iterator[None]:
        """Name what the SDK raises. With the object's `name`, an answer "not there" is believed only of a folder that
        is there itself."""
        import requests
        import urllib3
        from dropbox.exceptions import AuthError, DropboxException
        from stone.backends.python_rsrc.stone_validators import ValidationError

        try:
            yield
        except Refused as error:
            if not ABSENT & set(error.tags):
                raise
            self._there = False
            if name is None:
                raise Misconfigured(
                    f"there is no folder {self._folder[1:]!r} in the app's folder"
                    if self._folder
                    else "the app's folder is gone"
                ) from error
            self._confirm_folder()
            raise NotFound(name) from error
        except Unauthorized:
            self._client.doubt_token()
            raise
        except BrokerError:
            raise
        except AuthError as error:
            raise Unauthorized(EXPIRED) from error
        except DropboxException as error:
            raise Unavailable(f"no proper answer from Dropbox ({type(error).__name__})") from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise Timeout("Dropbox does not answer") from error
        except (OSError, urllib3.exceptions.HTTPError) as error:
            if refused := endpoint.refusal(error):
                raise refused from error
            raise Unavailable(f"no proper answer from Dropbox ({type(error).__name__})") from error
        except (
            ValidationError, AssertionError, ValueError, TypeError, AttributeError, LookupError,
        ) as error:  # fmt: skip
            # An answer that is not this API's at all.
            raise Unavailable(f"the answer makes no sense ({type(error).__name__})") from error


def _content_hash(data: bytes) -> str:
    """SHA-256 over the SHA-256s of the blocks of 4 MiB (dropbox.com/developers/reference/content-hash)."""
    from dropbox.content_hash import content_hash

    return str(content_hash(data))


def _read(answer: Any, most: int) -> bytes:
    """The body, and never more than was asked for, whatever the provider sends."""
    data = bytearray()
    for piece in answer.iter_content(PIECE):
        data += piece
        if len(data) > most:
            raise Corrupt(f"more than the {most} bytes that were asked for came")
    return bytes(data)


def _stored(name: str, about: Any) -> StoredFile:
    modified = about.server_modified
    return StoredFile(
        name, int(about.size), modified.replace(tzinfo=UTC) if isinstance(modified, datetime) else None
    )


def _room(total: int, used: int) -> StorageInfo:
    """An account may hold more than it has bought; then nothing is left."""
    return StorageInfo(total=int(total), used=int(used), available=max(0, int(total) - int(used)))
