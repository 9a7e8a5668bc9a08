"""Broker "gcs": a bucket of Google Cloud Storage, by its JSON API.

The SDK's own client makes the calls, one request each, without its retries. django-storages' GoogleCloudStorage
is not used: it cannot be told an endpoint or a timeout, follows the variable STORAGE_EMULATOR_HOST, and its file
class reads whole objects. With a service account's key each hour's token is signed here (a self-signed JWT,
google.aip.dev/auth/4111), so that no token endpoint is asked.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from brokers import clock
from brokers.driver import MAX_OBJECT_SIZE, CloudBroker, StorageInfo, StoredFile
from brokers.drivers.gcs_options import ENDPOINT, GoogleCloudOptions
from brokers.endpoint import guard_requests, retry_after
from brokers.errors import (
    BrokerError,
    ClockSkewed,
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
from brokers.names import PROBE_NAME, is_object_key

CONNECT_SECONDS = 5.0
READ_SECONDS = 25.0
CONNECTIONS = 32
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# A signed token is refused when the clocks differ by more than about this, in seconds.
SKEW = 300
LISTING = "kind,nextPageToken,items(name,size,updated,md5Hash)"
VERSIONS = "kind,nextPageToken,items(name,generation)"

# Reasons in the error body that say more than the status (cloud.google.com/storage/docs/json_api/v1/status-codes).
_REASONS: dict[str, tuple[type[BrokerError], str]] = {
    "rateLimitExceeded": (RateLimited, "the provider asks to slow down"),
    "userRateLimitExceeded": (RateLimited, "the provider asks to slow down"),
    "quotaExceeded": (RateLimited, "a quota of the project is used up"),
    "retentionPolicyNotMet": (Misconfigured, "the bucket's retention policy forbids to delete objects"),
    "objectUnderActiveHold": (Misconfigured, "an object is held in the bucket and cannot be deleted"),
    "userProjectMissing": (Misconfigured, "the bucket bills its requesters: give a project"),
    "userProjectAccountProblem": (Misconfigured, "the project to bill cannot be used"),
    "accountDisabled": (Unauthorized, "the account is closed or not paid"),
}
_STATUS: dict[int, type[BrokerError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: Timeout,
    409: Unavailable,
    413: TooLarge,
    416: RangeError,
    429: RateLimited,
    504: Timeout,
    507: OutOfSpace,
}
_TEXTS = {
    401: "the provider does not accept the credentials",
    403: "the credentials do not permit this, or the bucket belongs to somebody else",
    429: "the provider asks to slow down",
}


class _Sink:
    """A stream that takes no more than was asked for, whatever the provider sends."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.data = bytearray()

    def write(self, piece: bytes) -> int:
        if len(self.data) + len(piece) > self._most:
            raise Corrupt(f"more than the {self._most} bytes that were asked for came")
        self.data += piece
        return len(piece)


class GoogleCloudBroker(CloudBroker):
    slug = "gcs"
    label = "Google Cloud Storage"
    OptionsForm = GoogleCloudOptions
    secret_options = frozenset({"service_account_key"})
    list_page = 1000

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        try:
            import google.cloud.storage  # noqa: F401
        except ImportError:
            raise Misconfigured(
                "driver 'gcs' needs the Python package google-cloud-storage; install it and start again"
            ) from None
        prefix = str(self.options.get("prefix") or "")
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._made: Any = None

    # -- the contract -------------------------------------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        """One request that stores nothing where the name is taken; what is there already is compared."""
        key = self._key(filename)
        checksum = _crc32c(file_data)
        generation = 0
        while True:
            blob = self._bucket.blob(key)
            if self.options.get("storage_class"):
                blob.storage_class = self.options["storage_class"]
            try:
                with self._errors():
                    blob.upload_from_string(
                        file_data,
                        content_type="application/octet-stream",
                        if_generation_match=generation,
                        checksum="crc32c",  # sent along: the provider refuses other bytes
                        **self._once(),
                    )
            except _Taken:
                there = self._about(filename)
                if there.size == len(file_data) and there.crc32c == checksum:
                    return filename
                if generation or is_object_key(filename):
                    raise Corrupt(f"{filename} holds other bytes already; they stay") from None
                generation = int(there.generation)  # the marker, a snapshot: these may be written anew
                continue
            break
        with self._errors():
            if blob.crc32c != checksum or blob.size != len(file_data):
                # Not what an object of ours may be: it goes again, and the call can be repeated.
                self._remove(key, blob.generation)
                raise Unavailable("the provider stored other bytes than it was sent")
        if generation:
            self._remove(key, generation)  # a bucket with versions has kept it
        return filename

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        ranged = bool(start) or length is not None
        most = MAX_OBJECT_SIZE - start if length is None else length
        sink = _Sink(max(most, 0))
        blob = self._bucket.blob(self._key(storage_path))
        try:
            with self._errors(storage_path):
                blob.download_to_file(
                    sink,
                    start=start if ranged else None,
                    end=None if length is None else start + length - 1,
                    raw_download=True,
                    checksum="crc32c",  # compared where the whole object comes
                    **self._once(),
                )
        except RangeError:
            if start == 0:
                return b""  # any range of an empty object is refused; from 0 it is just empty
            raise
        return bytes(sink.data)

    def delete_file(self, storage_path: str) -> None:
        """Remove every generation of the object: a bucket that keeps versions only hides what is deleted. None in
        the listing means that the object is not there, and that the bucket is."""
        key = self._key(storage_path)
        with self._errors():
            for page in self._pages(prefix=key, versions="true", fields=VERSIONS):
                for blob in page:
                    if blob.name != key:
                        return  # sorted by name: the shortest comes first
                    self._remove(key, blob.generation)

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        with self._errors():
            for page in self._pages(prefix=self._prefix + path, fields=LISTING, page_size=self.list_page):
                for blob in page:
                    name = str(blob.name).removeprefix(self._prefix)
                    if name and not name.endswith("/"):  # a "folder" that some tool has made
                        yield _stored(name, blob)

    def stat_file(self, storage_path: str) -> StoredFile:
        blob = self._about(storage_path)
        with self._errors():
            return _stored(storage_path, blob)

    def get_storage_info(self) -> StorageInfo:
        """A bucket has no capacity, and what it holds is told only by Google's monitoring, a day late."""
        return StorageInfo(total=None, used=None, available=None)

    def prepare(self) -> None:
        self._confirm_bucket()

    def probe(self) -> None:
        """Write one tiny object, always the same. Permission to write is checked before its being there is."""
        try:
            self.upload_file(b"CloudStore probe\n", PROBE_NAME)
        except Unauthorized as error:
            # Credentials that may list but not write make the place read-only; else they are wrong or revoked.
            self._confirm_bucket()
            raise ReadOnly(str(error)) from error

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.client.close()

    # -- below it -----------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        key = self._prefix + name
        if not name or len(key.encode("utf-8", "surrogatepass")) > 1024 or "\r" in key or "\n" in key:
            raise InvalidKey("a key has 1 to 1024 bytes and no line breaks")
        return key

    @property
    def _bucket(self) -> Any:
        """Made on first use, one for all threads: finding this machine's credentials may ask the network."""
        with self._lock:
            if self._made is None:
                with self._errors():
                    self._made = self._make()
            return self._made

    def _make(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.transport.requests import AuthorizedSession, Request
        from google.cloud.storage import Client
        from requests.adapters import HTTPAdapter

        kind = self.options.get("credentials") or "key"
        credentials: Any
        if kind == "key":
            from google.auth import jwt

            credentials = jwt.Credentials.from_service_account_info(
                json.loads(self.options.get("service_account_key") or "{}"),
                audience=None,
                additional_claims={"scope": SCOPE},
            )
        elif kind == "ambient":
            import google.auth

            credentials, _project = google.auth.default(scopes=[SCOPE])
        else:
            credentials = AnonymousCredentials()
        # No second try after a 401, and no way to another address than the operator's.
        session = AuthorizedSession(credentials, max_refresh_attempts=0, auth_request=Request())
        session.hooks["response"].append(_check_range)
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0))
        guard_requests(session)
        client = Client(
            project="none",  # only for calls about whole projects, which are not made here
            credentials=credentials,
            _http=session,
            client_options={"api_endpoint": self.options.get("endpoint_url") or ENDPOINT},
        )
        # Else the SDK asks for the bucket's description beside the first calls, in threads of its own, for its traces.
        client._bucket_metadata_cache = None
        return client.bucket(self.options["bucket"], user_project=self.options.get("project") or None)

    def _once(self) -> dict[str, Any]:
        return {"timeout": (CONNECT_SECONDS, READ_SECONDS), "retry": None}

    def _about(self, name: str) -> Any:
        blob = self._bucket.blob(self._key(name))
        with self._errors(name):
            blob.reload(**self._once())
            if blob.size is None:
                raise Unavailable("the answer is no description of an object")
        return blob

    def _remove(self, key: str, generation: Any) -> None:
        try:
            with self._errors(key):
                self._bucket.blob(key, generation=generation).delete(**self._once())
        except NotFound:
            return

    def _pages(self, **arguments: Any) -> Iterator[Any]:
        """Every page of a listing. A page of something else would read as an empty bucket."""
        bucket = self._bucket
        for page in bucket.client.list_blobs(bucket, **arguments, **self._once()).pages:
            if page.raw_page.get("kind") != "storage#objects":
                raise Unavailable("the answer is no listing")
            yield page

    def _confirm_bucket(self) -> None:
        """By a listing: reading the bucket's own description takes a permission that is not needed else."""
        with self._errors():
            next(self._pages(prefix=self._prefix, max_results=1, fields=LISTING), None)

    @contextmanager
    def _errors(self, name: str | None = None) -> Iterator[None]:
        """Name what the SDK raises. With the object's `name`, an answer "not there" is asked about once more:
        404 also comes from a bucket that is gone."""
        import requests
        import urllib3
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

        try:
            yield
        except BrokerError:
            raise
        except (GoogleAPICallError, InvalidResponse) as error:
            named = _named(error)
            if isinstance(named, NotFound):
                if name is None:
                    raise Misconfigured("there is no such bucket") from error
                self._confirm_bucket()
                raise NotFound(name) from error
            if isinstance(named, Unauthorized):
                self._forget_token()
            raise named from error
        except DataCorruption as error:
            raise Unavailable("the bytes changed on the way: their CRC32C is another") from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError, auth.TimeoutError) as error:
            raise Timeout("the provider does not answer") from error
        except auth.TransportError as error:
            raise Unavailable("the place that gives out tokens does not answer") from error
        except auth.RefreshError as error:
            if error.retryable:
                raise Unavailable("the place that gives out tokens does not answer") from error
            raise Unauthorized("no token is given for these credentials") from error
        except auth.MalformedError as error:
            raise Misconfigured("the service account's key cannot be used") from error
        except auth.DefaultCredentialsError as error:
            raise Misconfigured("this machine has no credentials for Google Cloud") from error
        except auth.GoogleAuthError as error:
            raise Misconfigured("the credentials cannot be used") from error
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise Unavailable(f"no proper answer from the provider ({type(error).__name__})") from error
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # An answer that is not this API's at all, where the SDK does not notice itself.
            raise Unavailable(f"the answer makes no sense ({type(error).__name__})") from error

    def _forget_token(self) -> None:
        """Let the next call get a new one: this one may have been revoked."""
        made = self._made
        if made is not None:
            made.client._credentials.token = None


def _check_range(response: Any, **_more: Any) -> None:
    """A whole object, or another part, in place of the range that was asked for would be taken for it."""
    asked = str(response.request.headers.get("range", "")).removeprefix("bytes=").partition("-")[0]
    if asked and (
        response.status_code == 200
        or (
            response.status_code == 206
            and not response.headers.get("Content-Range", "").startswith(f"bytes {asked}-")
        )
    ):
        raise Unavailable("another range came than was asked for")


class _Taken(Unavailable):
    """The name holds an object already. Does not leave this module."""


def _named(error: Any) -> BrokerError:
    """Our error for Google's; the provider's own message is left out, it may quote what it was sent."""
    response = getattr(error, "response", None)
    status = int(getattr(response, "status_code", 0) or getattr(error, "code", 0) or 0)
    headers = getattr(response, "headers", {})
    kind, text = _STATUS.get(status), _TEXTS.get(status, f"the provider answered status {status}")
    if status == 412:
        return _Taken()
    if 400 <= status < 500 and status != 404:
        found = _REASONS.get(_reason(response))
        if found is not None:
            kind, text = found
    if status == 400 and "hash" in str(getattr(response, "text", "")).lower():
        return Unavailable("the bytes changed on the way")
    if kind is None:
        kind = Misconfigured if 400 <= status < 500 else Unavailable
    if status == 401 and _skewed(headers.get("Date")):
        return ClockSkewed("the clock of this machine and the provider's differ too much")
    if kind is RateLimited:
        return RateLimited(text, retry_after(headers.get("Retry-After")))
    return kind(text)


def _reason(response: Any) -> str:
    """`error.errors[0].reason` of the error body; "" where the body says none."""
    try:
        return str(response.json()["error"]["errors"][0]["reason"])
    except (AttributeError, ValueError, LookupError, TypeError):
        return ""


def _skewed(date: str | None) -> bool:
    try:
        return abs((parsedate_to_datetime(date or "") - clock.now()).total_seconds()) > SKEW
    except (ValueError, TypeError):
        return False


def _crc32c(data: bytes) -> str:
    """As Google writes it: base64 of the big-endian number."""
    import google_crc32c

    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode("ascii")


def _stored(name: str, blob: Any) -> StoredFile:
    """`md5Hash` is lacking on objects that were composed of others."""
    md5 = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else None
    updated = blob.updated
    return StoredFile(
        name,
        int(blob.size),
        updated.astimezone(UTC) if isinstance(updated, datetime) else None,
        f"md5:{md5}" if md5 else None,
    )
