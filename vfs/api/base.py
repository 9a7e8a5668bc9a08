"""What all endpoints share: who, with which scope, and JSON alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from django.http import HttpRequest
from rest_framework.exceptions import NotFound
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from accounts.permissions import HasScope
from vfs.api.problems import Refused
from vfs.api.serializers import NodeSerializer, PageQuery
from vfs.listing import show
from vfs.tree import Place

READ, WRITE = "files:read", "files:write"
JSON_MOST = 64 * 1024


class JsonAlways(DefaultContentNegotiation):
    """JSON, whatever the client says it accepts: a download's `Accept: image/*` is no reason for a 406."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, str(renderer.media_type)


class Endpoint(APIView):
    """An endpoint of the drive: for the signed-in user's own tree. `scopes` says what a token needs."""

    permission_classes: Sequence[type[BasePermission]] = (HasScope,)
    renderer_classes = (JSONRenderer,)
    parser_classes: Sequence[type[BaseParser]] = (JSONParser,)
    content_negotiation_class = JsonAlways
    scopes: ClassVar[dict[str, str]] = {"GET": READ, "POST": WRITE, "PUT": WRITE, "DELETE": WRITE}

    @property
    def user(self) -> User:
        user = self.request.user
        assert isinstance(user, User)  # noqa: S101 - HasScope let it pass
        return user

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response.headers.setdefault("Cache-Control", "private, no-store")
        return response


class ByteEndpoint(Endpoint):
    """An endpoint whose body is read by vfs/api/body.py alone: DRF must not parse it."""

    parser_classes = ()


def plain(request: Request) -> HttpRequest:
    """Django's request within DRF's."""
    return request._request


def json_of(request: Request) -> Any:
    """The body of a small JSON request. Raises Refused (413) for a large one before reading it."""
    try:
        length = int(plain(request).META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = 0
    if length > JSON_MOST:
        raise Refused(413, "too_large", f"This request takes at most {JSON_MOST} bytes.")
    return request.data


def node_response(place: Place, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(NodeSerializer(show([place])[0]).data, status=status, headers=headers)


def page_query(request: Request) -> tuple[str | None, int]:
    """`cursor` and `limit` of a list request. Raises ValidationError."""
    query = PageQuery(data=request.query_params)
    query.is_valid(raise_exception=True)
    return query.validated_data.get("cursor"), query.validated_data["limit"]


class NotFoundView(ByteEndpoint):
    """Every other address below the API, for any method: a problem instead of a page."""

    authentication_classes = ()
    permission_classes = ()
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise NotFound
