"""token_create and user_create."""

from __future__ import annotations

import io
import json
import sys
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts import tokens, users
from accounts.models import AuditEvent, Token, User


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_token_stands_alone_on_the_last_line(alice: User) -> None:
    lines = run("token_create", "alice", "--name", "ci").splitlines()
    token = tokens.verify(lines[-1])
    assert token is not None and token.user == alice and token.name == "ci"
    assert token.scopes == ["files:read", "files:write"] and token.expires_at is None
    assert lines[-1] not in str(list(AuditEvent.objects.values()))


def test_token_scopes_days_json(alice: User) -> None:
    arguments = [
        "token_create",
        "alice",
        "--scope",
        "admin",
        "--scope",
        "files:read",
        "--days",
        "7",
        "--json",
    ]
    shown = json.loads(run(*arguments))
    token = tokens.verify(shown["token"])
    assert token is not None and shown["id"] == token.pk
    assert shown["scopes"] == token.scopes == ["files:read", "admin"]
    assert token.expires_at is not None
    assert timedelta(days=6.9) < token.expires_at - timezone.now() < timedelta(days=7.1)


@pytest.mark.parametrize(
    "arguments",
    [["nobody"], ["alice", "--scope", "everything"], ["alice", "--days", "0"], ["alice", "--name", " "]],
)
def test_bad_tokens_are_refused(alice: User, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        run("token_create", *arguments)
    assert not Token.objects.exists()


def test_no_token_for_the_inactive(alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)
    with pytest.raises(CommandError, match="not active"):
        run("token_create", "alice")


def test_user_with_random_password(db: None) -> None:
    lines = run("user_create", "carol", "--email", "carol@example.com").splitlines()
    assert lines[0] == "user: carol" and lines[1].startswith("password: ")
    carol = User.objects.get(username="carol")
    assert carol.check_password(lines[1].removeprefix("password: "))
    assert (carol.email, carol.is_staff, carol.is_superuser) == ("carol@example.com", False, False)


def test_user_with_given_password(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long enough secret\n"))
    shown = json.loads(run("user_create", "carol", "--superuser", "--password-stdin", "--json"))
    assert shown == {"user": "carol", "email": "", "staff": True, "superuser": True}
    assert User.objects.get().check_password("a long enough secret")


@pytest.mark.parametrize("name", ["alice", "", "a b", "a/b", "x" * 151])
def test_bad_names_are_refused(alice: User, name: str) -> None:
    with pytest.raises(CommandError):
        run("user_create", name)
    assert User.objects.count() == 1


@pytest.mark.parametrize("password", ["", "short", "password1", "12345678901", "carol-carol"])
def test_weak_passwords_are_refused(db: None, password: str) -> None:
    with pytest.raises(ValidationError):
        users.create("carol-carol", password=password)
    assert not User.objects.exists()
