"""Raw bytes by path: round trips, ranges, validators, refusals."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.http.response import HttpResponseBase
from rest_framework.test import APIClient

from accounts import quota
from accounts.models import User
from brokers import open as open_module
from brokers.errors import Unauthorized
from brokers.models import Broker, Health
from replication import policy
from replication.errors import ContentDamaged
from replication.seal import SEGMENT_SIZE
from tests.brokers.conftest import faulty
from tests.cast import Api
from vfs import fsck, tree
from vfs.models import Node, Upload

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("two")]
FILES = "/api/v1/files"


@pytest.fixture
def client(alice: User, api: Api) -> APIClient:
    return api(alice)


def upload(client: APIClient, path: str, data: bytes, **headers: Any) -> Any:
    headers.setdefault("Content-Length", str(len(data)))
    return client.generic("PUT", f"{FILES}/{path}", data, "application/octet-stream", headers=headers)


def bytes_of(response: HttpResponseBase) -> bytes:
    return b"".join(response) if response.streaming else response.content  # type: ignore[attr-defined]


def download(client: APIClient, path: str, **headers: str) -> tuple[Any, bytes]:
    response = client.get(f"{FILES}/{path}", headers=headers)
    return response, bytes_of(response)


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, bytes_of(response)
    assert response.headers["Content-Type"] == "application/problem+json"
    body = json.loads(bytes_of(response))
    assert (body["code"], body["status"]) == (code, status)
    assert body["title"]
    assert body["detail"]
    return body


class Stream(io.RawIOBase):
    """A body as the server hands it over: pieces of any size, then nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 70_000) if size > 0 else size)


def send(client: APIClient, path: str, data: bytes, method: str = "PUT", **meta: str | None) -> Any:
    """A request whose body and length are as told, however wrong."""
    return client.generic(
        method,
        f"{FILES}/{path}",
        **{"wsgi.input": Stream(data), "CONTENT_LENGTH": "", **meta},  # type: ignore[arg-type]
    )


SIZES = [0, 1, 262_143, 262_145, SEGMENT_SIZE - 1, SEGMENT_SIZE, SEGMENT_SIZE + 1, 2 * SEGMENT_SIZE + 12_345]


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(client: APIClient, alice: User, size: int) -> None:
    data = os.urandom(size)
    response = upload(client, "some/folder/file.bin", data)
    assert response.status_code == 201
    node = response.json()
    sha256 = hashlib.sha256(data).hexdigest()
    assert (node["size"], node["sha256"], node["etag"]) == (size, sha256, f'"{sha256}"')
    assert (node["path"], node["name"], node["kind"]) == ("/some/folder/file.bin", "file.bin", "file")
    assert response.headers["Location"] == f"{FILES}/some/folder/file.bin"
    assert node["copies"] == {
        "wanted": 2,
        "stored": 2,
        "state": "ok",
        "brokers": ["a", "b"],
        "text": "2 of 2: a, b",
    }
    response, body = download(client, "some/folder/file.bin")
    assert body == data
    assert response.headers["Content-Length"] == str(size)
    assert response.headers["ETag"] == f'"{sha256}"'
    head = client.head(f"{FILES}/some/folder/file.bin")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "ETag", "Last-Modified", "Content-Type", "Accept-Ranges"):
        assert head.headers[name] == response.headers[name]
    assert quota.usage(alice).used == size
    assert fsck.check() == []


def test_second_put_is_a_new_version(client: APIClient, alice: User) -> None:
    assert upload(client, "f", b"one").status_code == 201
    response = upload(client, "f", b"two")
    assert response.status_code == 200
    assert response.json()["version"] == 2
    assert "Location" not in response.headers
    assert download(client, "f")[1] == b"two"


def test_random_ranges(client: APIClient) -> None:
    data = os.urandom(SEGMENT_SIZE + 600_000)
    upload(client, "f", data)
    rng = random.Random(7)
    for _ in range(25):
        start = rng.randrange(len(data))
        end = rng.randrange(start, min(len(data), start + rng.choice([10, 300_000, len(data)])))
        response, body = download(client, "f", Range=f"bytes={start}-{end}")
        assert response.status_code == 206
        assert body == data[start : end + 1]
        assert response.headers["Content-Range"] == f"bytes {start}-{end}/{len(data)}"
        assert response.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=2-", 206, slice(2, 10)),
        ("bytes=-3", 206, slice(7, 10)),
        ("bytes=-99", 206, slice(0, 10)),
        ("bytes=5-99", 206, slice(5, 10)),
        (f"bytes=5-{'9' * 30}", 206, slice(5, 10)),
        ("Bytes= 1-2 ", 206, slice(1, 3)),
        ("bytes=10-", 416, None),
        ("bytes=10-12", 416, None),
        (f"bytes={'9' * 30}-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=4-3", 200, slice(0, 10)),
        ("bytes=-", 200, slice(0, 10)),
        ("bytes=", 200, slice(0, 10)),
        ("bytes=9e99-", 200, slice(0, 10)),
        ("bytes=a-b", 200, slice(0, 10)),
        ("items=0-1", 200, slice(0, 10)),
        ("bytes=0-1,4-5", 200, slice(0, 10)),
        ("bytes=" + ",".join(["0-0"] * 1000), 200, slice(0, 10)),
    ],
)
def test_range_headers(client: APIClient, header: str, status: int, part: slice | None) -> None:
    data = b"0123456789"
    upload(client, "f", data)
    response, body = download(client, "f", Range=header)
    assert response.status_code == status
    if part is None:
        assert response.headers["Content-Range"] == "bytes */10"
        assert json.loads(body)["code"] == "range_not_satisfiable"
    else:
        assert body == data[part]
    assert client.head(f"{FILES}/f", headers={"Range": header}).status_code == status


def test_ranges_of_an_empty_file(client: APIClient) -> None:
    upload(client, "f", b"")
    assert download(client, "f", Range="bytes=0-")[0].status_code == 416
    assert download(client, "f", Range="bytes=-1")[0].status_code == 416


def test_validators(client: APIClient) -> None:
    etag = upload(client, "f", b"0123456789").headers["ETag"]
    modified = client.head(f"{FILES}/f").headers["Last-Modified"]
    past, future = "Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 01 Jan 2090 00:00:00 GMT"

    def status(**headers: str) -> int:
        return int(
            client.get(f"{FILES}/f", headers={k.replace("_", "-"): v for k, v in headers.items()}).status_code
        )

    assert status(If_None_Match=etag) == 304
    assert status(If_None_Match=f"W/{etag}") == 304
    assert status(If_None_Match="*") == 304
    assert status(If_None_Match='"x", ' + etag) == 304
    assert status(If_None_Match='"x"') == 200
    assert status(If_None_Match='"x"', If_Modified_Since=future) == 200  # the tag decides
    assert status(If_Modified_Since=modified) == 304
    assert status(If_Modified_Since=past) == 200
    assert status(If_Modified_Since="nonsense") == 200
    assert status(If_Match=etag) == 200
    assert status(If_Match="*") == 200
    assert status(If_Match='"x"') == 412
    assert status(If_Match=f"W/{etag}") == 412
    assert status(If_Unmodified_Since=past) == 412
    assert status(If_Unmodified_Since=modified) == 200
    assert status(If_Range=etag, Range="bytes=0-1") == 206
    assert status(If_Range='"x"', Range="bytes=0-1") == 200
    assert status(If_Range=f"W/{etag}", Range="bytes=0-1") == 200
    assert status(If_Range=modified, Range="bytes=0-1") == 200  # seconds are too coarse to be sure
    response = client.get(f"{FILES}/f", headers={"If-None-Match": etag})
    assert (response.content, response.headers["ETag"]) == (b"", etag)
    assert "Content-Type" not in response.headers


def test_conditional_put_and_delete(client: APIClient) -> None:
    problem(upload(client, "f", b"x", **{"If-Match": "*"}), 412, "precondition_failed")
    etag = upload(client, "f", b"one", **{"If-None-Match": "*"}).headers["ETag"]
    problem(upload(client, "f", b"two", **{"If-None-Match": "*"}), 412, "precondition_failed")
    problem(upload(client, "f", b"two", **{"If-Match": '"other"'}), 412, "precondition_failed")
    problem(upload(client, "f", b"two", **{"If-None-Match": etag}), 412, "precondition_failed")
    assert upload(client, "f", b"two", **{"If-Match": etag}).status_code == 200
    problem(upload(client, "f", b"three", **{"If-Match": etag}), 412, "precondition_failed")
    problem(client.delete(f"{FILES}/f", headers={"If-Match": etag}), 412, "precondition_failed")
    assert download(client, "f")[1] == b"two"
    assert Upload.objects.count() == 0


def test_delete_and_purge(client: APIClient, alice: User) -> None:
    upload(client, "a/f", b"x" * 10)
    assert client.delete(f"{FILES}/a/f").status_code == 204
    problem(download(client, "a/f")[0], 404, "not_found")
    problem(client.delete(f"{FILES}/a/f"), 404, "not_found")
    assert quota.usage(alice).used == 10
    upload(client, "a/f", b"x" * 5)
    problem(client.delete(f"{FILES}/a/f?purge=maybe"), 400, "invalid")
    assert client.delete(f"{FILES}/a/f?purge=true").status_code == 204
    assert quota.usage(alice).used == 10
    assert client.delete(f"{FILES}/a/?purge=true").status_code == 204
    assert quota.usage(alice).used == 0
    problem(client.delete(f"{FILES}/"), 409, "is_root")
    problem(client.delete(f"{FILES}?purge=true"), 409, "is_root")


def test_folders_and_files_in_each_others_place(client: APIClient) -> None:
    upload(client, "a/f", b"x")
    problem(upload(client, "a", b"x"), 409, "is_a_folder")
    problem(upload(client, "a/f/g", b"x"), 409, "not_a_folder")
    problem(upload(client, "a/", b"x"), 400, "invalid_name")
    problem(upload(client, "", b"x"), 409, "is_a_folder")
    problem(client.get(f"{FILES}/a/f/"), 404, "not_found")
    listing = client.get(f"{FILES}/a").json()
    assert [n["path"] for n in listing["children"]] == ["/a/f"]
    assert client.get(f"{FILES}/a/").json() == listing
    assert client.get(FILES).json()["children"][0]["name"] == "a"
    problem(client.get(f"{FILES}?cursor=x"), 400, "bad_cursor")
    problem(client.get(f"{FILES}?limit=0"), 400, "invalid")


def test_names_survive_every_sign(client: APIClient) -> None:
    from urllib.parse import quote

    for name in ("häuser & gärten #1.txt", "100%.txt", "%2e%2e%2f", "a?b", "日本語", "a+b;c=d", "'\"<b>"):
        response = upload(client, quote(name), b"x")
        assert response.status_code == 201, name
        assert response.json()["name"] == name
        assert client.get(response.headers["Location"]).status_code == 200


def test_nfd_is_the_same_file(client: APIClient) -> None:
    assert upload(client, "e\u0301", b"x").status_code == 201
    assert upload(client, "\u00e9", b"y").status_code == 200
    assert upload(client, "File", b"x").status_code == 201
    assert upload(client, "file", b"x").status_code == 201


def test_invalid_utf8_in_the_path(client: APIClient) -> None:
    meta = {"cloudstore.path": f"{FILES}/a\xffb", "CONTENT_LENGTH": "1"}
    problem(send(client, "a%25FFb", b"x", **meta), 400, "invalid_name")
    assert not Node.objects.filter(kind="file").exists()


# -- lengths and digests ------------------------------------------------------------------------------


def nothing(alice: User) -> None:
    assert tree.find(alice, ("f",)) is None
    assert Upload.objects.count() == 0
    assert quota.usage(alice) == quota.Usage(limit=quota.usage(alice).limit, used=0, reserved=0)


def test_short_body_is_an_aborted_upload(client: APIClient, alice: User) -> None:
    problem(send(client, "f", b"x" * 500_000, CONTENT_LENGTH="1000000"), 400, "size_mismatch")
    nothing(alice)


def test_chunked_body(client: APIClient, alice: User) -> None:
    problem(send(client, "f", b"x"), 411, "length_required")
    problem(send(client, "f", b"x" * 9, HTTP_X_EXPECTED_ENTITY_LENGTH="10"), 400, "size_mismatch")
    problem(send(client, "f", b"x" * 11, HTTP_X_EXPECTED_ENTITY_LENGTH="10"), 400, "size_mismatch")
    problem(send(client, "f", b"", HTTP_X_EXPECTED_ENTITY_LENGTH="1"), 400, "size_mismatch")
    nothing(alice)
    assert send(client, "f", b"x" * 500_000, HTTP_X_EXPECTED_ENTITY_LENGTH="500000").status_code == 201
    assert download(client, "f")[1] == b"x" * 500_000


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
def test_digests(client: APIClient, alice: User, header: str) -> None:
    meta = f"HTTP_{header.upper().replace('-', '_')}"
    data = b"x" * 300_000
    problem(upload(client, "f", data, **{header: digest(b"y")}), 400, "digest_mismatch")
    problem(upload(client, "f", data, **{header: "sha-256=:eA==:"}), 400, "bad_digest")
    problem(send(client, "f", data[:-1], **{meta: digest(data)}), 400, "digest_mismatch")
    nothing(alice)
    assert send(client, "f", data, **{meta: f"md5=:AAAA:, {digest(data)}"}).status_code == 201
    assert upload(client, "f", data, **{header: digest(data)}).status_code == 200
    assert upload(client, "f", data, **{header: "sha-512=:AAAA:"}).status_code == 200


def test_digests_that_differ(client: APIClient, alice: User) -> None:
    both = {"Repr-Digest": digest(b"x"), "Content-Digest": digest(b"y")}
    problem(upload(client, "f", b"x", **both), 400, "bad_digest")
    nothing(alice)


@pytest.mark.parametrize(
    ("length", "status", "code"),
    [
        ("-1", 400, "bad_length"),
        ("1e3", 400, "bad_length"),
        ("0x10", 400, "bad_length"),
        ("1, 1", 400, "bad_length"),
        ("9" * 18, 413, "quota_exceeded"),
        ("9" * 19, 413, "quota_exceeded"),
        ("9" * 40, 413, "bad_length"),
    ],
)
def test_wrong_lengths(client: APIClient, alice: User, length: str, status: int, code: str) -> None:
    problem(send(client, "f", b"x", CONTENT_LENGTH=length), status, code)
    problem(send(client, "f", b"x", HTTP_X_EXPECTED_ENTITY_LENGTH=length), status, code)
    nothing(alice)


def test_quota_is_asked_before_a_byte_is_read(client: APIClient, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(quota=10)

    class Untouched(Stream):
        def read(self, size: int = -1) -> bytes:
            raise AssertionError("read")

    response = client.generic(
        "PUT",
        f"{FILES}/f",
        **{"wsgi.input": Untouched(b""), "CONTENT_LENGTH": "11"},  # type: ignore[arg-type]
    )
    body = problem(response, 413, "quota_exceeded")
    assert (body["limit"], body["used"], body["needed"]) == (10, 0, 11)
    nothing(alice)


def test_bodies_that_are_not_the_file(client: APIClient, alice: User) -> None:
    problem(upload(client, "f", b"x", **{"Content-Encoding": "gzip"}), 415, "content_encoding")
    problem(upload(client, "f", b"x", **{"Content-Range": "bytes 0-0/2"}), 400, "content_range")
    nothing(alice)


def test_a_form_put_as_a_file_is_just_bytes(client: APIClient) -> None:
    body = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"
    response = client.generic("PUT", f"{FILES}/f", body, "multipart/form-data; boundary=x")
    assert response.status_code == 201
    assert download(client, "f")[1] == body


# -- brokers in trouble -------------------------------------------------------------------------------


def test_too_few_brokers(client: APIClient, alice: User, two: list[Broker], expect_log: Any) -> None:
    expect_log("Service Unavailable")
    Broker.objects.filter(pk=two[0].pk).update(health=Health.OFFLINE)
    response = upload(client, "f", b"x")
    problem(response, 503, "not_enough_brokers")
    assert int(response.headers["Retry-After"]) > 0
    nothing(alice)
    policy.change(allow_degraded=True)
    node = upload(client, "f", b"x").json()
    assert (node["copies"]["stored"], node["copies"]["wanted"]) == (1, 2)


def test_reads_fail_loudly(client: APIClient, two: list[Broker], expect_log: Any) -> None:
    expect_log("Service Unavailable", "Bad Gateway", "broker")
    upload(client, "f", b"x" * 1000)
    with faulty(two[0]) as one, faulty(two[1]) as other:
        one.fail("get", Unauthorized("revoked"))
        other.fail("get", Unauthorized("revoked"))
        problem(download(client, "f")[0], 503, "content_unavailable")
        assert client.head(f"{FILES}/f").status_code == 200  # nothing is read for that
    with faulty(two[0]) as one, faulty(two[1]) as other:
        one.flip("get", offset=20)
        assert download(client, "f")[1] == b"x" * 1000
        other.flip("get", offset=20)
        problem(download(client, "f")[0], 502, "content_damaged")


def test_damage_in_mid_stream_breaks_the_answer_off(
    client: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(client, "f", b"x" * 600_000)

    def pieces(self: Any, start: int, end: int) -> Iterator[memoryview]:
        yield memoryview(b"x" * 1000)
        raise ContentDamaged("segment 1")

    monkeypatch.setattr("replication.read.ContentReader._pieces", pieces)
    response = client.get(f"{FILES}/f")
    assert response.headers["Content-Length"] == "600000"
    with pytest.raises(ContentDamaged):
        bytes_of(response)
    open_module.forget()
