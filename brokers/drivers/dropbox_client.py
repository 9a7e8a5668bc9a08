"""The Dropbox SDK's client, made fit for many threads: one request for each call, one refresh for all.

What the SDK does otherwise: it sleeps and tries again by itself, waits up to 100 s, follows redirects, lets each
thread that finds the token expired fetch one of its own, and asserts what an answer looks like."""

from __future__ import annotations

import logging
import threading
from typing import Any

from dropbox import Dropbox, create_session
from dropbox.auth import AuthError as AuthErrors
from dropbox.exceptions import AuthError
from dropbox.session import API_HOST

from brokers import clock
from brokers.drivers.dropbox_errors import Expired, named
from brokers.endpoint import guard_requests
from brokers.errors import Misconfigured, Unavailable

CONNECT_SECONDS = 5.0
READ_SECONDS = 25.0
CONNECTIONS = 32
# A token is taken for expired so many seconds before it is.
EARLY = 300.0

logging.getLogger("dropbox").setLevel(logging.WARNING)  # the SDK tells each request at INFO


def new_session() -> Any:
    """The SDK's own requests session (its TLS settings, its pool): no redirects, each connection's address checked,
    bodies as they are. Tests put a server of their own behind it."""
    session = create_session(max_connections=CONNECTIONS)
    guard_requests(session)
    session.headers["Accept-Encoding"] = "identity"
    return session


def timeouts() -> tuple[float, float]:
    """Seconds to connect, and between two packets."""
    return CONNECT_SECONDS, READ_SECONDS


class Client(Dropbox):
    """Raises BrokerErrors for answers that are no success, beside what the SDK and requests raise of themselves."""

    def __init__(self, *, app_key: str, app_secret: str, refresh_token: str, access_token: str) -> None:
        if not all(word.isascii() and word.isprintable() for word in (app_key, refresh_token, access_token)):
            raise Misconfigured("a key or a token has characters that Dropbox does not use")
        if not (access_token or (refresh_token and app_key)):
            raise Misconfigured("give the app key and a refresh token")
        super().__init__(
            oauth2_access_token=None if refresh_token else access_token,
            oauth2_refresh_token=refresh_token or None,
            app_key=app_key or None,
            app_secret=app_secret or None,
            max_retries_on_error=0,
            max_retries_on_rate_limit=0,
            user_agent="CloudStore",
            session=new_session(),
            timeout=timeouts(),  # requests takes the pair
        )
        self._refreshing = threading.Lock()
        self._fresh_until = float("-inf")
        self._mine = threading.local()

    def __repr__(self) -> str:
        return "<Client>"

    def check_and_refresh_access_token(self) -> None:
        """Fetch a token before a request when there is none, or when it is about to expire. Whoever comes meanwhile
        waits for the same one."""
        if not self._oauth2_refresh_token or clock.monotonic() < self._fresh_until:
            return
        with self._refreshing:
            if clock.monotonic() >= self._fresh_until:
                self._fetch()

    def request_json_string(self, *arguments: Any, **named_arguments: Any) -> Any:
        self._mine.token = self._oauth2_access_token
        return super().request_json_string(*arguments, **named_arguments)

    def refresh_access_token(self, host: str = API_HOST, scope: Any = None) -> None:
        """The SDK asks for this once when the token that this thread has used turned out to be expired."""
        with self._refreshing:
            if self._oauth2_access_token == self._mine.token:
                self._fetch()

    def doubt_token(self) -> None:
        """Let the next call fetch another token: this thread's may have been revoked."""
        if self._oauth2_access_token == getattr(self._mine, "token", None):
            self._fresh_until = float("-inf")

    def _fetch(self) -> None:
        body = {
            "grant_type": "refresh_token",
            "refresh_token": self._oauth2_refresh_token,
            "client_id": self._app_key,
        }
        if self._app_secret:
            body["client_secret"] = self._app_secret
        answer = self._session.post(f"https://{API_HOST}/oauth2/token", data=body, timeout=self._timeout)
        self.raise_dropbox_error_for_resp(answer)
        told = answer.json()
        token, seconds = told["access_token"], float(told["expires_in"])
        if not (isinstance(token, str) and token and token.isascii() and token.isprintable()):
            raise Unavailable("what came is no token")
        self._oauth2_access_token = token
        self._fresh_until = clock.monotonic() + max(seconds - EARLY, seconds / 2)

    def raise_dropbox_error_for_resp(self, res: Any) -> None:
        """The SDK asks this about each answer."""
        if 200 <= res.status_code <= 299:
            return
        try:
            error = named(res)
        finally:
            res.close()
        if isinstance(error, Expired) and self._oauth2_refresh_token:
            raise AuthError(
                None, AuthErrors.expired_access_token
            )  # the SDK fetches a token and asks again, once
        raise error
