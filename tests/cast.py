"""The cast: *alice* owns, *bob* is another user, *root* operates, *anon* is nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts import tokens
from accounts.models import User

PASSWORD = "correct horse battery staple"
Api = Callable[..., APIClient]
Browser = Callable[[User], Client]


@pytest.fixture
def alice(db: None) -> User:
    return User.objects.create_user("alice", "alice@example.com", PASSWORD)


@pytest.fixture
def bob(db: None) -> User:
    return User.objects.create_user("bob", "bob@example.com", PASSWORD)


@pytest.fixture
def root(db: None) -> User:
    return User.objects.create_superuser("root", "root@example.com", PASSWORD)


@pytest.fixture
def anon(db: None) -> Client:
    """A browser without a session."""
    return Client()


@pytest.fixture
def api() -> Api:
    """`api(user)`: a client with a token of that user; `api(user, [scopes])` limits it; `api(None)` has none."""

    def make(user: User | None, scopes: Iterable[str] = tokens.SCOPES) -> APIClient:
        client = APIClient()
        if user is not None:
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens.create(user, 'test', scopes)[1]}")
        return client

    return make


@pytest.fixture
def browser_client() -> Browser:
    """`browser_client(user)`: a client with a session of that user. CSRF checks are on, as for a real browser."""

    def make(user: User) -> Client:
        client = Client(enforce_csrf_checks=True)
        client.force_login(user)
        return client

    return make
