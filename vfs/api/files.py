"""Raw bytes by path: `/api/v1/files/<path>`."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from vfs import trash, tree
from vfs.access import locate
from vfs.api.base import ByteEndpoint, node_response, page_query, plain
from vfs.api.downloads import answer
from vfs.api.nodes import listing
from vfs.api.problems import Refused
from vfs.api.receive import receive_file
from vfs.api.serializers import NodeSerializer
from vfs.conditions import Conditions
from vfs.errors import NodeNotFound
from vfs.models import Node
from vfs.names import split_path

_PURGE = OpenApiParameter("purge", bool, description="Delete for good, not to the trash.")
_INLINE = OpenApiParameter("inline", bool, description="Show pictures and plain text instead of saving them.")


def path_of(request: Request, *, folder: bool = False) -> tuple[str, ...]:
    """The names of the address's path. An escaped slash (%2F) is a slash. Raises InvalidName, Refused."""
    django = plain(request)
    try:
        # As WSGI has it: the bytes of the path, each as one character (cloudstore/wsgi.py keeps it).
        django.META.get("cloudstore.path", "").encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise Refused(400, "invalid_name", "The path is not valid UTF-8.") from None
    return split_path(django.path_info.partition("/api/v1/files")[2], folder=folder)


class FileView(ByteEndpoint):
    """A file by its path. A folder answers with its list."""

    @extend_schema(parameters=[_INLINE], responses={200: OpenApiTypes.BINARY})
    def get(self, request: Request, path: str = "") -> HttpResponseBase:
        names = path_of(request, folder=True)
        node = tree.root_of(self.user) if not names else tree.resolve(self.user, names)
        if node.is_folder:
            cursor, limit = page_query(request)
            return listing(tree.Place(node, names), cursor, limit)
        if plain(request).path.endswith("/") or node.version is None:
            raise NodeNotFound
        return answer(plain(request), node, node.version)

    @extend_schema(request=OpenApiTypes.BINARY, responses={200: NodeSerializer, 201: NodeSerializer})
    def put(self, request: Request, path: str = "") -> Response:
        names = path_of(request)
        outcome = receive_file(self.user, names, plain(request))
        place = locate(outcome.node)
        headers = {"ETag": f'"{outcome.node.version.content.sha256}"'} if outcome.node.version else {}
        if outcome.created:
            headers["Location"] = "/api/v1/files" + quote(place.path)
        return node_response(place, 201 if outcome.created else 200, headers)

    @extend_schema(parameters=[_PURGE], responses={204: None})
    def delete(self, request: Request, path: str = "") -> Response:
        node = tree.resolve(self.user, path_of(request, folder=True))
        remove(self, request, node)
        return Response(status=204)


def remove(view: Any, request: Request, node: Node) -> None:
    """Trash a node, or purge it with `?purge=true`."""
    conditions = Conditions.of(plain(request))
    conditions.check(node)
    if flag(request, "purge"):
        trash.purge(view.user, view.user, node.pk, request=plain(request))
    else:
        trash.trash(view.user, view.user, node.pk, request=plain(request))


def flag(request: Request, name: str) -> bool:
    """A flag of the query. Raises Refused for what is neither true nor false: it may delete."""
    value = request.query_params.get(name, "false").lower()
    if value in {"true", "1"}:
        return True
    if value in {"false", "0"}:
        return False
    raise Refused(400, "invalid", f'"{name}" is either true or false.')
