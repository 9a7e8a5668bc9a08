"""Query counts of the hot paths: they don't grow with what is in a folder, or with the size of a file."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from accounts.models import User
from replication.seal import SEGMENT_SIZE
from tests.cast import Api
from tests.vfs.conftest import Put
from tests.vfs.test_files_api import FILES, bytes_of, upload
from vfs import tree

pytestmark = pytest.mark.django_db


def count(client: Client, address: str, expected: int) -> None:
    client.get(address)  # what is made or noted at first use
    with CaptureQueriesContext(connection) as queries:
        bytes_of(client.get(address))
    statements = [q["sql"] for q in queries.captured_queries]
    assert len(statements) <= expected, "\n".join(statements)


@pytest.fixture
def client(alice: User, api: Api) -> APIClient:
    return api(alice)


@pytest.mark.parametrize("size", [10, SEGMENT_SIZE + 1])
def test_get_file(client: APIClient, alice: User, put: Put, size: int) -> None:
    put(alice, "a/b/file", b"x" * size)
    # token; the file with its folders; master key check (once per process); brokers; segments with their replicas
    count(client, f"{FILES}/a/b/file", 5)


def test_head_file(client: APIClient, alice: User, put: Put) -> None:
    put(alice, "a/b/file")
    with CaptureQueriesContext(connection) as queries:
        client.head(f"{FILES}/a/b/file")
    assert len(queries) <= 3  # the first one notes the token's use


def test_list_200_children(client: APIClient, alice: User, put: Put) -> None:
    root = tree.root_of(alice)
    for i in range(3):
        put(alice, f"few/{i}")
    for i in range(100):
        put(alice, f"f{i}")
        tree.create_folder(alice, alice, (f"d{i}",))
    address = f"/api/v1/nodes/{root.pk}/children"
    assert len(client.get(address).json()["children"]) == 200
    # token; the folder; children; policy, brokers, segments, replicas, contents; notices
    count(client, address, 9)
    few = tree.resolve(alice, ("few",))
    count(client, f"/api/v1/nodes/{few.pk}/children", 9)


def test_dashboard(alice: User, put: Put) -> None:
    for i in range(20):
        put(alice, f"a/f{i}")
    client = Client()
    client.force_login(alice)
    count(client, "/dashboard/a/", 11)


@pytest.mark.usefixtures("two")
def test_put_small_file(client: APIClient) -> None:
    upload(client, "a/first", b"x")
    with CaptureQueriesContext(connection) as queries:
        assert upload(client, "a/f", b"x").status_code == 201
    statements = [q["sql"] for q in queries.captured_queries]
    assert len(statements) <= 52, "\n".join(statements)
