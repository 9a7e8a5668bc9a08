"""Hostile names, types and contents: what leaves again is inert."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import User
from tests.cast import Api, Browser
from tests.vfs.conftest import Put
from tests.vfs.test_files_api import FILES, bytes_of, upload
from tests.vfs.test_names import BAD
from vfs import tree
from vfs.models import Node

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("two")]


@pytest.fixture
def client(alice: User, api: Api) -> APIClient:
    return api(alice)


@pytest.mark.parametrize("name", [n for n in BAD.values() if n != "a\ud800b"])
def test_bad_names_in_the_address(client: APIClient, name: str) -> None:
    response = upload(client, f"dir/{quote(name, safe='')}", b"x")
    if name == "a/b":
        assert response.json()["path"] == "/dir/a/b"  # an escaped slash is a slash
        return
    assert response.status_code == 400, response.content
    assert response.json()["code"] == "invalid_name"
    assert not Node.objects.filter(parent__isnull=False).exists()
    for method in ("get", "head", "delete"):
        if name:
            assert getattr(client, method)(f"{FILES}/dir/{quote(name, safe='')}").status_code == 400


def test_long_and_deep_paths(client: APIClient) -> None:
    for path in ("/".join("x" * 101), "/".join(["x" * 250] * 17)):
        assert upload(client, path, b"x").json()["code"] == "invalid_name"
    assert upload(client, "/".join("x" * 100), b"x").status_code == 201


ACTIVE = {
    "page.html": b"<script>alert(document.cookie)</script>",
    "page.xhtml": b'<html xmlns="http://www.w3.org/1999/xhtml"><script>alert(1)</script></html>',
    "image.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    "data.xml": b'<?xml-stylesheet href="x.xsl"?><x/>',
    "archive.mht": b"MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n<script>",
    "paper.pdf": b"%PDF-1.4 /OpenAction /JavaScript",
    "code.js": b"alert(1)",
    "code.mjs": b"alert(1)",
    "style.css": b"body{background:url(//evil)}",
    "flash.swf": b"FWS",
    "page.html.gz": b"\x1f\x8b",
    "PAGE.HTML": b"<script>alert(1)</script>",
    "noending": b"<script>alert(1)</script>",
}


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("query", ["", "?inline=1"])
def test_active_content_is_saved_not_shown(client: APIClient, name: str, query: str) -> None:
    upload(client, name, ACTIVE[name], **{"Content-Type": "text/html; charset=utf-7"})
    response = client.get(f"{FILES}/{name}{query}")
    assert response.headers["Content-Type"] == "application/octet-stream"  # with nosniff: no script, no style
    assert response.headers["Content-Disposition"].startswith("attachment")
    assert_inert(response)
    assert bytes_of(response) == ACTIVE[name]


def assert_inert(response: Any) -> None:
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = response.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy
    assert "allow-" not in policy
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.gif", "image/gif"),
        ("a.webp", "image/webp"),
        ("a.txt", "text/plain; charset=utf-8"),
    ],
)
def test_the_few_types_that_may_be_shown(client: APIClient, name: str, kind: str) -> None:
    upload(client, name, b"\x89PNG\r\n<html><script>alert(1)</script>")
    saved, shown = client.get(f"{FILES}/{name}"), client.get(f"{FILES}/{name}?inline=1")
    assert saved.headers["Content-Disposition"].startswith("attachment")
    assert shown.headers["Content-Disposition"].startswith("inline")
    for response in (saved, shown):
        assert response.headers["Content-Type"] == kind
        assert_inert(response)


def test_a_claimed_type_is_not_believed(client: APIClient) -> None:
    for claimed in ("text/html; charset=utf-7", "text/html\r\nX: y", "image/svg+xml", "é"):
        response = client.generic(
            "PUT", f"{FILES}/a.bin", b"x", claimed.replace("\r\n", " "), headers={"Content-Length": "1"}
        )
        assert response.json()["type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("planted", "header"),
    [
        ('x"\r\nSet-Cookie: a=b', 'attachment; filename="x\\"__Set-Cookie: a=b"'),
        ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
        ("a\\b", 'attachment; filename="a_b"'),
        ("x\u202egpj.exe", 'attachment; filename="x_gpj.exe"'),
        ("ü\n", "attachment; filename*=utf-8''%C3%BC_"),
    ],
)
def test_names_planted_in_the_database_stay_one_header(
    alice: User, browser_client: Browser, put: Put, planted: str, header: str
) -> None:
    from vfs.api.downloads import headers_of

    node = put(alice, "f")
    node.name = planted
    assert node.version is not None
    request: Any = type("R", (), {"GET": {}})()
    assert headers_of(request, node, node.version)["Content-Disposition"] == header


def test_names_are_text_in_pages(alice: User, browser_client: Browser, put: Put) -> None:
    for name in ("<script>alert(1)<", "{{ 7*7 }}{% debug %}", "\"onload='x'"):
        put(alice, name)
    client = browser_client(alice)
    page = client.get("/dashboard/").content.decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert "{{ 7*7 }}{% debug %}" in page
    assert "\"onload='x'" not in page


def test_pages_need_no_inline_script_or_style(alice: User, browser_client: Browser, put: Put) -> None:
    import re

    put(alice, "dir/f")
    client = browser_client(alice)
    for address in ("/dashboard/", "/dashboard/dir/", "/trash/"):
        response = client.get(address)
        page = response.content.decode()
        assert not re.search(r"<style|style=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:|https?://", page)
        policy = response.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy


def test_the_query_is_data(client: APIClient, alice: User) -> None:
    root = tree.root_of(alice)
    for cursor in ("'; DROP TABLE vfs_node", "%", "_", "\\", "x" * 20_000):
        response = client.get(f"/api/v1/nodes/{root.pk}/children", {"cursor": cursor})
        assert response.status_code == 400


def test_no_page_is_cached(alice: User, browser_client: Browser, anon: Client) -> None:
    response = browser_client(alice).get("/dashboard/")
    assert "no-store" in response.headers["Cache-Control"]
