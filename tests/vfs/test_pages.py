"""The drive's pages, without JavaScript."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from django.test import Client

from accounts.models import User
from brokers.models import Broker, Health
from tests.vfs.conftest import Put
from vfs import pages, trash, tree

pytestmark = pytest.mark.django_db


@pytest.fixture
def client(alice: User) -> Client:
    client = Client()
    client.force_login(alice)
    return client


def text(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200, address
    return response.content.decode()


def test_anon_is_led_to_the_door(anon: Client) -> None:
    for address in ("/dashboard/", "/dashboard/a/b/", "/trash/"):
        response = anon.get(address)
        assert (response.status_code, response.headers["Location"].split("?")[0]) == (302, "/")


def test_empty_drive(client: Client) -> None:
    assert "Your drive is empty" in text(client, "/dashboard/")
    assert "The trash is empty" in text(client, "/trash/")


def test_listing(client: Client, alice: User, put: Put) -> None:
    name = "häuser & gärten #1 100%?.txt"
    put(alice, f"a folder/{name}", b"x" * 1234)
    page = text(client, "/dashboard/")
    assert 'href="/dashboard/a%20folder/"' in page
    page = text(client, "/dashboard/a%20folder/")
    assert "häuser &amp; gärten #1 100%?.txt" in page
    assert f'href="/api/v1/files/a%20folder/{quote(name, safe="")}"' in page
    for part in ("1.2 kB", "2 of 2: a, b", "pill-ok", "1.2 kB of 5.0 GB used"):
        assert part in page
    assert client.get(f"/api/v1/files/a%20folder/{quote(name, safe='')}").status_code == 200
    assert "1.2 kB" in text(client, "/dashboard/a%20folder")
    lost = ["nope/", "a%20folder/../", "?cursor=x", f"a%20folder/{quote(name, safe='')}/"]
    for address in lost:
        assert client.get(f"/dashboard/{address}").status_code == 404


def test_copies_and_notices(client: Client, alice: User, put: Put, two: list[Broker]) -> None:
    put(alice, "f")
    Broker.objects.filter(pk=two[0].pk).update(health=Health.OFFLINE)
    page = text(client, "/dashboard/")
    assert "1 of 2" in page
    assert "pill-ok" not in page
    assert "a is down: files stay available from their other copies." in page
    Broker.objects.filter(pk=two[0].pk).update(health=Health.FULL)
    assert "a is full: new files go to other brokers." in text(client, "/dashboard/")


def test_pages_of_a_folder(client: Client, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(205):
        tree.create_folder(alice, alice, (f"folder {i:03d}",))
    first = text(client, "/dashboard/")
    assert "folder 199<" in first
    assert "folder 200<" not in first
    link = first.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0]
    second = text(client, link)
    assert "folder 200<" in second
    assert "folder 199<" not in second
    assert "First page" in second


def test_new_folder(client: Client, alice: User) -> None:
    root = tree.root_of(alice)
    response = client.post(f"/folders/{root.pk}/new", {"name": "new one"}, follow=True)
    assert "The folder “new one” was made." in response.content.decode()
    refused = {
        "new one": "There is a file or folder of this name already.",
        "..": "cannot be a name",
        "a/b": "contains a slash",
        "": "The name is empty.",
    }
    for name, words in refused.items():
        response = client.post(f"/folders/{root.pk}/new", {"name": name}, follow=True)
        assert words in response.content.decode()
    assert tree.resolve(alice, ("new one",)).is_folder


def test_delete_and_purge(client: Client, alice: User, put: Put) -> None:
    node = put(alice, "dir/f")
    response = client.post(f"/nodes/{node.pk}/delete")
    assert response.headers["Location"] == "/dashboard/dir/"
    assert "“f” was moved to the trash." in text(client, "/dashboard/dir/")
    assert "/dir/f" in text(client, "/trash/")
    assert client.post(f"/nodes/{node.pk}/delete").status_code == 404
    response = client.post(f"/trash/{node.pk}/purge", follow=True)
    assert "“f” was deleted for good." in response.content.decode()
    assert client.post(f"/trash/{node.pk}/purge").status_code == 404
    assert client.post(f"/nodes/{tree.root_of(alice).pk}/delete").status_code == 404
    for address in (f"/nodes/{node.pk}/delete", f"/trash/{node.pk}/purge"):
        assert client.get(address).status_code == 405


def test_full_drive_is_shown(client: Client, alice: User, put: Put) -> None:
    put(alice, "f", b"x" * 95)
    User.objects.filter(pk=alice.pk).update(quota=100)
    assert "progress-bad" in text(client, "/dashboard/")
    User.objects.filter(pk=alice.pk).update(quota=0)
    assert "95 bytes of 0 bytes used" in text(client, "/dashboard/")


def test_trash_of_a_folder_with_a_trashed_file(client: Client, alice: User, put: Put) -> None:
    node = put(alice, "dir/f")
    trash.trash(alice, alice, node.pk)
    assert node.parent is not None
    trash.trash(alice, alice, node.parent.pk)
    page = text(client, "/trash/")
    assert "/dir/f" in page
    client.post(f"/trash/{node.parent.pk}/purge")
    assert "The trash is empty" in text(client, "/trash/")


def test_addresses() -> None:
    assert pages.folder_url(()) == "/dashboard/"
    assert pages.folder_url(("a b", "c#d")) == "/dashboard/a%20b/c%23d/"
