"""What only a real server shows: how bodies arrive and break off, what is on the wire."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.servers.product import Product

pytestmark = [pytest.mark.slow, pytest.mark.only_on("sqlite")]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    product = Product()
    try:
        yield product.start()
    finally:
        product.close()


@pytest.fixture(scope="module")
def token(product: Product) -> str:
    return product.token()


def raw(product: Product, head: str, *pieces: bytes, end: str = "answer") -> bytes:
    """Send bytes as they are. `end`: read the answer, close the connection, or reset it."""
    with socket.create_connection(("127.0.0.1", product.port), timeout=30) as wire:
        wire.sendall(head.replace("\n", "\r\n").encode("latin-1"))
        for piece in pieces:
            wire.sendall(piece)
        if end == "reset":
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if end != "answer":
            return b""
        answer = b""
        while data := wire.recv(65536):
            answer += data
        return answer


def head(token: str, method: str, path: str, *lines: str) -> str:
    return (
        "\n".join(
            [
                f"{method} {path} HTTP/1.1",
                "Host: localhost",
                f"Authorization: Bearer {token}",
                "Connection: close",
                *lines,
            ]
        )
        + "\n\n"
    )


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def get(product: Product, token: str, path: str, **options: Any) -> requests.Response:
    return requests.get(
        f"{product.url}/api/v1/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=60, **options
    )


def idle(product: Product, token: str) -> None:
    """No upload is under way, nothing is charged for one, and nothing of it is visible."""
    for _ in range(200):
        if get(product, token, "account").json()["usage"]["reserved"] == 0:
            break
    else:
        pytest.fail("a reservation is left")


def test_chunked_bodies(product: Product, token: str) -> None:
    data = os.urandom(1_000_000)
    pieces = [chunk(data[i : i + 100_000]) for i in range(0, len(data), 100_000)]
    chunked = ["Transfer-Encoding: chunked"]
    answer = raw(product, head(token, "PUT", "/api/v1/files/c", *chunked), *pieces, b"0\r\n\r\n")
    assert b" 411 " in answer.split(b"\r\n")[0]
    expected = [*chunked, "X-Expected-Entity-Length: 1000000"]
    answer = raw(product, head(token, "PUT", "/api/v1/files/c", *expected), *pieces, b"0\r\n\r\n")
    assert b" 201 " in answer.split(b"\r\n")[0]
    assert get(product, token, "files/c").content == data
    raw(product, head(token, "PUT", "/api/v1/files/cut", *expected), *pieces[:5], end="close")
    raw(product, head(token, "PUT", "/api/v1/files/cut", *expected), *pieces[:5], end="reset")
    raw(
        product,
        head(token, "PUT", "/api/v1/files/cut", "Content-Length: 1000000"),
        data[:400_000],
        end="close",
    )
    idle(product, token)
    assert get(product, token, "files/cut").status_code == 404


def test_wrong_lengths_on_the_wire(product: Product, token: str) -> None:
    for length in ("-1", "x", "1, 2"):
        answer = raw(
            product, head(token, "PUT", "/api/v1/files/w", f"Content-Length: {length}"), b"x", end="answer"
        )
        assert not answer or b" 400 " in answer.split(b"\r\n")[0]
    answer = raw(product, head(token, "PUT", "/api/v1/files/w", f"Content-Length: {10**18}"), b"x")
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert get(product, token, "files/w").status_code == 404


def test_paths_on_the_wire(product: Product, token: str) -> None:
    for path in ("a%FFb", "../../etc/passwd", "%2e%2e/x", "a%00b", "a%0d%0aSet-Cookie:x", "a//b"):
        answer = raw(product, head(token, "PUT", f"/api/v1/files/{path}", "Content-Length: 1"), b"x")
        assert b" 400 " in answer.split(b"\r\n")[0], path
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["code"] == "invalid_name"
    for path in ("h%C3%A4user%20%231", "100%25"):
        answer = raw(product, head(token, "PUT", f"/api/v1/files/{path}", "Content-Length: 1"), b"x")
        assert b" 201 " in answer.split(b"\r\n")[0]
        assert get(product, token, f"files/{path}").content == b"x"


def test_head_and_ranges_on_the_wire(product: Product, token: str) -> None:
    data = os.urandom(300_000)
    answer = raw(product, head(token, "PUT", "/api/v1/files/r", "Content-Length: 300000"), data)
    assert b" 201 " in answer.split(b"\r\n")[0]
    answer = raw(product, head(token, "HEAD", "/api/v1/files/r"))
    assert b"\r\ncontent-length: 300000\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    answer = raw(product, head(token, "GET", "/api/v1/files/r", "Range: bytes=299990-"))
    assert answer.split(b"\r\n\r\n", 1)[1] == data[-10:]


def test_many_downloads_that_break_off_leave_the_server_well(product: Product, token: str) -> None:
    data = os.urandom(20_000_000)
    answer = raw(product, head(token, "PUT", "/api/v1/files/big", f"Content-Length: {len(data)}"), data)
    assert b" 201 " in answer.split(b"\r\n")[0]
    for _ in range(40):  # more than there are threads
        with socket.create_connection(("127.0.0.1", product.port), timeout=30) as wire:
            wire.sendall(head(token, "GET", "/api/v1/files/big").replace("\n", "\r\n").encode())
            wire.recv(100_000)
    assert get(product, token, "files/big").content == data


def damage_fifth_segment(product: Product, name: str, *folders: str) -> None:
    """Change the last bytes of a file's fifth segment, in these brokers' folders."""
    script = (
        "from replication.models import Replica; from vfs.models import Node;"
        f"n = Node.objects.get(name={name!r});"
        "print(*[r.locator for r in Replica.objects.filter("
        "segment__content=n.version.content, segment__position=4)])"
    )
    locators = product.manage("shell", "-v", "0", "-c", script).stdout.split()
    assert len(locators) == 2
    for folder in folders:
        for locator in locators:
            for path in (product.data / "brokers" / folder).rglob(locator.rpartition("/")[2]):
                path.write_bytes(path.read_bytes()[:-100] + bytes(100))


def test_a6_damage_in_mid_stream_is_no_short_answer(product: Product, token: str) -> None:
    """A download whose later segments cannot be read ends in a broken connection, not in a whole-looking 200."""
    data = os.urandom(40_000_000)
    answer = raw(product, head(token, "PUT", "/api/v1/files/damaged", f"Content-Length: {len(data)}"), data)
    assert b" 201 " in answer.split(b"\r\n")[0]
    damage_fifth_segment(product, "damaged", "a", "b")
    response = get(product, token, "files/damaged", stream=True)
    assert response.status_code == 200
    received = b""
    with pytest.raises(requests.exceptions.RequestException):
        for piece in response.iter_content(65536):
            received += piece
    assert data.startswith(received)
    assert len(received) < len(data)
    assert get(product, token, "account").status_code == 200


@pytest.mark.parametrize("folder", ["a", "b"])
def test_a6_damage_of_one_copy_in_mid_stream_is_not_seen(product: Product, token: str, folder: str) -> None:
    """The reader goes on with the other copy: the answer is whole and right."""
    data = os.urandom(40_000_000)
    name = f"one copy {folder}"
    address = f"/api/v1/files/one%20copy%20{folder}"
    answer = raw(product, head(token, "PUT", address, f"Content-Length: {len(data)}"), data)
    assert b" 201 " in answer.split(b"\r\n")[0]
    damage_fifth_segment(product, name, folder)
    response = get(product, token, f"files/{name}")
    assert response.status_code == 200
    assert response.content == data
