"""Broker "local": a folder on a disk of this machine, or on a mount.

An object appears under its name only when it is whole and on the disk: it is written to a temporary file of the
same file system, synced, renamed, and the folder that names it is synced. All paths are walked by folder
descriptors that refuse symbolic links, so nothing outside the root is ever touched.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django import forms
from django.conf import settings

from brokers import clock, entropy
from brokers.driver import CloudBroker, StorageInfo, StoredFile
from brokers.errors import (
    BrokerError,
    InvalidKey,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RangeError,
    ReadOnly,
    Unauthorized,
    Unavailable,
)

TEMPORARY = ".tmp"
# A temporary file this old belongs to a process that died.
STALE_SECONDS = 3600
FILE_MODE = 0o600
FOLDER_MODE = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def allowed_roots() -> list[Path]:
    """The folders under which the deployment permits local brokers, with symbolic links resolved."""
    return [Path(os.path.realpath(root)) for root in settings.CLOUDSTORE_LOCAL_ROOTS]


def mount_point_of(path: Path) -> Path:
    """Where the file system that holds `path` (or its nearest existing ancestor) is mounted."""
    while not path.is_mount():
        path = path.parent
    return path


class LocalOptions(forms.Form):
    root = forms.CharField(max_length=400, help_text="Folder that holds the objects; created when missing.")
    sync = forms.BooleanField(
        required=False, initial=True, help_text="Wait for the disk on each write. Off only for benchmarks."
    )
    mount_point = forms.CharField(
        max_length=400,
        required=False,
        help_text="What must be mounted for the folder to be there; found by itself when left empty.",
    )

    def clean_root(self) -> str:
        given = Path(self.cleaned_data["root"]).expanduser()
        if not given.is_absolute():
            raise forms.ValidationError("Give an absolute path.")
        root = Path(os.path.realpath(given))
        allowed = allowed_roots()
        if not any(top in root.parents or top == root for top in allowed):
            raise forms.ValidationError(
                f"{root} does not lie under {' or '.join(map(str, allowed))}. "
                "The setting CLOUDSTORE_LOCAL_ROOTS permits more folders."
            )
        if root.exists() and not root.is_dir():
            raise forms.ValidationError(f"{root} is not a folder.")
        return str(root)

    def clean(self) -> dict[str, Any]:
        """Remember the mount, so that an unmounted disk is never taken for an empty one. A remembered one stays
        while the root lies under it: it may be unmounted at this very moment."""
        cleaned = super().clean() or self.cleaned_data
        if root := cleaned.get("root"):
            known = cleaned.get("mount_point")
            if not known or not (root == known or Path(known) in Path(root).parents):
                cleaned["mount_point"] = str(mount_point_of(Path(root)))
        return cleaned


class LocalBroker(CloudBroker):
    slug = "local"
    label = "Local folder"
    OptionsForm = LocalOptions
    concurrency = 16
    takes_views = True

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._root = Path(str(self.options["root"]))
        self._mount_point = str(self.options.get("mount_point") or "/")
        self._sync = bool(self.options.get("sync", True))
        # Folders whose own names are known to be on the disk, by (device, inode).
        self._durable: set[tuple[int, int]] = set()

    # -- the contract -------------------------------------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        *folders, name = _parts(filename)
        with self._errors(writing=True), self._root_fd() as root:
            temporary_folder = self._enter(root, [TEMPORARY], create=True)
            try:
                folder = self._enter(root, folders, create=True)
                try:
                    self._write(temporary_folder, folder, name, file_data)
                finally:
                    os.close(folder)
            finally:
                os.close(temporary_folder)
        return filename

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        with self._object(storage_path) as file:
            size = os.fstat(file).st_size
            if start and start >= size:
                raise RangeError(f"{storage_path} has {size} bytes")
            wanted = size - start if length is None else min(length, size - start)
            parts = []
            while wanted > 0:
                part = os.pread(file, wanted, start)
                if not part:
                    raise Unavailable(f"{storage_path} ended while it was read")
                parts.append(part)
                start, wanted = start + len(part), wanted - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def delete_file(self, storage_path: str) -> None:
        *folders, name = _parts(storage_path)
        with self._errors(writing=True), self._root_fd() as root:
            try:
                folder = self._enter(root, folders)
            except FileNotFoundError:
                return
            try:
                os.unlink(name, dir_fd=folder)
                self._fsync(folder)
            except FileNotFoundError:
                return
            finally:
                os.close(folder)

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        top = path.rpartition("/")[0]
        with self._errors(), self._root_fd() as root:
            try:
                folder = self._enter(root, _parts(top) if top else [])
            except FileNotFoundError:
                return
            try:
                yield from self._walk(folder, f"{top}/" if top else "", path)
            finally:
                os.close(folder)

    def stat_file(self, storage_path: str) -> StoredFile:
        with self._object(storage_path) as file:
            found = os.fstat(file)
        return StoredFile(storage_path, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def get_storage_info(self) -> StorageInfo:
        with self._errors(), self._root_fd() as root:
            found = os.fstatvfs(root)
        return StorageInfo(
            total=found.f_blocks * found.f_frsize,
            used=(found.f_blocks - found.f_bfree) * found.f_frsize,
            available=found.f_bavail * found.f_frsize,
        )

    def prepare(self) -> None:
        self._check_mounted()
        with self._errors(writing=True):
            missing = []
            folder = self._root
            while not folder.exists():
                missing.append(folder)
                folder = folder.parent
            for folder in reversed(missing):
                folder.mkdir(FOLDER_MODE, exist_ok=True)
                parent = os.open(folder.parent, _FOLDER)
                try:
                    self._fsync(parent)
                finally:
                    os.close(parent)
        self.probe()

    def probe(self) -> None:
        """Write, sync and remove a temporary file; what processes that died left there goes as well."""
        with self._errors(writing=True), self._root_fd() as root:
            folder = self._enter(root, [TEMPORARY], create=True)
            try:
                name = f"probe-{entropy.token_hex(8)}"
                file = self._create(folder, name)
                try:
                    os.write(file, b"CloudStore probe\n" * 256)
                    self._fsync(file)
                finally:
                    os.close(file)
                    os.unlink(name, dir_fd=folder)
                self._sweep(folder)
            finally:
                os.close(folder)

    def tidy(self, folder: str) -> None:
        *above, name = _parts(folder)
        with self._errors(writing=True), self._root_fd() as root, suppress(FileNotFoundError):
            parent = self._enter(root, above)
            try:
                self._remove_empty(parent, name)
            finally:
                os.close(parent)

    # -- below it -----------------------------------------------------------------------------------------

    def _check_mounted(self) -> None:
        if self._mount_point != "/" and not os.path.ismount(self._mount_point):
            raise Unavailable(f"{self._mount_point} is not mounted")

    @contextmanager
    def _root_fd(self) -> Iterator[int]:
        """The root folder's descriptor. Unavailable when it, or its mount, is not there."""
        self._check_mounted()
        try:
            root = os.open(self._root, _FOLDER)
        except FileNotFoundError:
            raise Unavailable(f"the root folder {self._root} is not there") from None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Misconfigured(f"the root {self._root} is not a folder") from None
            raise
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _object(self, storage_path: str) -> Iterator[int]:
        """A stored object's descriptor for reading; NotFound only while the root is there."""
        *folders, name = _parts(storage_path)
        with self._errors(), self._root_fd() as root:
            try:
                folder = self._enter(root, folders)
                try:
                    file = os.open(
                        name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder
                    )
                finally:
                    os.close(folder)
            except FileNotFoundError:
                raise NotFound(storage_path) from None
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise NotFound(f"{storage_path} is not a file")
                yield file
            finally:
                os.close(file)

    def _enter(self, root: int, folders: list[str], *, create: bool = False) -> int:
        """Walk down from the root: -> a new descriptor. With `create`, folders that are missing are made, and
        every name on the way is on the disk when this returns."""
        current = os.dup(root)
        try:
            for name in folders:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(name, FOLDER_MODE, dir_fd=current)
                below = os.open(name, _FOLDER, dir_fd=current)
                try:
                    if create:
                        self._name_durably(current, below)
                except BaseException:
                    os.close(below)
                    raise
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current

    def _name_durably(self, parent: int, folder: int) -> None:
        """Sync the parent once for each folder: another process may have made it and not synced it yet."""
        found = os.fstat(folder)
        identity = (found.st_dev, found.st_ino)
        if identity not in self._durable:
            self._fsync(parent)
            self._durable.add(identity)

    def _create(self, folder: int, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, FILE_MODE, dir_fd=folder)

    def _write(self, temporary_folder: int, folder: int, name: str, data: bytes) -> None:
        temporary = entropy.token_hex(16)
        file = self._create(temporary_folder, temporary)
        try:
            try:
                rest = memoryview(data).cast("B")
                while rest:
                    rest = rest[os.write(file, rest) :]
                # The bytes and the size, all that is needed to read them. Never tried again on this descriptor: the
                # next one could lie.
                self._fdatasync(file)
            finally:
                os.close(file)
            os.replace(temporary, name, src_dir_fd=temporary_folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=temporary_folder)
            raise
        self._fsync(folder)

    def _fsync(self, descriptor: int) -> None:
        if self._sync:
            os.fsync(descriptor)

    def _fdatasync(self, descriptor: int) -> None:
        if self._sync:
            getattr(os, "fdatasync", os.fsync)(descriptor)  # not on every system

    def _sweep(self, folder: int) -> None:
        oldest = clock.now().timestamp() - STALE_SECONDS
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.name, dir_fd=folder)

    def _remove_empty(self, parent: int, name: str) -> None:
        folder = os.open(name, _FOLDER, dir_fd=parent)
        try:
            about = os.fstat(folder)
            for entry in os.listdir(folder):  # noqa: PTH208 - a descriptor is no path
                with suppress(NotADirectoryError, FileNotFoundError):
                    self._remove_empty(folder, entry)
        finally:
            os.close(folder)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
        else:  # its number may be given to another folder, whose name is not on the disk yet
            self._durable.discard((about.st_dev, about.st_ino))

    def _walk(self, folder: int, base: str, prefix: str) -> Iterator[StoredFile]:
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            name = base + entry.name
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if f"{name}/".startswith(prefix) or prefix.startswith(f"{name}/"):
                        below = os.open(entry.name, _FOLDER, dir_fd=folder)
                        try:
                            yield from self._walk(below, f"{name}/", prefix)
                        finally:
                            os.close(below)
                elif name.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    about = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
                    yield StoredFile(name, about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))
            except FileNotFoundError:
                continue  # removed since the folder was read

    @contextmanager
    def _errors(self, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except BrokerError:
            raise
        except OSError as error:
            raise _named(error, writing) from error


def _parts(name: str) -> list[str]:
    """The folders and the file of an object's name. Raises InvalidKey for what could leave the root."""
    parts = name.split("/")
    for part in parts:
        if not part or part.startswith(".") or "\0" in part or "\\" in part:
            raise InvalidKey("a name's parts are not empty and do not begin with a dot")
        if len(part.encode("utf-8", "surrogatepass")) > 255:
            raise InvalidKey("a part of a name has at most 255 bytes")
    return parts


def _named(error: OSError, writing: bool) -> BrokerError:
    number, text = error.errno, os.strerror(error.errno) if error.errno else "no reason given"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace(text)
    if number == errno.EROFS:
        return ReadOnly(text)
    if number in (errno.EACCES, errno.EPERM):
        return ReadOnly(text) if writing else Unauthorized(text)
    if number in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidKey(text)
    return Unavailable(text)
