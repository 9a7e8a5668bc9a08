"""What a token may do."""

from __future__ import annotations

from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from accounts.models import Token


class HasScope(BasePermission):
    """Lets a token pass that has the scope which the view's `scopes` names for the method, e.g.
    `scopes = {"GET": "files:read", "PUT": "files:write"}`; HEAD and OPTIONS go as GET. A method that `scopes`
    does not name is refused to tokens. A session has every scope; nobody signed in is refused (401)."""

    code = "scope_missing"
    message = "This token does not have the scope that is needed here."

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not request.user.is_authenticated:
            return False
        if request.auth is None:
            return True
        method = "GET" if request.method in {"HEAD", "OPTIONS"} else str(request.method)
        scope = getattr(view, "scopes", {}).get(method)
        return isinstance(request.auth, Token) and scope is not None and scope in request.auth.scopes
