"""What an answer of Dropbox's that is no success means (dropbox.com/developers/documentation/http, "Errors").

The body is read here rather than by the SDK, whose reading fails on anything that is not exactly what it expects.
Dropbox's own messages are left out: they may quote what was sent. Its tags are words of the protocol."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

from brokers.endpoint import retry_after
from brokers.errors import (
    BrokerError,
    InvalidKey,
    Misconfigured,
    OutOfSpace,
    RangeError,
    RateLimited,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)

MISSING = "driver 'dropbox' needs the Python package dropbox; install it and start again"
CONNECT_AGAIN = "obtain a new refresh token (manage.py dropbox_connect)"
REVOKED = f"the refresh token was revoked, or belongs to another app; {CONNECT_AGAIN}"
EXPIRED = f"the access token has expired, as each one does after some hours; {CONNECT_AGAIN}"
# No error of Dropbox's is longer.
LONGEST = 65536
PIECES = 16
_TAG = re.compile(r"[a-z_]{1,60}\Z")
_SCOPE = re.compile(r"[a-z_]+(\.[a-z_]+)+\Z")
_LACKS = re.compile(r"required scope '([a-z_.]{1,60})'")

_TAGS: dict[str, tuple[type[BrokerError], str]] = {
    "insufficient_space": (OutOfSpace, "the account is full"),
    "team_folder_insufficient_space": (OutOfSpace, "the team folder is full"),
    "member_folder_insufficient_space": (OutOfSpace, "the member's folder is full"),
    "too_many_write_operations": (RateLimited, "too many writes at a time in this account"),
    "too_many_requests": (RateLimited, "Dropbox asks to slow down"),
    "no_write_permission": (ReadOnly, "the account may not write there"),
    "access_restricted": (ReadOnly, "the team's administrator has restricted writing there"),
    "operation_suppressed": (ReadOnly, "Dropbox does not allow this at this place"),
    "upload_traffic_limit_reached": (ReadOnly, "the month's allowance of uploads is used up"),
    "malformed_path": (InvalidKey, "Dropbox does not take this name"),
    "disallowed_name": (InvalidKey, "Dropbox does not take this name"),
    "restricted_content": (Misconfigured, "Dropbox has blocked this file"),
    "payload_too_large": (TooLarge, "the object is larger than Dropbox takes at once"),
    "content_hash_mismatch": (Unavailable, "the bytes changed on the way: their hash is another"),
    "reset": (Unavailable, "the listing lost its place and has to begin anew"),
    "user_suspended": (Unauthorized, "the account is suspended"),
    "invalid_access_token": (Unauthorized, f"Dropbox does not accept the token any more; {CONNECT_AGAIN}"),
    "expired_access_token": (Unauthorized, EXPIRED),
    "invalid_grant": (Unauthorized, REVOKED),
    "invalid_client": (Unauthorized, "the app key or the app secret is wrong"),
    "unauthorized_client": (Unauthorized, "the app key or the app secret is wrong"),
}
_STATUS: dict[int, tuple[type[BrokerError], str]] = {
    400: (Misconfigured, "Dropbox does not understand the request"),
    401: (Unauthorized, "Dropbox does not accept the credentials"),
    403: (Unauthorized, "Dropbox does not permit this with these credentials"),
    # The addresses are fixed: only something between here and Dropbox does not know them.
    404: (Unavailable, "something that is not Dropbox answers"),
    408: (Timeout, "Dropbox waited for the request in vain"),
    409: (Unavailable, "Dropbox refuses this at the moment"),
    413: (TooLarge, "the object is larger than Dropbox takes at once"),
    416: (RangeError, "the range begins after the end of the object"),
    422: (Misconfigured, "the account's root folder is another now"),
    429: (RateLimited, "Dropbox asks to slow down"),
    504: (Timeout, "Dropbox did not answer in time"),
    507: (OutOfSpace, "the account is full"),
}


class Refused(Unavailable):
    """Status 409: the call's own error. `tags` from the outermost to the innermost: ("path", "not_found")."""

    def __init__(self, tags: tuple[str, ...]) -> None:
        super().__init__(f"Dropbox refuses this ({'/'.join(tags) or 'without a reason'})")
        self.tags = tags


class Expired(Unauthorized):
    """The access token has expired; with a refresh token there is another."""


def named(response: Any) -> BrokerError:
    """Our error for an answer that is no success."""
    status = int(response.status_code)
    text = _text(response)
    error = _error(text)
    tags = _tags(error)
    found = next((_TAGS[tag] for tag in reversed(tags) if tag in _TAGS), None) if status < 500 else None
    if status == 401 and "expired_access_token" in tags:
        return Expired(EXPIRED)
    if scope := _lacking(status, tags, error, text):
        return Unauthorized(lacks([scope]))
    if status == 409 and found is None:
        return Refused(tags)
    if status == 400 and found is None and "token is malformed" in text:
        found = (Unauthorized, "the access token is none of Dropbox's")
    if status == 416 and "Range" not in response.request.headers:
        found = (Unavailable, "Dropbox answered status 416")
    wait = _wait(response, error)
    if found is None and status == 503 and wait is not None:
        found = (RateLimited, "Dropbox asks to slow down")
    kind, words = found or _STATUS.get(status) or _other(status)
    return RateLimited(words, wait) if kind is RateLimited else kind(words)


def lacks(scopes: list[str]) -> str:
    """What to do about permissions that the app does not have."""
    return (
        f"the app lacks the permission {', '.join(scopes)}: in Dropbox's App Console tick it on the page Permissions, "
        f"press Submit, and then {CONNECT_AGAIN}: tokens keep the permissions of the day they were made"
    )


def _text(response: Any) -> str:
    """The beginning of the body, also of one that is read as a stream."""
    pieces = islice(response.iter_content(LONGEST // PIECES), PIECES)
    return b"".join(pieces).decode("utf-8", "replace")


def _error(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found.get("error") if isinstance(found, dict) else None


def _tags(error: Any) -> tuple[str, ...]:
    """The tags of a union, each a member of the one before: {".tag": "path", "path": {".tag": "not_found"}}. A write
    that failed has its own below "reason", a rate limit begins with it; the token endpoint's is a bare word."""
    tags: list[str] = []
    while isinstance(error, dict) and len(tags) < 8:
        tag = error.get(".tag")
        if isinstance(tag, str) and _TAG.match(tag):
            tags.append(tag)
            error = error.get(tag) or error.get("reason")
        else:
            error = error.get("reason")
    if isinstance(error, str) and _TAG.match(word := error.partition(":")[0]):
        tags.append(word)
    return tuple(tags)


def _lacking(status: int, tags: tuple[str, ...], error: Any, text: str) -> str:
    """The permission that is missing: 401 says that the token was made without it, 400 that the app has it not."""
    if status == 400:
        found = _LACKS.search(text)
        return found[1] if found else ""
    if "missing_scope" not in tags:
        return ""
    scope = str(error.get("required_scope", ""))
    return scope if _SCOPE.match(scope) else "that it needs"


def _wait(response: Any, error: Any) -> float | None:
    """Seconds to wait. The header counts before the body."""
    told = retry_after(response.headers.get("Retry-After"))
    if told is None and isinstance(error, dict) and type(error.get("retry_after")) in (int, float):
        told = max(0.0, float(error["retry_after"]))
    return told


def _other(status: int) -> tuple[type[BrokerError], str]:
    kind = Misconfigured if 400 <= status < 500 else Unavailable
    return kind, f"Dropbox answered status {status}"
