"""What can be done better with some storage classes than Django's Storage interface allows, by the dotted path of
the class or of one that it inherits from: deadlines, no retries of their own, connections to checked addresses only
(brokers/endpoint.py), and a rename that makes writes atomic."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from brokers.endpoint import guard_requests, open_socket
from brokers.errors import Misconfigured

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
    import requests
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import BlobServiceClient

    session = requests.Session()
    guard_requests(session)
    options = {
        "transport": RequestsTransport(session=session),
        "permit_redirects": False,
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
    storage._connect = partial(_connect_sftp, storage)
    storage._mkdir = partial(_mkdir_below, storage, storage._mkdir)
    storage.sftp.get_channel().settimeout(ANSWER_SECONDS)


def _connect_sftp(storage: Any) -> None:
    """As the class connects, but to a checked address, and to no server whose key is not in the file of known hosts:
    the class takes any key of a server that it meets for the first time, and each process does so anew."""
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, *_about: Any) -> None:
            raise Misconfigured(
                "the server's key is not in the file of known hosts; check it and put it there"
            )

    storage._ssh = client = paramiko.SSHClient()
    try:
        client.load_host_keys(str(Path(storage.known_host_file or "~/.ssh/known_hosts").expanduser()))
    except OSError:
        raise Misconfigured(
            "the file of known hosts cannot be read: known_host_file says where it is"
        ) from None
    client.set_missing_host_key_policy(Refuse())
    port = int(storage.params.get("port", 22))
    client.connect(
        storage.host,
        **{**storage.params, "port": port, "sock": open_socket(storage.host, port, CONNECT_SECONDS)},
    )
    storage._sftp = client.open_sftp()


def _mkdir_below(storage: Any, mkdir: Callable[[str], None], path: str) -> None:
    """The class makes every folder that is missing, also the root: it would fill the empty folder where a disk is
    not mounted."""
    root = posixpath.normpath(storage.root_path) if storage.root_path else ""
    if root and f"{root}/".startswith(f"{posixpath.normpath(path)}/"):
        raise FileNotFoundError(root)
    mkdir(path)


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
