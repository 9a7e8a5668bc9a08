"""Forms with files: the parser on its own, and both doors that use it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from accounts import quota
from accounts.models import User
from replication.models import Content
from replication.seal import SEGMENT_SIZE
from tests.cast import Api, Browser
from tests.replication.kit import load
from tests.vfs.test_files_api import Stream
from tests.vfs.test_names import BAD
from vfs import trash, tree
from vfs.api import multipart
from vfs.api.multipart import Multipart, boundary_of
from vfs.api.problems import Refused
from vfs.models import Node, Upload

pytestmark = pytest.mark.only_on("sqlite")

B = "boundary-123"


def form(*parts: tuple[str, bytes], boundary: str = B, end: bool = True) -> bytes:
    """A body of parts: (Content-Disposition parameters, data)."""
    out = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return out + (f"--{boundary}--\r\n".encode() if end else b"")


def parse(body: bytes, boundary: str = B, size: int = 1000) -> list[tuple[str, str | None, bytes]]:
    chunks = (body[i : i + size] for i in range(0, len(body), size))
    return [(p.name, p.filename, b"".join(p.data)) for p in Multipart(chunks, boundary.encode())]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(['name="f"; filename="x"', 'name="field"']),
            st.lists(st.sampled_from([b"\r\n", b"--", b"--x", b"\r\n--", b"-", b"\r", b"a", b"\n--x"])).map(b"".join),
        ),
        max_size=5,
    ),
    st.integers(1, 40),
)  # fmt: skip
def test_any_data_in_any_pieces(parts: list[tuple[str, bytes]], size: int) -> None:
    body = form(*parts, boundary="xyz") + b"epilogue"
    assert [data for _n, _f, data in parse(body, "xyz", size)] == [data for _h, data in parts]


def test_names() -> None:
    heads = {
        'name="a"': ("a", None),
        "name=a; filename=b.txt": ("a", "b.txt"),
        'name="a"; filename="with \\"quotes\\" and \\\\"': ("a", 'with "quotes" and \\'),
        'name="a"; filename="semi;colon=x"': ("a", "semi;colon=x"),
        'name="a"; filename="häuser 日本.txt"': ("a", "häuser 日本.txt"),
        'name="a"; filename=""': ("a", ""),
        'filename="x";name="a"': ("a", "x"),
    }
    for head, expected in heads.items():
        assert parse(form((head, b"d"))) == [(*expected, b"d")], head


GOOD = ('name="f"; filename="x"', b"data")
MALFORMED = {
    "nothing": b"",
    "no boundary": b"hello",
    "another boundary": form(GOOD, boundary="other"),
    "a preamble": b"hello\r\n" + form(GOOD),
    "a long preamble": b"x" * 100_000 + b"\r\n" + form(GOOD),
    "no end": form(GOOD, end=False),
    "end without dashes": form(GOOD, end=False) + f"--{B}".encode(),
    "cut in the data": form(GOOD)[:-25],
    "cut in the head": form(GOOD)[:40],
    "boundary goes on": form(GOOD).replace(f"--{B}\r\n".encode(), f"--{B}xyz\r\n".encode()),
    "no disposition": f"--{B}\r\nContent-Type: a/b\r\n\r\nx\r\n--{B}--".encode(),
    "attachment": form(GOOD).replace(b"form-data", b"attachment"),
    "no name": form(('filename="x"', b"")),
    "filename*": form(("name=\"f\"; filename*=UTF-8''x", b"")),
    "two names": form(('name="f"; name="g"', b"")),
    "bad parameters": form(('name="f', b"")),
    "latin-1": form(('name="f"; filename="x"', b"")).replace(b'"x"', b'"\xff"'),
    "no colon": f"--{B}\r\nContent-Disposition form-data\r\n\r\nx\r\n--{B}--".encode(),
    "header twice": f"--{B}\r\nA: 1\r\nA: 2\r\n\r\nx\r\n--{B}--".encode(),
    "long header": f"--{B}\r\nA: {'x' * 20_000}\r\n\r\nx\r\n--{B}--".encode(),
    "base64": form(GOOD).replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("size", [7, 100_000])
def test_malformed(body: bytes, size: int) -> None:
    with pytest.raises(Refused) as refused:
        parse(body, size=size)
    assert (refused.value.status, refused.value.code) == (400, "bad_multipart")


def test_too_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "PARTS_MOST", 3)
    assert len(parse(form(*[GOOD] * 3))) == 3
    with pytest.raises(Refused) as refused:
        parse(form(*[GOOD] * 4))
    assert refused.value.status == 413


def test_it_holds_no_more_than_it_must() -> None:
    def chunks() -> Iterator[bytes]:
        yield f'--{B}\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'.encode()
        for _ in range(400):
            yield bytes(262_144)
        yield f"\r\n--{B}--".encode()

    parser = Multipart(chunks(), B.encode())
    total = 0
    for part in parser:
        for piece in part.data:
            total += len(piece)
            waiting = sum(len(event) for event in parser._events if isinstance(event, bytes))
            assert len(piece) + waiting <= 2 * 262_144
    assert total == 400 * 262_144


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ('multipart/form-data; boundary="ends with space "', 400),
        ("multipart/form-data; boundary=" + "x" * 71, 400),
        ("multipart/form-data; boundary=é", 400),
        ("multipart/mixed; boundary=abc", 415),
        ("application/json", 415),
        ("", 415),
    ],
)
def test_boundaries(header: str, boundary: bytes | int) -> None:
    if isinstance(boundary, bytes):
        assert boundary_of(header) == boundary
        return
    with pytest.raises(Refused) as refused:
        boundary_of(header)
    assert refused.value.status == boundary


# -- the doors ----------------------------------------------------------------------------------------


@pytest.fixture
def client(alice: User, api: Api, two: Any) -> APIClient:
    return api(alice)


def post(client: Client, node: Node, body: bytes, length: int | None = None, **meta: str) -> Any:
    return client.generic(
        "POST",
        f"/api/v1/nodes/{node.pk}/files",
        content_type=f"multipart/form-data; boundary={B}",
        **{
            "wsgi.input": Stream(body),
            "CONTENT_LENGTH": str(len(body) if length is None else length),
            **meta,
        },  # type: ignore[arg-type]
    )


def nothing(user: User) -> None:
    assert Upload.objects.count() == 0
    assert not Node.objects.filter(kind="file").exists()
    assert not Content.objects.exclude(state=Content.State.CONDEMNED).exists()
    assert (quota.usage(user).used, quota.usage(user).reserved) == (0, 0)


def test_one_and_many_files(client: APIClient, alice: User) -> None:
    root = tree.root_of(alice)
    rng = random.Random(3)
    sizes = [0, 1, 300_000, SEGMENT_SIZE, SEGMENT_SIZE + 1]
    files = {f"file {i} ü": rng.randbytes(size) for i, size in enumerate(sizes)}
    parts = [(f'name="file"; filename="{name}"', data) for name, data in files.items()]
    response = post(client, root, form(('name="note"', b"ignored"), *parts))
    assert response.status_code == 201, response.content
    shown = response.json()["files"]
    assert [f["name"] for f in shown] == list(files)
    for name, data in files.items():
        node = tree.resolve(alice, (name,))
        assert node.version is not None
        assert load(node.version.content) == data
    assert quota.usage(alice).used == sum(sizes)
    assert quota.usage(alice).reserved == 0
    again = post(client, root, form(parts[1], parts[1]))
    assert [f["version"] for f in again.json()["files"]] == [2, 3]


@pytest.mark.parametrize("cut", [1, 5, 20, 100_000, 250_000])
def test_truncated_form(client: APIClient, alice: User, cut: int) -> None:
    """The first file is whole, and yet nothing of a form that broke off becomes visible."""
    body = form(
        ('name="f"; filename="one"', b"x" * 100_000), ('name="f"; filename="two"', os.urandom(200_000))
    )
    response = post(client, tree.root_of(alice), body[:-cut], length=len(body))
    assert response.status_code == 400, response.content
    nothing(alice)


def test_form_without_its_end(client: APIClient, alice: User) -> None:
    response = post(client, tree.root_of(alice), form(GOOD, end=False))
    assert response.json()["code"] == "bad_multipart"
    nothing(alice)


def test_chunked_form(client: APIClient, alice: User) -> None:
    root, body = tree.root_of(alice), form(GOOD)
    assert post(client, root, body, CONTENT_LENGTH="").status_code == 411
    wrong = {"CONTENT_LENGTH": "", "HTTP_X_EXPECTED_ENTITY_LENGTH": str(len(body) + 1)}
    assert post(client, root, body, **wrong).status_code == 400
    nothing(alice)
    right = {"CONTENT_LENGTH": "", "HTTP_X_EXPECTED_ENTITY_LENGTH": str(len(body))}
    assert post(client, root, body, **right).status_code == 201


@pytest.mark.parametrize("name", [n for k, n in BAD.items() if k not in {"lone surrogate", "CR", "LF"}])
def test_bad_names(client: APIClient, alice: User, name: str) -> None:
    quoted = name.replace("\\", "\\\\")
    body = form(('name="f"; filename="good"', b"x"), (f'name="f"; filename="{quoted}"', b"x"))
    response = post(client, tree.root_of(alice), body)
    assert response.status_code == 400
    assert response.json()["code"] == "invalid_name"
    nothing(alice)


def test_an_input_left_empty(client: APIClient, alice: User) -> None:
    root = tree.root_of(alice)
    assert post(client, root, form(('name="f"; filename=""', b""))).json()["code"] == "no_file"
    assert post(client, root, form(('name="f"', b"x"))).json()["code"] == "no_file"
    assert post(client, root, form(('name="f"; filename=""', b""), GOOD)).status_code == 201


def test_large_fields(client: APIClient, alice: User) -> None:
    response = post(client, tree.root_of(alice), form(('name="f"', b"x" * 300_000), GOOD))
    assert response.status_code == 413
    nothing(alice)


def test_quota_of_forms(client: APIClient, alice: User) -> None:
    root = tree.root_of(alice)
    User.objects.filter(pk=alice.pk).update(quota=1000)
    response = post(
        client, root, form(('name="f"; filename="a"', b"x" * 600), ('name="f"; filename="b"', b"x" * 600))
    )
    assert (response.status_code, response.json()["code"]) == (413, "quota_exceeded")
    response = post(client, root, b"", length=10**9)  # can surely not fit: refused before it is read
    assert (response.status_code, response.json()["code"]) == (413, "quota_exceeded")
    nothing(alice)


def test_folder_trashed_during_the_form(client: APIClient, alice: User) -> None:
    folder = tree.create_folder(alice, alice, ("a",))

    class Trashing(Stream):
        def read(self, size: int = -1) -> bytes:
            if tree.find(alice, ("a",)):
                trash.trash(alice, alice, folder.pk)
            return super().read(size)

    body = form(GOOD)
    response = post(client, folder, b"", **{"wsgi.input": Trashing(body), "CONTENT_LENGTH": str(len(body))})  # type: ignore[arg-type]
    assert (response.status_code, response.json()["code"]) == (409, "folder_deleted")
    nothing(alice)


def test_form_for_a_file(client: APIClient, alice: User) -> None:
    post(client, tree.root_of(alice), form(GOOD))
    response = post(client, tree.resolve(alice, ("x",)), form(GOOD))
    assert response.json()["code"] == "not_a_folder"


# -- the page without JavaScript ----------------------------------------------------------------------


def page_post(client: Client, node: Node, body: bytes, **meta: str) -> Any:
    return client.generic(
        "POST",
        f"/folders/{node.pk}/upload",
        body,
        content_type=f"multipart/form-data; boundary={B}",
        follow=False,
        **meta,  # type: ignore[arg-type]
    )


def test_upload_by_the_page(alice: User, bob: User, browser_client: Browser, anon: Client, two: Any) -> None:
    root = tree.root_of(alice)
    client = browser_client(alice)
    response = page_post(client, root, form(GOOD), HTTP_SEC_FETCH_SITE="same-origin")
    assert (response.status_code, response.headers["Location"]) == (302, "/dashboard/")
    assert "Uploaded: “x”." in client.get("/dashboard/").content.decode()
    response = page_post(client, root, form(('name="f"; filename=".."', b"")))
    assert response.status_code == 302
    assert "Nothing was uploaded." in client.get("/dashboard/").content.decode()
    for headers in ({"HTTP_SEC_FETCH_SITE": "cross-site"}, {"HTTP_ORIGIN": "https://evil.example"}):
        assert page_post(client, root, form(GOOD), **headers).status_code == 403
    assert page_post(anon, root, form(GOOD)).headers["Location"].startswith("/")
    assert page_post(browser_client(bob), root, form(GOOD)).status_code == 404
    assert Node.objects.filter(kind="file").count() == 1
    assert json.dumps(tree.resolve(alice, ("x",)).version.number) == "1"  # type: ignore[union-attr]
