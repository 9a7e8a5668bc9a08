"""Every endpoint as each of the cast. An address below /api/v1/ without an entry here fails the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient

from accounts.models import User
from tests.cast import Api, Browser
from tests.console.test_api import MATRIX as OPERATORS
from tests.vfs.conftest import Put
from vfs import trash, tree
from vfs.models import Node

pytestmark = pytest.mark.django_db
READ, WRITE = ["files:read"], ["files:write"]
FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="new"\r\n\r\nx\r\n--b--'


@dataclass(frozen=True)
class Call:
    """One verb of an endpoint, on what alice owns. Statuses: for alice, for others (bob and root alike)."""

    method: str
    path: str
    alice: int
    others: int
    scope: list[str]
    body: bytes = b""
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)


# The route's name -> calls. `others` 404: theirs is another tree; 200 and 201 are answers about their own.
MATRIX: dict[str, list[Call]] = {
    "file": [
        Call("GET", "files/dir/file", 200, 404, READ),
        Call("GET", "files/dir/file", 206, 404, READ, headers={"Range": "bytes=0-1"}),
        Call("HEAD", "files/dir/file", 200, 404, READ),
        Call("GET", "files/dir", 200, 404, READ),
        Call("GET", "files/", 200, 200, READ),
        Call("PUT", "files/dir/file", 200, 201, WRITE, b"x"),
        Call("DELETE", "files/dir/file", 204, 404, WRITE),
        Call("DELETE", "files/dir?purge=true", 204, 404, WRITE),
        Call("OPTIONS", "files/dir/file", 200, 200, READ),
    ],
    "root": [Call("GET", "nodes/root", 200, 200, READ)],
    "node": [
        Call("GET", "nodes/{file}", 200, 404, READ),
        Call("GET", "nodes/{trashed}", 404, 404, READ),
        Call("DELETE", "nodes/{file}", 204, 404, WRITE),
        Call("DELETE", "nodes/{dir}", 204, 404, WRITE),
    ],
    "children": [Call("GET", "nodes/{dir}/children", 200, 404, READ)],
    "node-files": [
        Call("POST", "nodes/{dir}/files", 201, 404, WRITE, FORM, "multipart/form-data; boundary=b"),
        Call("POST", "nodes/{trashed}/files", 404, 404, WRITE, FORM, "multipart/form-data; boundary=b"),
    ],
    "folders": [Call("POST", "folders", 201, 201, WRITE, b'{"path": "new"}', "application/json")],
    "trash": [Call("GET", "trash", 200, 200, READ)],
    "trashed": [
        Call("GET", "trash/{trashed}", 200, 404, READ),
        Call("GET", "trash/{file}", 404, 404, READ),
        Call("DELETE", "trash/{trashed}", 204, 404, WRITE),
    ],
    "account": [Call("GET", "account", 200, 200, READ)],
    "schema": [],  # the description of the API is public, see below
}
CALLS = [(name, call) for name, calls in MATRIX.items() for call in calls]
each_call = pytest.mark.parametrize(
    "call", [c for _n, c in CALLS], ids=[f"{n}-{c.method}-{c.path}" for n, c in CALLS]
)
Ids = dict[str, str]


@pytest.fixture
def ids(alice: User, bob: User, root: User, put: Put) -> Ids:
    file = put(alice, "dir/file")
    trashed = put(alice, "gone")
    trash.trash(alice, alice, trashed.pk)
    for user in (bob, root):
        tree.root_of(user)
    assert file.parent is not None
    return {"file": str(file.pk), "dir": str(file.parent.pk), "trashed": str(trashed.pk)}


def send(client: Client, call: Call, ids: Ids, **headers: str) -> Any:
    return client.generic(
        call.method,
        f"/api/v1/{call.path.format(**ids)}",
        call.body,
        call.kind,
        headers={"Content-Length": str(len(call.body)), **call.headers, **headers},
    )


def routes(patterns: Any, prefix: str = "") -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            found += routes(pattern.url_patterns, path)
        elif isinstance(pattern, URLPattern):
            found.append((path, pattern.name))
    return found


def test_every_endpoint_has_an_entry() -> None:
    below = [(p, n) for p, n in routes(get_resolver().url_patterns) if p.lstrip("^").startswith("api/v1/")]
    unknown = {name for _path, name in below if name is not None} ^ (set(MATRIX) | set(OPERATORS))
    assert unknown == set()
    assert [path for path, name in below if name is None] == ["^api/v1/"]  # the 404 after everything else


def tree_of(user: User) -> list[Any]:
    rows = Node.objects.filter(owner=user).order_by("pk")
    return list(rows.values_list("pk", "name", "parent", "version", "trashed_at"))


@each_call
def test_alice(call: Call, ids: Ids, alice: User, api: Api, browser_client: Browser) -> None:
    response = send(browser_client(alice), call, ids, **{"Sec-Fetch-Site": "same-origin"})
    assert response.status_code == call.alice, getattr(response, "content", "")


@each_call
@pytest.mark.parametrize("who", ["bob", "root"])
def test_others_find_nothing_of_hers(
    call: Call, who: str, ids: Ids, alice: User, bob: User, root: User, api: Api
) -> None:
    before = tree_of(alice)
    response = send(api({"bob": bob, "root": root}[who]), call, ids)
    assert response.status_code == call.others
    assert tree_of(alice) == before
    if call.others == 200 and call.method == "GET":
        assert ids["file"] not in response.content.decode()


@each_call
def test_anon(call: Call, ids: Ids, alice: User, anon: Client) -> None:
    before = tree_of(alice)
    response = send(anon, call, ids)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert tree_of(alice) == before


@each_call
def test_tokens_need_the_scope(call: Call, ids: Ids, alice: User, api: Api) -> None:
    before = tree_of(alice)
    others = sorted({"files:read", "files:write", "account", "admin"} - set(call.scope))
    refused = send(api(alice, others), call, ids)
    assert refused.status_code == 403
    assert tree_of(alice) == before
    assert send(api(alice, call.scope), call, ids).status_code == call.alice


@each_call
def test_cross_site_requests_change_nothing(
    call: Call, ids: Ids, alice: User, browser_client: Browser
) -> None:
    if call.scope == READ:
        return
    before = tree_of(alice)
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
    ):
        response = send(browser_client(alice), call, ids, **headers)
        assert response.status_code == 403
        assert response.json()["code"] == "cross_site"
    assert tree_of(alice) == before


def test_revoked_and_closed(ids: Ids, alice: User, api: Api) -> None:
    client = api(alice)
    call = MATRIX["node"][0]
    assert send(client, call, ids).status_code == 200
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert send(client, call, ids).status_code == 401


def test_schema(anon: Client, capsys: pytest.CaptureFixture[str]) -> None:
    schema = anon.get("/api/v1/schema/").json()
    assert {"/api/v1/files/{path}", "/api/v1/nodes/{node_id}", "/api/v1/folders"} <= set(schema["paths"])
    assert set(schema["paths"]["/api/v1/files/{path}"]) >= {"get", "put", "delete"}
    assert capsys.readouterr().err == ""  # the generator has nothing to complain about


PAGES: list[tuple[str, str, int, Callable[[Ids], dict[str, str]] | None]] = [
    ("GET", "/dashboard/", 200, None),
    ("GET", "/dashboard/dir/", 404, None),
    ("GET", "/trash/", 200, None),
    ("POST", "/folders/{dir}/new", 404, lambda _i: {"name": "x"}),
    ("POST", "/folders/{dir}/upload", 404, None),
    ("POST", "/nodes/{file}/delete", 404, None),
    ("POST", "/trash/{trashed}/purge", 404, None),
]


@pytest.mark.parametrize(("method", "path", "bob_gets", "data"), PAGES, ids=[p[1] for p in PAGES])
def test_pages(
    method: str, path: str, bob_gets: int, data: Any, ids: Ids, alice: User, bob: User, anon: Client
) -> None:
    before = tree_of(alice)
    client = Client()
    client.force_login(bob)
    response = getattr(client, method.lower())(path.format(**ids), data(ids) if data else {})
    assert response.status_code == bob_gets
    response = getattr(anon, method.lower())(path.format(**ids))
    assert response.status_code == 302
    assert response.headers["Location"].startswith("/?next=") or response.headers["Location"] == "/"
    assert tree_of(alice) == before


def test_forms_need_their_token(ids: Ids, alice: User, browser_client: Browser) -> None:
    before = tree_of(alice)
    client: APIClient | Client = browser_client(alice)
    for path in ("/nodes/{file}/delete", "/trash/{trashed}/purge", "/folders/{dir}/new"):
        assert client.post(path.format(**ids)).status_code == 403
    assert tree_of(alice) == before
