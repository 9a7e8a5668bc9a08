"""What is known of the providers that speak S3, seen in the requests that the SDK really makes."""

from __future__ import annotations

import base64
import hashlib
import zlib
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSResponse

from brokers.drivers.s3 import S3Broker
from brokers.drivers.s3_options import ARCHIVES, PROVIDERS
from brokers.services import InvalidOptions, check_options

pytestmark = pytest.mark.only_on("sqlite")
KEYS = {"bucket": "drive", "access_key": "k", "secret_key": "s"}
R2 = "https://0a1b.r2.cloudflarestorage.com"
# provider -> options that it needs, and where its requests go (host, path).
PLACES: dict[str, tuple[dict[str, str], str, str]] = {
    "other": ({"endpoint_url": "https://s3.example.com"}, "s3.example.com", "/drive/x"),
    "aws": ({"region": "eu-central-1"}, "drive.s3.eu-central-1.amazonaws.com", "/x"),
    "b2": ({"region": "eu-central-003"}, "drive.s3.eu-central-003.backblazeb2.com", "/x"),
    "r2": ({"endpoint_url": R2}, "0a1b.r2.cloudflarestorage.com", "/drive/x"),
    "wasabi": ({"region": "eu-central-2"}, "drive.s3.eu-central-2.wasabisys.com", "/x"),
    "minio": ({"endpoint_url": "https://minio.example.com:9000"}, "minio.example.com:9000", "/drive/x"),
    "seaweedfs": ({"endpoint_url": "https://weed.example.com:8333"}, "weed.example.com:8333", "/drive/x"),
}
each_provider = pytest.mark.parametrize("slug", PLACES)
Sent = list[Any]


def made(slug: str, **more: str) -> S3Broker:
    plain, secrets = check_options("s3", {**KEYS, "provider": slug, **PLACES[slug][0], **more})
    return S3Broker({**plain, **secrets})


class Raw(BytesIO):
    def stream(self, amount: int = 65536, **_more: Any) -> Any:
        while piece := self.read(amount):
            yield piece


def recorded(broker: S3Broker, body: bytes = b"") -> Sent:
    """Nothing leaves this machine: -> the requests, as they would have gone over the wire."""
    sent: Sent = []

    def answer(request: Any, **_more: Any) -> AWSResponse:
        sent.append(request)
        told = body if request.method == "GET" else b""
        headers = {"Content-Length": str(len(told)), "ETag": '"x"'}
        return AWSResponse(request.url, 200, headers, Raw(told))

    broker._client.meta.events.register("before-send.s3", answer)
    return sent


def headers(request: Any) -> dict[str, str]:
    found = {name.lower(): value for name, value in request.headers.items()}
    return {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in found.items()}


def test_every_provider_is_here() -> None:
    assert set(PLACES) == {*PROVIDERS, "other"}


@each_provider
def test_where_and_how_an_object_goes(slug: str) -> None:
    broker = made(slug)
    sent = recorded(broker, b"bytes")
    data = b"sealed!" * (8_388_607 // 7)  # larger than the parts in which the SDK's own transfer sends
    broker.upload_file(data, "x")
    assert broker.download_file("x") == b"bytes"
    request, read = sent
    _options, host, path = PLACES[slug]
    address = urlsplit(request.url)
    assert (address.scheme, address.netloc, address.path) == ("https", host, path)
    assert request.method == "PUT" and request.body.getvalue() == data, "one request, never in parts"
    found = headers(request)
    assert found["content-md5"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    checksums = {name: value for name, value in found.items() if "checksum" in name}
    crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    known = slug in PROVIDERS and PROVIDERS[slug].checksums
    assert checksums == ({"x-amz-checksum-crc32": crc} if known else {})
    assert not [name for name in found if "encryption" in name or "storage-class" in name]
    assert not [name for name in headers(read) if "checksum" in name]
    region = {"other": "us-east-1", "minio": "us-east-1", "seaweedfs": "us-east-1", "r2": "auto"}
    assert f"/{region.get(slug) or _options['region']}/s3/aws4_request" in found["authorization"]


@each_provider
def test_what_the_operator_says_wins(slug: str) -> None:
    for style, path in (("path", "/drive/x"), ("virtual", "/x")):
        given = {"endpoint_url": "https://own.example.com", "region": "own-1", "addressing_style": style}
        broker = made(slug, **given)
        sent = recorded(broker)
        broker.delete_file("x")
        address = urlsplit(sent[0].url)
        assert address.netloc.endswith("own.example.com") and address.path == path
        assert "/own-1/s3/" in headers(sent[0])["authorization"]


@pytest.mark.parametrize(
    ("slug", "more", "expected"),
    [
        ("aws", {"storage_class": "standard_ia"}, {"x-amz-storage-class": "STANDARD_IA"}),
        ("aws", {"encryption": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        (
            "aws",
            {"encryption": "aws:kms", "kms_key": "alias/drive"},
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "alias/drive",
            },
        ),
        ("b2", {"encryption": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        ("r2", {"storage_class": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}),
        ("minio", {"storage_class": "REDUCED_REDUNDANCY"}, {"x-amz-storage-class": "REDUCED_REDUNDANCY"}),
        ("other", {"storage_class": "COLDISH"}, {"x-amz-storage-class": "COLDISH"}),
    ],
)
def test_storage_class_and_encryption(slug: str, more: dict[str, str], expected: dict[str, str]) -> None:
    broker = made(slug, **more)
    sent = recorded(broker)
    broker.upload_file(b"bytes", "x")
    found = headers(sent[0])
    told = {n: v for n, v in found.items() if "encryption" in n or "storage-class" in n}
    assert told == expected


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"provider": "r2"}, "endpoint_url", "r2.cloudflarestorage.com"),
        ({"provider": "minio"}, "endpoint_url", "minio.example.com"),
        ({"provider": "seaweedfs"}, "endpoint_url", "seaweedfs.example.com"),
        ({"provider": "b2"}, "region", "Backblaze B2 needs the region"),
        ({"provider": "aws", "region": "eu/../x"}, "region", "letters, digits"),
        ({"provider": "gopher"}, "provider", "gopher"),
        ({"provider": "aws", "storage_class": "REDUCED"}, "storage_class", "it has STANDARD, STANDARD_IA"),
        ({"provider": "r2", "endpoint_url": R2, "encryption": "AES256"}, "encryption", "leave this empty"),
        ({"provider": "b2", "region": "x-1", "encryption": "aws:kms"}, "encryption", "it has AES256"),
        ({"provider": "aws", "kms_key": "k"}, "kms_key", "aws:kms alone"),
        *(({"provider": "aws", "storage_class": name}, "storage_class", "no copies") for name in ARCHIVES),
        ({"storage_class": "GLACIER"}, "storage_class", "no copies"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        check_options("s3", {**KEYS, **options})
    assert words in " ".join(caught.value.errors[field])


def test_rows_from_before_there_were_providers_go_where_they_went() -> None:
    broker = S3Broker({**KEYS, "region": "eu-west-1", "addressing_style": "auto"})
    sent = recorded(broker)
    broker.upload_file(b"bytes", "x")
    assert urlsplit(sent[0].url).netloc == "drive.s3.eu-west-1.amazonaws.com"
    assert not [name for name in headers(sent[0]) if "checksum" in name]


@pytest.mark.parametrize("slug", ["other", "minio", "seaweedfs"])
def test_a_real_server_takes_it(seaweedfs: Any, slug: str) -> None:
    options = {**seaweedfs.options(seaweedfs.new_bucket(f"as-{slug}")), "provider": slug}
    options.pop("addressing_style", None)
    plain, secrets = check_options("s3", options)
    broker = S3Broker({**plain, **secrets})
    broker.prepare()
    data = bytes(range(256)) * 5000
    broker.upload_file(data, "cs/ab/x")
    assert broker.download_file("cs/ab/x") == data
    assert broker.download_file("cs/ab/x", 700, 5) == data[700:705]
    assert [f.path for f in broker.list_files("cs/")] == ["cs/ab/x"]
    assert broker.stat_file("cs/ab/x").checksum == f"md5:{hashlib.md5(data).hexdigest()}"
    broker.delete_file("cs/ab/x")
    assert not list(broker.list_files())
    broker.close()
