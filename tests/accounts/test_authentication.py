"""Who an API request is from, tried as each of the cast."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts import tokens
from accounts.models import User
from tests.cast import Api, Browser

pytestmark = pytest.mark.urls("tests.accounts.urls")


def test_token_opens_for_its_user(alice: User, bob: User, root: User, api: Api) -> None:
    for user in (alice, bob, root):
        assert api(user).get("/probe").json() == {"user": user.username}


def test_anon_gets_401_with_a_challenge(db: None, api: Api) -> None:
    response = api(None).get("/probe")
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Bearer nonsense", "bearer cs_" + "a" * 43, "Bearer \xff\xfe"]
)
def test_wrong_token_is_401_even_beside_a_good_session(
    alice: User, browser_client: Browser, header: str
) -> None:
    client = browser_client(alice)
    assert client.get("/probe").status_code == 200
    for path in ("/probe", "/open"):
        response = client.get(path, headers={"Authorization": header})
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == "Bearer"


def test_expired_and_revoked_tokens_and_inactive_users(alice: User) -> None:
    def status(plain: str) -> int:
        return APIClient().get("/probe", headers={"Authorization": f"Bearer {plain}"}).status_code

    token, plain = tokens.create(alice, "x")
    assert status(plain) == 200
    tokens.revoke(token)
    assert status(plain) == 401
    assert status(tokens.create(alice, "x", expires_at=timezone.now() - timedelta(seconds=1))[1]) == 401
    plain = tokens.create(alice, "x")[1]
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert status(plain) == 401


def test_other_schemes_leave_the_session_in_charge(alice: User, browser_client: Browser) -> None:
    assert browser_client(alice).get("/probe", headers={"Authorization": "Basic eA=="}).status_code == 200


def test_scopes(alice: User, api: Api, browser_client: Browser) -> None:
    reader = api(alice, ["files:read"])
    assert [reader.get("/probe").status_code, reader.head("/probe").status_code] == [200, 200]
    assert reader.options("/probe").status_code == 200
    refused = reader.put("/probe")
    assert refused.status_code == 403 and "scope" in refused.json()["detail"]
    writer = api(alice, ["files:write"])
    assert [writer.put("/probe").status_code, writer.get("/probe").status_code] == [200, 403]
    # A method that the view names no scope for is closed to every token, and open to a session.
    assert api(alice).delete("/probe").status_code == 403
    assert browser_client(alice).delete("/probe").status_code == 200


HEADERS = [
    ({}, 200),  # curl with a cookie jar
    ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Sec-Fetch-Site": "none"}, 200),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": ""}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, 403),
    ({"Origin": "http://testserver"}, 200),
    ({"Origin": "https://testserver"}, 403),
    ({"Origin": "http://testserver:8000"}, 403),
    ({"Origin": "http://testserver.evil.example"}, 403),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": ""}, 403),
    ({"Origin": "http://[broken"}, 403),
    ({"Origin": "https://drive.example.com"}, 200),
    ({"Origin": "https://drive.example.com.evil.example"}, 403),
    ({"Origin": "https://a.wild.example"}, 200),
    ({"Origin": "http://a.wild.example"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), HEADERS)
@pytest.mark.parametrize("method", ["put", "post", "delete"])
def test_cross_site_requests_with_a_session(
    alice: User, browser_client: Browser, settings: object, headers: dict[str, str], status: int, method: str
) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://drive.example.com", "https://*.wild.example"]  # type: ignore[attr-defined]
    client = browser_client(alice)
    assert getattr(client, method)("/probe", headers=headers).status_code == status
    assert client.get("/probe", headers=headers).status_code == 200


def test_a_token_needs_no_origin(alice: User, api: Api) -> None:
    assert api(alice).put("/probe", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_session_uploads_are_not_read_by_the_check(alice: User, browser_client: Browser) -> None:
    class Body(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise AssertionError("the body was read")

        readline = read

    client = browser_client(alice)
    body = {"wsgi.input": Body(), "CONTENT_LENGTH": "9"}
    response = client.generic("POST", "/probe", content_type="multipart/form-data; boundary=x", **body)
    assert response.status_code == 200


def test_session_ends_with_a_new_password_and_with_the_account(alice: User) -> None:
    client = Client()
    client.force_login(alice)
    alice.set_password("another long password")
    alice.save()
    assert client.get("/probe").status_code == 401
    client.force_login(alice)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert client.get("/probe").status_code == 401
