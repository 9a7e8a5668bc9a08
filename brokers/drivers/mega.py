"""Broker "mega": a folder of a MEGA account.

All objects lie flat in one folder, their names whole (slashes and all) in MEGA's encrypted attributes. MEGA permits
several files of one name and knows them by handle, therefore the locator is
`<handle>.<node key, encrypted with the account's master key>/<name>`: what reads, sizes or deletes an object needs
no listing. It ends with the name, which is what looks for a name among locators goes by. A bare name is looked up
in a listing made for that call.

A MEGA account is run by a person's terms and closed at MEGA's pleasure: an extra copy, never the only one.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from django import forms

from brokers import clock
from brokers.driver import CloudBroker, StorageInfo, StoredFile
from brokers.errors import Corrupt, InvalidKey, Misconfigured, NotFound, Timeout, Unavailable
from brokers.names import PROBE_NAME

if TYPE_CHECKING:
    from brokers.drivers.mega_client import Account, Node

# Below what brokers/layers/call.py gives one attempt, so that the threads behind a late call come back.
SECONDS = 25.0
SHORT_SECONDS = 14.0
LIST_SECONDS = 55.0
# How often a probe looks whether the folder still stands where it should.
FOLDER_SECONDS = 3600.0
# A probe's file that is this old was left by a process that died.
STALE_SECONDS = 3600
PROBE = b"CloudStore probe\n"
LONGEST_NAME = 400
# So many names that were stored here are remembered, to know a repetition from a fresh one.
TRIED = 10_000
_LOCATOR = re.compile(r"([A-Za-z0-9_-]{8})\.([A-Za-z0-9_-]{43})/(.+)\Z", re.DOTALL)


class MegaOptions(forms.Form):
    email = forms.EmailField(
        max_length=190,
        label="E-mail address",
        help_text="Of an account that is used for nothing else and has no second factor.",
    )
    password = forms.CharField(
        max_length=200,
        strip=False,
        widget=forms.PasswordInput,
        help_text="The account's own; accounts with a second factor cannot be used.",
    )
    folder = forms.CharField(
        max_length=200,
        initial="CloudStore",
        help_text="Where the objects go, below the cloud drive; made when missing. Slashes make folders in folders.",
    )

    def clean_email(self) -> str:
        return str(self.cleaned_data["email"]).lower()

    def clean_folder(self) -> str:
        folder = str(self.cleaned_data["folder"]).strip("/")
        if any(part.strip() in ("", ".", "..") for part in folder.split("/")):
            raise forms.ValidationError("A folder has no empty parts and no dots alone.")
        return folder


@dataclass(frozen=True, slots=True)
class _Listing:
    """The folder as MEGA told it: by handle and by name. `ticket` orders it among the calls."""

    ticket: int
    folder: str
    nodes: dict[str, tuple[str, Node]]
    names: dict[str, list[Node]] = field(default_factory=dict)


class MegaBroker(CloudBroker):
    slug = "mega"
    label = "MEGA account"
    OptionsForm = MegaOptions
    secret_options = frozenset({"password"})
    # MEGA works off one account's commands one after the other.
    concurrency = 4
    takes_views = True

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        from brokers.drivers import mega_client

        self._client = mega_client
        self._path = [part for part in str(self.options.get("folder") or "CloudStore").split("/") if part]
        self._tickets = itertools.count(1)
        self._listing_lock = threading.Lock()
        self._listing: _Listing | None = None
        self._folder_seen = -FOLDER_SECONDS
        # Names that may be taken, the oldest first. What other processes store has random names of its own.
        self._tried: dict[str, None] = {}
        self._tried_lock = threading.Lock()

    # -- the contract -------------------------------------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        """One listing more when the name may be taken already."""
        if not 0 < len(filename) <= LONGEST_NAME:
            raise InvalidKey(f"a name has 1 to {LONGEST_NAME} characters")
        with self._account(SECONDS) as account:
            before: list[Node] = []
            if self._may_be_taken(filename):
                before = self._list(account).names.get(filename, [])
                for node in before:
                    if account.holds(node, file_data):
                        return _locator(node)
            stored = self._upload(account, file_data, filename)
            for node in before:
                account.remove(node.handle)
        return _locator(stored)

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        with self._account(SECONDS) as account:
            handle, key = self._find(account, storage_path)
            with _absent(storage_path):
                return account.download(handle, key, start, length)

    def delete_file(self, storage_path: str) -> None:
        """Past the rubbish bin. A bare name removes every file of that name."""
        with self._account(SHORT_SECONDS) as account:
            if found := _LOCATOR.match(storage_path):
                account.remove(found[1])
                return
            for node in self._list(account).names.get(storage_path, []):
                account.remove(node.handle)

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        """MEGA lists the whole account at once. Files of one name are all listed, each with its own locator."""
        with self._account(LIST_SECONDS) as account:
            listing = self._list(account)
        for name, nodes in listing.names.items():
            if name.startswith(path):
                for node in nodes:
                    yield StoredFile(_locator(node), node.size, _time(node.stamp))

    def stat_file(self, storage_path: str) -> StoredFile:
        """MEGA tells no checksum: it has never seen the bytes."""
        with self._account(SHORT_SECONDS) as account:
            handle, _key = self._find(account, storage_path)
            with _absent(storage_path):
                return StoredFile(storage_path, account.size_of(handle))

    def get_storage_info(self) -> StorageInfo:
        """Of the whole account."""
        with self._account(SHORT_SECONDS) as account:
            total, used = account.room()
        if total <= 0:  # accounts without a fixed size
            return StorageInfo(total=None, used=used, available=None)
        return StorageInfo(total=total, used=used, available=max(0, total - used))

    def prepare(self) -> None:
        """Make the folder, and those above it, where missing."""
        with self._account(SECONDS) as account:
            self._list(account, create=True)

    def probe(self) -> None:
        """Store, read and remove a tiny file; now and then look whether the folder stands where it should: one that
        somebody moved to the rubbish bin still takes files, until MEGA empties it."""
        with self._account(SHORT_SECONDS) as account:
            if clock.monotonic() - self._folder_seen >= FOLDER_SECONDS:
                listing = self._list(account)
                self._sweep(account, listing)
            node = self._upload(account, PROBE, PROBE_NAME, remember=False)
            if account.download(node.handle, node.key, 0, None) != PROBE:
                raise Corrupt("a probe read back differently")
            account.remove(node.handle)

    # The session outlives the driver: the next one for this account would have to log in again.

    # -- below it -----------------------------------------------------------------------------------------

    @contextmanager
    def _account(self, seconds: float) -> Iterator[Account]:
        """This process's session, for so long."""
        account = self._client.account(str(self.options["email"]), str(self.options["password"]))
        with account.within(seconds):
            yield account

    def _find(self, account: Account, storage_path: str) -> tuple[str, str]:
        """(handle, node key) of an object. Raises NotFound for a bare name that the folder does not have."""
        if found := _LOCATOR.match(storage_path):
            return found[1], found[2]
        nodes = self._list(account).names.get(storage_path)
        if not nodes:
            raise NotFound(storage_path)
        return nodes[0].handle, nodes[0].key

    def _may_be_taken(self, name: str) -> bool:
        with self._tried_lock:
            if name in self._tried:
                return True
        listing = self._listing
        return listing is not None and name in listing.names

    def _upload(self, account: Account, data: bytes, name: str, *, remember: bool = True) -> Node:
        if remember:
            with self._tried_lock:
                self._tried[name] = None
                if len(self._tried) > TRIED:
                    del self._tried[next(iter(self._tried))]
        listing = self._listing or self._list(account)
        try:
            return account.upload(data, name, listing.folder)
        except Misconfigured:
            if self._list(account).folder != listing.folder:
                raise Unavailable("the folder was another one until now") from None
            raise

    def _sweep(self, account: Account, listing: _Listing) -> None:
        oldest = clock.now().timestamp() - STALE_SECONDS
        for node in listing.names.get(PROBE_NAME, []):
            if node.stamp < oldest:
                account.remove(node.handle)

    def _list(self, account: Account, *, create: bool = False) -> _Listing:
        """The folder as it is now, or was at some time after this call began: callers at the same time share one
        listing. Raises Misconfigured when the folder is not there."""
        mine = next(self._tickets)
        if not self._listing_lock.acquire(timeout=SECONDS):
            raise Timeout("another listing takes too long")
        try:
            known = self._listing
            if known is not None and known.ticket > mine and not create:
                return known
            ticket = next(self._tickets)
            tree = account.tree()
            folder = self._walk(account, tree, create=create)
            listing = _Listing(ticket, folder, {})
            before = known.nodes if known is not None else {}
            for raw in tree:
                if raw.get("t") == self._client.FILE and raw.get("p") == folder:
                    self._take(account, raw, before, listing)
            for nodes in listing.names.values():
                nodes.sort(key=lambda node: (node.stamp, node.handle), reverse=True)
            self._listing = listing
            self._folder_seen = clock.monotonic()
            return listing
        finally:
            self._listing_lock.release()

    def _take(
        self, account: Account, raw: dict[str, Any], before: Mapping[str, tuple[str, Node]], listing: _Listing
    ) -> None:
        """Add a file to a listing. What stands as it stood is not decrypted again."""
        sealed = f"{raw.get('k')} {raw.get('a')}"
        known = before.get(str(raw.get("h")))
        node = known[1] if known is not None and known[0] == sealed else account.file(raw)
        if node is not None:
            listing.nodes[node.handle] = (sealed, node)
            listing.names.setdefault(node.name, []).append(node)

    def _walk(self, account: Account, tree: list[dict[str, Any]], *, create: bool) -> str:
        """The handle of the folder. Of several of one name the oldest, so that all processes agree."""
        place = next(str(raw.get("h")) for raw in tree if raw.get("t") == self._client.ROOT)
        for name in self._path:
            found = sorted(
                (int(raw.get("ts") or 0), str(raw.get("h")))
                for raw in tree
                if raw.get("t") == self._client.FOLDER
                and raw.get("p") == place
                and account.folder_name(raw) == name
            )
            if found:
                place = found[0][1]
            elif create:
                place = account.make_folder(name, place)
            else:
                raise Misconfigured(f"there is no folder {'/'.join(self._path)!r} in the account")
        return place


def _locator(node: Node) -> str:
    return f"{node.handle}.{node.key}/{node.name}"


def _time(stamp: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(stamp, UTC) if stamp > 0 else None
    except (ValueError, OverflowError, OSError):
        return None


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Say which object is not there."""
    try:
        yield
    except NotFound:
        raise NotFound(name) from None
