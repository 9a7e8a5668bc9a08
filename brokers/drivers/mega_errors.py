"""MEGA's error numbers in our words. Source: `include/mega/types.h` of MEGA's SDK."""

from __future__ import annotations

from brokers.errors import (
    BrokerError,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RateLimited,
    ReadOnly,
    Unauthorized,
    Unavailable,
)

EAGAIN = -3
ESID = -15
LOGIN = frozenset({"us0", "us"})
WRITES = frozenset({"u", "p", "d"})
# The servers of stored bytes, which are no commands: what they say, but for the quota, is about a server.
STORAGE = frozenset({"upload", "download"})
QUOTA = frozenset({-17, -24, -29})
# "Too many failed attempts to log in. Wait one hour", MEGA's own programs say.
LOGIN_PAUSE = 3600.0

_SAME_FOR_ALL: dict[int, tuple[type[BrokerError], str]] = {
    -1: (Unavailable, "MEGA had an internal error"),
    -2: (Misconfigured, "MEGA does not understand the request"),
    EAGAIN: (Unavailable, "MEGA is congested"),
    -4: (RateLimited, "MEGA asks to slow down"),
    -5: (Unavailable, "MEGA could not do it"),
    -6: (RateLimited, "too many requests for the same thing"),
    -7: (Unavailable, "the upload went out of its range"),
    -8: (Unavailable, "an address for bytes had expired"),
    -10: (Misconfigured, "a folder cannot lie inside itself"),
    -11: (Unauthorized, "access denied"),
    -12: (Unavailable, "it exists already"),
    -13: (Unavailable, "the object is not complete yet"),
    -14: (Unavailable, "a key does not fit"),
    ESID: (Unauthorized, "MEGA has ended the session"),
    -16: (Unauthorized, "MEGA has blocked the account or the file; sign in on its website to see why"),
    -17: (OutOfSpace, "the account is full"),
    -18: (Unavailable, "temporarily not available"),
    -19: (RateLimited, "too many connections"),
    -20: (Unavailable, "MEGA could not write"),
    -21: (Unavailable, "MEGA could not read"),
    -22: (Misconfigured, "MEGA does not take this program's key"),
    -23: (Unavailable, "TLS failed at MEGA"),
    -24: (OutOfSpace, "the account would become full"),
    -25: (Unavailable, "MEGA took the request back"),
    -26: (
        Unauthorized,
        "the account asks for a second factor, which a program cannot give; use an account without one",
    ),
    -27: (Unauthorized, "only the main user of the business account may do this"),
    -28: (Unauthorized, "the business account has expired"),
    -29: (Unauthorized, "MEGA gives nothing until the account is below its quota or paid for"),
    -30: (Misconfigured, "the business account's user is not set up completely"),
}


def named(code: int, command: str, time_left: float | None = None) -> BrokerError:
    """Our error for MEGA's answer `code` to a command. NotFound only where one node was asked for by its handle.
    Numbers that nobody has described are outages."""
    if command in LOGIN:
        if code == -9:
            return Unauthorized("the e-mail address or the password is wrong")
        if code == -13:
            return Unauthorized("the account's registration was never confirmed")
        if code == -6:
            return RateLimited("too many failed logins", LOGIN_PAUSE)
    if command in ("g", "download") and code in (-17, -24):
        return RateLimited("the account's transfer quota is used up", time_left)
    if command in (*WRITES, "upload") and code in QUOTA:
        return OutOfSpace(f"the account is full ({code})")
    kind, text = _SAME_FOR_ALL.get(code, (Unavailable, "an unknown error"))
    if command in STORAGE and code not in QUOTA:
        return Unavailable(f"a server at MEGA: {text} ({code})")
    if code == -9:
        if command in ("g", "d"):
            return NotFound()
        return Misconfigured("the folder at MEGA is gone")
    if command in WRITES and code == -11:
        return ReadOnly("MEGA permits no changes there")
    if kind is RateLimited:
        return RateLimited(f"{text} ({code})", time_left)
    return kind(f"{text} ({code})")
