"""API tokens: 256 random bits behind `cs_`, of which the database keeps only the SHA-256."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import DatabaseError, connection
from django.db.models import Q
from django.utils import timezone

from accounts.models import Token, User
from prepared.query import Query, Slot, columns, instances

log = logging.getLogger(__name__)

FILES_READ = "files:read"
FILES_WRITE = "files:write"
ACCOUNT = "account"
ADMIN = "admin"
SCOPES = (FILES_READ, FILES_WRITE, ACCOUNT, ADMIN)
DEFAULT_SCOPES = (FILES_READ, FILES_WRITE)

PLAIN_PREFIX = "cs_"
PLAIN_LENGTH = len(PLAIN_PREFIX) + 43
SHOWN = len(PLAIN_PREFIX) + 6
USE_NOTED_EVERY = timedelta(minutes=1)


_VALID = Query(
    lambda: (
        Token.objects.order_by()
        .filter(Q(expires_at=None) | Q(expires_at__gt=Slot("now", Token, "expires_at")))
        .filter(digest=Slot("digest", Token, "digest"), revoked_at=None, user__is_active=True)
        .values_list(*columns(Token), *columns(User, "user__"))
    )
)


def create(
    user: User, name: str, scopes: Iterable[str] = DEFAULT_SCOPES, expires_at: datetime | None = None
) -> tuple[Token, str]:
    """Makes a token of `user` -> (row, plain text). The plain text exists nowhere else: show it once.

    Raises ValueError for an unknown or no scope and for a name that is empty or over 100 characters.
    """
    wanted = set(scopes)
    if unknown := sorted(wanted.difference(SCOPES)):
        raise ValueError(f"unknown scope {', '.join(unknown)}; known are {', '.join(SCOPES)}")
    if not wanted:
        raise ValueError("a token needs at least one scope")
    if not 0 < len(name.strip()) <= 100:
        raise ValueError("a token's name has 1 to 100 characters")
    plaintext = PLAIN_PREFIX + secrets.token_urlsafe(32)
    token = Token.objects.create(
        user=user,
        name=name.strip(),
        prefix=plaintext[:SHOWN],
        digest=_digest(plaintext),
        scopes=[scope for scope in SCOPES if scope in wanted],
        expires_at=expires_at,
    )
    return token, plaintext


def verify(plaintext: str) -> Token | None:
    """The token, with its user, when it is known, not revoked, not expired and its user active; else None.

    The look-up compares hashes, so its time says nothing about the token. Notes the use once a minute.
    """
    if len(plaintext) != PLAIN_LENGTH or not plaintext.startswith(PLAIN_PREFIX) or not plaintext.isascii():
        return None
    now = timezone.now()
    rows = _VALID(digest=_digest(plaintext), now=now)
    if not rows:
        return None
    token: Token
    user: User
    token, user = instances(rows[0], Token, User)
    token.user = user
    if token.last_used_at is None or token.last_used_at <= now - USE_NOTED_EVERY:
        _note_use(token, now)
    return token


def _note_use(token: Token, now: datetime) -> None:
    # The condition keeps a crowd of requests from writing the same minute.
    unnoted = Q(last_used_at__isnull=True) | Q(last_used_at__lte=now - USE_NOTED_EVERY)
    try:
        Token.objects.filter(unnoted, pk=token.pk).update(last_used_at=now)
    except DatabaseError as error:
        if connection.in_atomic_block:  # the caller's transaction is broken
            raise
        # A database that takes no writes is no reason to refuse a download.
        log.error("the use of a token could not be noted: the database failed: %s", error)
    else:
        token.last_used_at = now


def revoke(token: Token) -> bool:
    """Ends a token for ever; True when this call did it. Idempotent."""
    now = timezone.now()
    done = bool(Token.objects.filter(pk=token.pk, revoked_at__isnull=True).update(revoked_at=now))
    token.refresh_from_db(fields=["revoked_at"])
    return done


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()
