"""Broker "s3": a bucket of any S3-compatible provider.

The client and its credentials come from django-storages; the calls are made here, one request each, because
its file class reads whole objects, hands uploads to the managed (multipart) transfer, and takes an outage for
absence. Retries are off: they live in `brokers/layers/retry.py`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from brokers import endpoint
from brokers.driver import MAX_OBJECT_SIZE, CloudBroker, StorageInfo, StoredFile
from brokers.drivers.s3_options import S3Options, endpoint_of, provider_of, region_of, style_of
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
from brokers.names import PROBE_NAME

CONNECT_SECONDS = 5
READ_SECONDS = 25
CONNECTIONS = 32
_MD5 = re.compile(r"[0-9a-f]{32}\Z")

# Error codes that mean the same whatever the status they come with.
_CODES: dict[str, type[BrokerError]] = {
    "NoSuchBucket": Misconfigured,
    "InvalidBucketName": Misconfigured,
    "PermanentRedirect": Misconfigured,
    "AuthorizationHeaderMalformed": Misconfigured,
    "IllegalLocationConstraintException": Misconfigured,
    "NoSuchKey": NotFound,
    "InvalidRange": RangeError,
    "AccessDenied": Unauthorized,
    "AllAccessDisabled": Unauthorized,
    "AccountProblem": Unauthorized,
    "ExpiredToken": Unauthorized,
    "InvalidAccessKeyId": Unauthorized,
    "InvalidToken": Unauthorized,
    "NotSignedUp": Unauthorized,
    "SignatureDoesNotMatch": Unauthorized,
    "RequestTimeTooSkewed": ClockSkewed,
    "QuotaExceeded": OutOfSpace,
    "InsufficientStorage": OutOfSpace,
    "XMinioStorageFull": OutOfSpace,
    "XMinioAdminBucketQuotaExceeded": OutOfSpace,
    "EntityTooLarge": TooLarge,
    "KeyTooLongError": InvalidKey,
    "InvalidObjectName": InvalidKey,
    "XMinioInvalidObjectName": InvalidKey,
    "SlowDown": RateLimited,
    "SlowDownRead": RateLimited,
    "SlowDownWrite": RateLimited,
    "Throttling": RateLimited,
    "ThrottlingException": RateLimited,
    "TooManyRequests": RateLimited,
    "RequestLimitExceeded": RateLimited,
    "BandwidthLimitExceeded": RateLimited,
    "RequestTimeout": Timeout,
    # The bytes that came in were not the ones that were sent: the line, not the object, is at fault.
    "BadDigest": Unavailable,
    "IncompleteBody": Unavailable,
    "OperationAborted": Unavailable,
    "InternalError": Unavailable,
    "ServiceUnavailable": Unavailable,
}
_TEXTS = {
    "NoSuchBucket": "there is no such bucket",
    "PermanentRedirect": "the bucket lies in another region or at another endpoint",
    "AuthorizationHeaderMalformed": "the region is wrong",
    "InvalidAccessKeyId": "the access key is not known",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the credentials have expired",
    "RequestTimeTooSkewed": "the clock of this machine and the provider's differ too much",
    "BadDigest": "the bytes changed on the way",
}
_STATUS: dict[int, type[BrokerError]] = {
    301: Misconfigured,
    307: Misconfigured,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: Timeout,
    409: Unavailable,
    413: TooLarge,
    416: RangeError,
    429: RateLimited,
    503: RateLimited,
    504: Timeout,
    507: OutOfSpace,
}


class S3Broker(CloudBroker):
    slug = "s3"
    label = "S3-compatible bucket"
    OptionsForm = S3Options
    secret_options = frozenset({"secret_key"})
    list_page = 1000

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        from botocore.config import Config
        from storages.backends.s3 import S3Storage

        storage = S3Storage(
            bucket_name=self.options["bucket"],
            access_key=self.options["access_key"],
            secret_key=self.options["secret_key"],
            security_token=None,
            session_profile=None,
            endpoint_url=endpoint_of(self.options),
            region_name=region_of(self.options),
            client_config=Config(
                signature_version="s3v4",
                s3={"addressing_style": style_of(self.options)},
                # Many providers refuse the checksums that newer SDKs add; ours are in Content-MD5 and SHA-256, and
                # in a header of `_put_arguments` where the provider is known to take it.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=CONNECTIONS,
            ),
        )
        # One client for all threads; the storage would make a session per thread.
        self._client = storage.connection.meta.client
        endpoint.guard_botocore(self._client)
        self._client.meta.events.register_last("before-parameter-build.s3", _stay_here)
        self._bucket = storage.bucket_name
        self._checksums = provider_of(self.options).checksums
        prefix = str(self.options.get("prefix") or "")
        self._prefix = f"{prefix}/" if prefix else ""

    # -- the contract -------------------------------------------------------------------------------------

    def upload_file(self, file_data: bytes, filename: str) -> str:
        digest = hashlib.md5(file_data, usedforsecurity=False).digest()
        with self._errors():
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._key(filename),
                Body=file_data,
                ContentLength=len(file_data),
                ContentMD5=base64.b64encode(digest).decode("ascii"),
                ContentType="application/octet-stream",
                **self._put_arguments(file_data),
            )
        return filename

    def _put_arguments(self, file_data: bytes) -> dict[str, str]:
        found = {
            "StorageClass": self.options.get("storage_class"),
            "ServerSideEncryption": self.options.get("encryption"),
            "SSEKMSKeyId": self.options.get("kms_key"),
        }
        if self._checksums:  # the provider keeps it with the object, whatever becomes of its ETag
            found["ChecksumCRC32"] = base64.b64encode(zlib.crc32(file_data).to_bytes(4, "big")).decode(
                "ascii"
            )
        return {name: str(value) for name, value in found.items() if value}

    def download_file(self, storage_path: str, start: int = 0, length: int | None = None) -> bytes:
        arguments = {}
        if start or length is not None:
            end = "" if length is None else str(start + length - 1)
            arguments["Range"] = f"bytes={start}-{end}"
        most = MAX_OBJECT_SIZE if length is None else length
        try:
            with self._errors(storage_path):
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._key(storage_path), **arguments
                )
                whole = bool(arguments) and answer["ResponseMetadata"]["HTTPStatusCode"] == 200
                with answer["Body"] as body:
                    # Never more than was asked for, whatever the provider sends.
                    data: bytes = body.read((MAX_OBJECT_SIZE if whole else most) + 1)
        except RangeError:
            if start == 0 and arguments:
                return b""  # any range of an empty object is refused; from 0 it is just empty
            raise
        if len(data) < min(most, int(answer.get("ContentLength", 0))):
            raise Unavailable("the answer ended before its end")
        if whole:  # a provider that does not know ranges
            if len(data) > MAX_OBJECT_SIZE:
                raise Corrupt(f"more came than the {MAX_OBJECT_SIZE} bytes that an object may have")
            if start and start >= len(data):
                raise RangeError(f"{storage_path} has {len(data)} bytes")
            return data[start:] if length is None else data[start : start + length]
        if len(data) > most:
            raise Corrupt(f"more than the {most} bytes that were asked for came")
        return data

    def delete_file(self, storage_path: str) -> None:
        key = self._key(storage_path)
        try:
            with self._errors(storage_path):
                answer = self._client.delete_object(Bucket=self._bucket, Key=key)
                if answer.get("DeleteMarker") or answer.get("VersionId"):
                    self._purge(key)
        except NotFound:
            return

    def _purge(self, key: str) -> None:
        """A bucket that keeps versions only hides what is deleted: remove every version of this key."""
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=key)
        for page in pages:
            for version in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                if version["Key"] == key:
                    self._client.delete_object(Bucket=self._bucket, Key=key, VersionId=version["VersionId"])

    def list_files(self, path: str = "") -> Iterator[StoredFile]:
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket,
                Prefix=self._prefix + path,
                PaginationConfig={"PageSize": self.list_page},
            )
            for page in pages:
                _check_listing(page)
                for entry in page.get("Contents", []):
                    name = str(entry["Key"]).removeprefix(self._prefix)
                    if name and not name.endswith("/"):  # a "folder" that some tool has made
                        yield StoredFile(name, int(entry["Size"]), _utc(entry.get("LastModified")))

    def stat_file(self, storage_path: str) -> StoredFile:
        with self._errors(storage_path):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key(storage_path))
        etag = str(answer.get("ETag", "")).strip('"').lower()
        # The ETag is the MD5 of the bytes only for single puts that are not sealed with a customer's key.
        plain = answer.get("ServerSideEncryption") in (None, "AES256") and not answer.get(
            "SSECustomerAlgorithm"
        )
        checksum = f"md5:{etag}" if plain and _MD5.match(etag) else None
        return StoredFile(
            storage_path, int(answer["ContentLength"]), _utc(answer.get("LastModified")), checksum
        )

    def get_storage_info(self) -> StorageInfo:
        """S3 has no way to ask."""
        return StorageInfo(total=None, used=None, available=None)

    def prepare(self) -> None:
        with self._errors():
            self._client.head_bucket(Bucket=self._bucket)

    def probe(self) -> None:
        """Write one tiny object, always the same."""
        try:
            self.upload_file(b"CloudStore probe\n", PROBE_NAME)
        except Unauthorized as error:
            # Keys that may list but not write make the place read-only; keys that may do neither are revoked.
            with self._errors():
                _check_listing(
                    self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
                )
            raise ReadOnly(str(error)) from error

    def close(self) -> None:
        self._client.close()

    # -- below it -----------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        if not name or len((self._prefix + name).encode("utf-8", "surrogatepass")) > 1024:
            raise InvalidKey("a key has 1 to 1024 bytes")
        return self._prefix + name

    @contextmanager
    def _errors(self, name: str | None = None) -> Iterator[None]:
        """Name what the SDK raises. With the object's `name`, an answer "not there" is asked about once more:
        404 also comes from a bucket that is gone."""
        from botocore import exceptions as sdk

        try:
            yield
        except BrokerError:
            raise
        except sdk.ClientError as error:
            named = _named(error.response)
            if isinstance(named, NotFound):
                if name is None:
                    raise Misconfigured("there is no such bucket") from error
                if str(error.response.get("Error", {}).get("Code")) != "NoSuchKey":
                    self._confirm_bucket()
                raise NotFound(name) from error
            raise named from error
        except (sdk.ReadTimeoutError, sdk.ConnectTimeoutError) as error:
            raise Timeout("the provider does not answer") from error
        except (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.InvalidRegionError) as error:
            raise Misconfigured("the access key, the secret key or the region cannot be used") from error
        except sdk.ParamValidationError as error:
            raise InvalidKey("the bucket's or the object's name cannot be used") from error
        except sdk.SSLError as error:
            raise Unavailable("no trusted TLS connection to the provider") from error
        except sdk.BotoCoreError as error:
            if refused := endpoint.refusal(error):
                raise refused from error
            raise Unavailable(f"no proper answer from the provider ({type(error).__name__})") from error
        except (OSError, ValueError) as error:
            # ValueError: an answer that is not S3's at all, where botocore does not notice itself.
            raise Unavailable(f"no proper answer from the provider ({type(error).__name__})") from error

    def _confirm_bucket(self) -> None:
        with self._errors():
            self._client.head_bucket(Bucket=self._bucket)


def _stay_here(params: Any, context: dict[str, Any], **_more: Any) -> None:
    """Keep the SDK from following redirects to other regions: it asks again without end where a provider answers
    each question with one, and credentials go nowhere else than where the operator said."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _check_listing(page: Mapping[str, Any]) -> None:
    """A page of something else (a sign-in page, a proxy's apology) parses as a listing of nothing, which would
    read as an empty bucket."""
    if "IsTruncated" not in page:
        raise Unavailable("the answer is no listing")


def _named(response: Mapping[str, Any]) -> BrokerError:
    """Our error for S3's; the provider's own message is left out, it may quote what it was sent."""
    code = str(response.get("Error", {}).get("Code", ""))
    about = response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    kind = _CODES.get(code) or _STATUS.get(status)
    if kind is None:
        kind = Unavailable if status >= 500 or status < 400 else Misconfigured
    shown = code if code and not code.isdecimal() else f"status {status}"
    text = _TEXTS.get(code) or f"the provider answered {shown[:60]}"
    if kind is Misconfigured and status == 501:
        text = "the provider does not know this call"
    if kind is RateLimited:
        return RateLimited(text, endpoint.retry_after(about.get("HTTPHeaders", {}).get("retry-after")))
    return kind(text)


def _utc(value: Any) -> datetime | None:
    return value.astimezone(UTC) if isinstance(value, datetime) else None
