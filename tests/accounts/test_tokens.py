"""API tokens: what they open, and when they stop."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import tokens
from accounts.models import Token, User


def test_plain_text_is_random_and_only_its_hash_is_kept(alice: User) -> None:
    token, plain = tokens.create(alice, " laptop ")
    assert re.fullmatch(r"cs_[A-Za-z0-9_-]{43}", plain)
    assert plain != tokens.create(alice, "laptop")[1]
    row = Token.objects.filter(pk=token.pk).values().get()
    assert row["digest"] == hashlib.sha256(plain.encode()).hexdigest()
    assert row["name"] == "laptop" and row["prefix"] == plain[:9]
    assert row["scopes"] == ["files:read", "files:write"]
    assert plain not in str(row)


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("x", ["files:all"]), ("x", []), ("", ["account"]), ("  ", ["account"]), ("x" * 101, ["account"])],
)
def test_bad_tokens_are_not_made(alice: User, name: str, scopes: list[str]) -> None:
    with pytest.raises(ValueError, match=r"scope|name"):
        tokens.create(alice, name, scopes)
    assert not Token.objects.exists()


def test_verify(alice: User) -> None:
    token, plain = tokens.create(alice, "laptop")
    found = tokens.verify(plain)
    assert found == token and found is not None and found.user == alice
    assert tokens.verify(plain[:-1] + ("A" if plain[-1] != "A" else "B")) is None
    assert tokens.verify(token.digest) is None


@pytest.mark.parametrize(
    "junk", ["", "cs_", "x" * 46, "cs_" + "é" * 43, "cs_" + "\ud800" * 43, "cs_" + "a" * 10**6]
)
def test_junk_is_refused_without_a_query(alice: User, junk: str) -> None:
    with CaptureQueriesContext(connection) as queries:
        assert tokens.verify(junk) is None
    assert len(queries) == 0 or (len(junk) == 46 and junk.startswith("cs_"))


def test_expired_revoked_inactive(alice: User) -> None:
    now = timezone.now()
    assert tokens.verify(tokens.create(alice, "old", expires_at=now)[1]) is None
    token, plain = tokens.create(alice, "new", expires_at=now + timedelta(days=1))
    assert tokens.verify(plain) == token
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert tokens.verify(plain) is None
    User.objects.filter(pk=alice.pk).update(is_active=True)
    assert tokens.revoke(token) is True
    assert tokens.revoke(token) is False
    assert token.revoked_at is not None
    assert tokens.verify(plain) is None


def test_use_is_noted_once_a_minute(alice: User) -> None:
    token, plain = tokens.create(alice, "laptop")
    with CaptureQueriesContext(connection) as first:
        tokens.verify(plain)
    assert len(first) == 2
    with CaptureQueriesContext(connection) as second:
        tokens.verify(plain)
    assert len(second) == 1
    before = timezone.now() - timedelta(minutes=2)
    Token.objects.filter(pk=token.pk).update(last_used_at=before)
    tokens.verify(plain)
    token.refresh_from_db()
    assert token.last_used_at is not None and token.last_used_at > before
