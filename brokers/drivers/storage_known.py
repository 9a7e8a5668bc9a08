"""What can be done better with some storage classes than Django's Storage interface allows, by the dotted path of
the class or of one that it inherits from: deadlines, no retries of their own, and a rename that makes writes atomic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 25.0


def _as_it_is(storage: Any) -> None:
    """Nothing is known of it."""


@dataclass(frozen=True)
class Known:
    """`start` is called once with each new instance. `replace(storage, source, target)` moves a file over another in
    one step; None where the class cannot, and a save must then be atomic by itself."""

    start: Callable[[Any], None] = _as_it_is
    replace: Callable[[Any, str, str], None] | None = None


def _start_azure(storage: Any) -> None:
    """The SDK tries again by itself, for minutes, and a connection string leaves no way to say no to that."""
    from azure.storage.blob import BlobServiceClient

    options = {
        "retry_total": 0,
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": ANSWER_SECONDS,
        **(storage.client_options or {}),
    }
    storage.client_options = options
    storage.timeout = int(ANSWER_SECONDS)
    if storage.connection_string is not None:
        storage._service_client = BlobServiceClient.from_connection_string(
            storage.connection_string, **options
        )


def _start_sftp(storage: Any) -> None:
    """No step of a connection has a deadline of its own in paramiko."""
    storage.params = {
        "timeout": CONNECT_SECONDS,
        "banner_timeout": CONNECT_SECONDS,
        "auth_timeout": CONNECT_SECONDS,
        "channel_timeout": CONNECT_SECONDS,
        # Keys and agents of whoever runs this are none of the operator's options.
        "allow_agent": False,
        "look_for_keys": False,
        **storage.params,
    }
    storage.sftp.get_channel().settimeout(ANSWER_SECONDS)


def _replace_sftp(storage: Any, source: str, target: str) -> None:
    old, new = storage._remote_path(source), storage._remote_path(target)
    folder = new.rpartition("/")[0]
    if folder and not storage._path_exists(folder):
        try:
            storage._mkdir(folder)
        except OSError:
            if not storage._path_exists(folder):  # another was faster
                raise
    storage.sftp.posix_rename(old, new)


KNOWN = {
    "storages.backends.azure_storage.AzureStorage": Known(start=_start_azure),
    "storages.backends.sftpstorage.SFTPStorage": Known(start=_start_sftp, replace=_replace_sftp),
}


def known(cls: type) -> Known:
    for base in cls.__mro__:
        if (found := KNOWN.get(f"{base.__module__}.{base.__qualname__}")) is not None:
            return found
    return Known()
