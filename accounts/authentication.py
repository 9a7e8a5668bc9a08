"""How an API request says who sends it: a Bearer token, or the session of a signed-in browser."""

from __future__ import annotations

from rest_framework import authentication, exceptions
from rest_framework.request import Request

from accounts import tokens
from accounts.models import Token, User
from accounts.origin import is_cross_site


class TokenAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer cs_...`. A wrong token is 401; the session is not asked then."""

    def authenticate(self, request: Request) -> tuple[User, Token] | None:
        scheme, _, credentials = authentication.get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        token = tokens.verify(credentials.strip().decode("latin-1"))
        if token is None:
            raise exceptions.AuthenticationFailed(
                "The token is unknown, expired or revoked.", code="bad_token"
            )
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class SessionAuthentication(authentication.SessionAuthentication):
    """The session cookie. A request that another site makes the browser send is refused (403) by its headers
    alone: the body is not read, so an upload can stream."""

    def enforce_csrf(self, request: Request) -> None:
        if is_cross_site(request._request):
            raise exceptions.PermissionDenied("This request comes from another site.", code="cross_site")
