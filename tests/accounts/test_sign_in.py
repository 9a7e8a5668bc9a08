"""The door: the sign-in page, signing out, and the admin site's way to it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.hashers import Argon2PasswordHasher, identify_hasher, make_password
from django.contrib.sessions.models import Session
from django.test import Client

from accounts import signin
from accounts.models import AuditEvent, SignInAttempts, User
from tests.cast import PASSWORD, Browser

pytestmark = pytest.mark.urls("tests.accounts.urls")


def sign_in(client: Client, username: str = "alice", password: str = PASSWORD, **extra: str):  # type: ignore[no-untyped-def]
    return client.post("/", {"username": username, "password": password, **extra})


def test_page(anon: Client) -> None:
    response = anon.get("/")
    page = response.content.decode()
    assert response.status_code == 200
    assert "CloudStore" in page and 'autocomplete="current-password"' in page
    assert "<script" not in page and "style=" not in page and "<style" not in page
    assert "no-store" in response["Cache-Control"]
    policy = response["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy


def test_sign_in_and_out(alice: User, anon: Client) -> None:
    response = sign_in(anon)
    assert (response.status_code, response["Location"]) == (302, "/dashboard/")
    assert anon.get("/dashboard/").content == b"drive of alice"
    assert anon.get("/")["Location"] == "/dashboard/"
    assert anon.get("/sign-out").status_code == 405
    assert anon.get("/dashboard/").content == b"drive of alice"
    assert anon.post("/sign-out")["Location"] == "/"
    assert anon.get("/dashboard/").content == b"drive of AnonymousUser"
    assert not Session.objects.exists()
    actions = list(AuditEvent.objects.order_by("pk").values_list("action", "actor_name", "address"))
    assert actions == [("session.started", "alice", "127.0.0.1"), ("session.ended", "alice", "127.0.0.1")]


def test_signing_out_twice_is_fine(anon: Client) -> None:
    assert anon.post("/sign-out").status_code == 302


def test_session_key_is_new_after_sign_in(alice: User, anon: Client) -> None:
    session = anon.session
    session["x"] = 1
    session.save()
    before = session.session_key
    anon.cookies[django_settings.SESSION_COOKIE_NAME] = before
    sign_in(anon)
    assert anon.session.session_key != before
    assert not Session.objects.filter(pk=before).exists()


def test_forms_need_their_csrf_token(alice: User, browser_client: Browser) -> None:
    client = Client(enforce_csrf_checks=True)
    response = sign_in(client)
    assert response.status_code == 403 and b"This form has expired" in response.content
    client.get("/")
    token = client.cookies[django_settings.CSRF_COOKIE_NAME].value
    assert sign_in(client, csrfmiddlewaretoken=token).status_code == 302
    assert browser_client(alice).post("/sign-out").status_code == 403


def test_wrong_name_and_wrong_password_look_the_same(alice: User, bob: User, anon: Client) -> None:
    User.objects.filter(pk=bob.pk).update(is_active=False)
    answers = []
    for name, password in (("alice", "wrong"), ("nobody", "wrong"), ("bob", PASSWORD), ("nobody\udc80", "x")):
        client = Client()
        client.get("/")
        response = sign_in(client, name.encode("utf-8", "replace").decode(), password)
        page = response.content.decode().split("csrfmiddlewaretoken")[1].split(">", 1)[1]
        answers.append((response.status_code, page.replace(f'value="{name}"', "")))
    assert answers[0][0] == 200 and "Wrong username or password." in answers[0][1]
    assert answers[0] == answers[1] == answers[2]
    assert not AuditEvent.objects.exists()


@pytest.mark.parametrize(
    ("name", "password"),
    [("alice", "wrong"), ("nobody", "wrong"), ("no\0body", "x"), ("\ud800", "x"), ("x" * 9999, "x")],
)
def test_every_refusal_costs_one_hash(
    alice: User, rf: object, monkeypatch: pytest.MonkeyPatch, name: str, password: str
) -> None:
    hashes = []
    hasher = type(identify_hasher(alice.password))
    real = hasher.encode

    def counted(self: object, password: str, salt: str) -> str:
        hashes.append(password)
        return real(self, password, salt)  # type: ignore[arg-type]

    monkeypatch.setattr(hasher, "encode", counted)
    with pytest.raises(signin.SignInRefused):
        signin.check(rf.post("/"), name, password)  # type: ignore[attr-defined]
    assert len(hashes) == 1


def test_the_products_passwords_are_argon2() -> None:
    hashers = [name for name in django_settings.PASSWORD_HASHERS if "MD5" not in name]
    assert hashers == ["django.contrib.auth.hashers.Argon2PasswordHasher"]
    assert isinstance(identify_hasher(make_password("x", hasher="argon2")), Argon2PasswordHasher)


@pytest.mark.parametrize(
    "data", [{}, {"username": "alice"}, {"password": "x"}, {"username": "a\0b", "password": "x"}]
)
def test_incomplete_forms(alice: User, anon: Client, data: dict[str, str]) -> None:
    response = anon.post("/", data)
    assert response.status_code == 400
    assert b"Enter your username and your password." in response.content
    assert not SignInAttempts.objects.exists()


def test_throttled_with_the_right_password_too(alice: User, anon: Client) -> None:
    for _ in range(5):
        assert sign_in(anon, password="wrong").status_code == 200
    response = sign_in(anon)
    assert response.status_code == 429
    assert 1 <= int(response["Retry-After"]) <= 30
    assert "Too many failed attempts. Try again in" in response.content.decode()
    # Another address is not locked out; a forwarded address that no trusted proxy wrote does not count as one.
    spoofed = anon.post(
        "/", {"username": "alice", "password": PASSWORD}, headers={"X-Forwarded-For": "203.0.113.9"}
    )
    assert spoofed.status_code == 429
    assert sign_in(Client(REMOTE_ADDR="198.51.100.7")).status_code == 302


def test_four_failures_and_the_right_password(alice: User, anon: Client) -> None:
    for _ in range(3):
        for _ in range(4):
            sign_in(anon, password="wrong")
        assert sign_in(anon).status_code == 302


def test_a_crowd_of_hashes_waits_at_the_door(
    alice: User, anon: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(signin, "_hashing", full)
    monkeypatch.setattr(signin, "HASH_PATIENCE", 0.01)
    for _ in range(7):
        assert sign_in(anon).status_code == 429
    full.release()
    assert sign_in(anon).status_code == 302


LOCAL = ["/dashboard/", "/dashboard/?folder=1", "/admin/"]
FOREIGN = ["//evil.example", "https://evil.example", "https:evil.example", "/\\evil.example", "\\\\evil.example",
    "///evil.example", "javascript:alert(1)", "http://testserver/x", "dashboard", "", "/\x00/evil", " //evil.example",
    "/\t/evil.example"]  # fmt: skip


@pytest.mark.parametrize("target", LOCAL)
def test_next_leads_on(alice: User, anon: Client, target: str) -> None:
    assert f'name="next" value="{target}"' in anon.get("/", {"next": target}).content.decode()
    assert sign_in(anon, next=target)["Location"] == target
    assert anon.get("/", {"next": target})["Location"] == target


@pytest.mark.parametrize("target", FOREIGN)
def test_next_never_leads_out(alice: User, anon: Client, target: str) -> None:
    assert 'name="next"' not in anon.get("/", {"next": target}).content.decode()
    assert sign_in(anon, next=target)["Location"] == "/dashboard/"
    assert anon.get("/", {"next": target})["Location"] == "/dashboard/"


def test_admin_site_uses_our_door(root: User, alice: User, anon: Client, browser_client: Browser) -> None:
    assert anon.get("/admin/")["Location"] == "/admin/login/?next=/admin/"
    assert anon.get("/admin/login/?next=/admin/")["Location"] == "/?next=%2Fadmin%2F"
    assert anon.get("/admin/login/?next=//evil.example")["Location"] == "/?next=%2Fadmin%2F"
    posted = anon.post("/admin/login/", {"username": "root", "password": PASSWORD})
    assert (posted.status_code, posted["Location"]) == (302, "/?next=%2Fadmin%2F")
    assert not Session.objects.exists()
    assert sign_in(anon, "root", next="/admin/")["Location"] == "/admin/"
    assert anon.get("/admin/").status_code == 200
    assert anon.get("/admin/login/")["Location"] == "/admin/"
    assert anon.post("/admin/logout/")["Location"] == "/"
    assert anon.get("/admin/").status_code == 302
    # Somebody who is signed in and not staff gets an answer, not a circle of redirects.
    user = browser_client(alice)
    response = user.get("/admin/", follow=True)
    assert response.status_code == 403 and b"Not allowed" in response.content


def test_error_pages(
    alice: User, anon: Client, browser_client: Browser, expect_log: Callable[..., None]
) -> None:
    for client in (anon, browser_client(alice)):
        response = client.get("/nothing-here")
        assert response.status_code == 404
        assert b"Page not found" in response.content and b"CloudStore" in response.content
    expect_log("Internal Server Error", "Invalid HTTP_HOST")
    anon.raise_request_exception = False
    response = anon.get("/broken")
    assert response.status_code == 500
    assert b"Something went wrong" in response.content and b"on purpose" not in response.content
    response = anon.get("/", headers={"Host": "evil.example"})
    assert response.status_code == 400 and b"Bad request" in response.content
