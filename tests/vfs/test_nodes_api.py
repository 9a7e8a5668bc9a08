"""REST: nodes, folders, the trash, the account."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import AuditEvent, User
from brokers.models import Broker, Health
from tests.cast import Api
from tests.vfs.conftest import Put
from tests.vfs.test_files_api import problem
from tests.vfs.test_names import BAD
from vfs import tree
from vfs.models import Node

pytestmark = pytest.mark.django_db
API = "/api/v1"


@pytest.fixture
def client(alice: User, api: Api) -> APIClient:
    return api(alice)


def make(client: APIClient, path: Any, **more: Any) -> Any:
    return client.post(f"{API}/folders", {"path": path, **more}, format="json")


def test_folders(client: APIClient, alice: User) -> None:
    response = make(client, "/a/b/")
    assert response.status_code == 201
    node = response.json()
    assert (node["path"], node["kind"], node["size"], node["copies"]) == ("/a/b", "folder", None, None)
    problem(make(client, "a/b"), 409, "name_taken")
    problem(make(client, "/"), 409, "name_taken")
    problem(make(client, ""), 400, "invalid")
    problem(make(client, ["a"]), 400, "invalid")
    problem(make(client, None), 400, "invalid")
    assert make(client, " ").json()["name"] == " "


def test_mass_assignment_is_ignored(client: APIClient, alice: User, bob: User) -> None:
    made = make(
        client, "mine", owner=bob.pk, id=str(uuid.UUID(int=5)), trashed="2020-01-01", kind="file"
    ).json()
    node = Node.objects.get(pk=made["id"])
    assert (node.owner, node.kind, node.trashed_at) == (alice, "folder", None)
    assert node.pk != uuid.UUID(int=5)


@pytest.mark.parametrize("name", BAD.values(), ids=BAD.keys())
def test_bad_names(client: APIClient, name: str) -> None:
    body = json.dumps({"path": f"a/{name}/c"})
    response = client.generic("POST", f"{API}/folders", body, "application/json")
    if "/" in name and ".." not in name:
        assert response.status_code == 201  # a path
        return
    assert response.status_code == 400, response.content
    assert not Node.objects.filter(parent__isnull=False).exists()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"null", b'"a"', b"\xff", b"[" * 100_000, b'{"path": 1e999}', b'{"path": NaN}'],
)
def test_bad_json(client: APIClient, body: bytes) -> None:
    response = client.generic("POST", f"{API}/folders", body, "application/json")
    assert response.status_code in {400, 413}, response.content
    assert response.headers["Content-Type"] == "application/problem+json"


def test_large_and_odd_bodies(client: APIClient) -> None:
    response = client.generic(
        "POST", f"{API}/folders", b'{"path":"' + b"x" * 100_000 + b'"}', "application/json"
    )
    problem(response, 413, "too_large")
    response = client.generic("POST", f"{API}/folders", b"<a/>", "application/xml")
    problem(response, 415, "unsupported_media_type")


def test_node(client: APIClient, alice: User, put: Put) -> None:
    node = put(alice, "a/häuser.txt", b"12345")
    shown = client.get(f"{API}/nodes/{node.pk}").json()
    assert (shown["path"], shown["size"], shown["type"], shown["version"]) == (
        "/a/häuser.txt",
        5,
        "text/plain",
        1,
    )
    assert client.get(f"{API}/nodes/root").json()["path"] == "/"
    problem(client.get(f"{API}/nodes/{node.pk}/children"), 409, "not_a_folder")
    problem(client.delete(f"{API}/nodes/{node.pk}", headers={"If-Match": '"x"'}), 412, "precondition_failed")
    assert client.delete(f"{API}/nodes/{node.pk}").status_code == 204
    problem(client.get(f"{API}/nodes/{node.pk}"), 404, "not_found")
    problem(client.delete(f"{API}/nodes/{tree.root_of(alice).pk}"), 409, "is_root")


def test_children_in_pages(client: APIClient, alice: User, put: Put, two: list[Broker]) -> None:
    for i in range(5):
        put(alice, f"f{i}")
    root = tree.root_of(alice)
    url = f"{API}/nodes/{root.pk}/children"
    first = client.get(url, {"limit": 3}).json()
    second = client.get(url, {"limit": 3, "cursor": first["next"]}).json()
    assert [n["name"] for n in first["children"] + second["children"]] == [f"f{i}" for i in range(5)]
    assert second["next"] is None
    assert first["notices"] == []
    Broker.objects.filter(pk=two[0].pk).update(health=Health.OFFLINE)
    listing = client.get(url).json()
    assert listing["notices"] == ["a is down: files stay available from their other copies."]
    copies = listing["children"][0]["copies"]
    assert (copies["stored"], copies["wanted"], copies["brokers"]) == (1, 2, ["b"])
    for query in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}):
        problem(client.get(url, query), 400, "invalid")
    problem(client.get(url, {"cursor": "%00"}), 400, "bad_cursor")


def test_trash(client: APIClient, alice: User, put: Put) -> None:
    node = put(alice, "a/f", b"x" * 9)
    problem(client.delete(f"{API}/trash/{node.pk}"), 404, "not_found")  # not trashed yet
    client.delete(f"{API}/nodes/{node.pk}")
    listing = client.get(f"{API}/trash").json()
    assert [(n["path"], n["size"]) for n in listing["nodes"]] == [("/a/f", 9)]
    assert listing["nodes"][0]["trashed"] is not None
    assert client.get(f"{API}/trash/{node.pk}").json()["id"] == str(node.pk)
    assert client.get(f"{API}/account").json()["usage"]["used"] == 9
    assert client.delete(f"{API}/trash/{node.pk}").status_code == 204
    assert client.get(f"{API}/account").json() == {
        "name": "alice",
        "usage": {"used": 0, "reserved": 0, "limit": 5_000_000_000, "free": 5_000_000_000},
    }
    event = AuditEvent.objects.get(action="file.purged")
    assert (event.actor, event.address) == (alice, "127.0.0.1")


def test_unknown_addresses_and_methods(client: APIClient, anon: Client) -> None:
    for user in (client, anon):
        for method in ("get", "post", "put", "delete"):
            problem(getattr(user, method)(f"{API}/nope"), 404, "not_found")
    problem(client.get(f"{API}/nodes/not-a-uuid"), 404, "not_found")
    problem(client.put(f"{API}/folders"), 405, "method_not_allowed")


def test_every_accept_gets_json(client: APIClient, alice: User) -> None:
    for accept in ("text/html", "image/png", "*/*", "nonsense"):
        response = client.get(f"{API}/account", headers={"Accept": accept})
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
