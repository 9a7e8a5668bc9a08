"""Signing in with name and password, for every door that takes them."""

from __future__ import annotations

import threading

from django.contrib import auth
from django.db import transaction
from django.http import HttpRequest

from accounts import audit, throttle
from accounts.address import client_address
from accounts.models import User
from accounts.throttle import Throttled

__all__ = ["SignInRefused", "Throttled", "check", "sign_in", "sign_out"]

# One argon2 hash takes 100 MiB; a crowd at the door shall not take the machine's memory.
HASHES_AT_ONCE = 4
HASH_PATIENCE = 10.0
_hashing = threading.BoundedSemaphore(HASHES_AT_ONCE)
MAX_LENGTH = 1024


class SignInRefused(Exception):
    """Name and password don't belong to an active user. Which of the two was wrong is not told."""


def check(request: HttpRequest, username: str, password: str) -> User:
    """The active user with this name and password. Raises SignInRefused or Throttled(retry_after).

    Unknown names cost the same time as wrong passwords. Must not run in a transaction that a refusal rolls
    back: the count of failures would be lost.
    """
    granted = throttle.claim(username, client_address(request))
    if not _hashing.acquire(timeout=HASH_PATIENCE):
        throttle.take_back(granted)
        raise Throttled(retry_after=5)
    try:
        if not _plausible(username, password):
            username = password = ""  # nobody's name; the hash is computed all the same
        user = auth.authenticate(request, username=username, password=password)
    finally:
        _hashing.release()
    if not isinstance(user, User):
        raise SignInRefused
    throttle.forgive(granted)
    return user


def sign_in(request: HttpRequest, username: str, password: str) -> User:
    """`check`, then a session with a new key for that user, and an audit row. Raises as `check` does."""
    user = check(request, username, password)
    with transaction.atomic():
        auth.login(request, user)
        audit.record(user, "session.started", user.get_username(), request)
    return user


def sign_out(request: HttpRequest) -> None:
    """Ends the session and deletes what it held. Idempotent."""
    if request.user.is_authenticated:
        audit.record(request.user, "session.ended", request.user.get_username(), request)
    auth.logout(request)


def _plausible(username: str, password: str) -> bool:
    """Whether the database and the hash can take them; Django's own forms never meet the others."""
    if max(len(username), len(password)) > MAX_LENGTH or "\0" in username:
        return False
    try:
        (username + password).encode()
    except UnicodeEncodeError:
        return False
    return True
