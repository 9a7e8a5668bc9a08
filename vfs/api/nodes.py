"""REST: nodes by their id, folders, the trash, the account."""

from __future__ import annotations

import uuid

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import quota
from vfs import trash, tree
from vfs.access import get_node, get_trashed, locate
from vfs.api.base import ByteEndpoint, Endpoint, json_of, node_response, page_query, plain
from vfs.api.receive import receive_form
from vfs.api.serializers import (
    AccountSerializer,
    FolderInput,
    ListingSerializer,
    NodeSerializer,
    PageQuery,
    TrashSerializer,
    UploadedSerializer,
)
from vfs.conditions import Conditions
from vfs.errors import NotAFolder
from vfs.listing import show, show_children
from vfs.names import split_path
from vfs.notices import notices
from vfs.tree import Place

_FORM = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}


def listing(folder: Place, cursor: str | None, limit: int) -> Response:
    """A page of a folder."""
    found = tree.children(folder.node, cursor=cursor, limit=limit)
    shown = {
        "folder": show([folder])[0],
        "children": show_children(folder, found.nodes),
        "next": found.cursor,
        "notices": notices(),
    }
    return Response(ListingSerializer(shown).data)


class RootView(Endpoint):
    """The top folder."""

    @extend_schema(responses=NodeSerializer)
    def get(self, request: Request) -> Response:
        return node_response(Place(tree.root_of(self.user), ()))


class NodeView(Endpoint):
    """A folder or file by its id."""

    @extend_schema(responses=NodeSerializer)
    def get(self, request: Request, node_id: uuid.UUID) -> Response:
        return node_response(get_node(self.user, node_id))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, node_id: uuid.UUID) -> Response:
        """Move to the trash."""
        place = get_node(self.user, node_id)
        Conditions.of(plain(request)).check(place.node)
        trash.trash(self.user, self.user, node_id, request=plain(request))
        return Response(status=204)


class ChildrenView(Endpoint):
    """What is in a folder: folders first, by name, in pages."""

    @extend_schema(parameters=[PageQuery], responses=ListingSerializer)
    def get(self, request: Request, node_id: uuid.UUID) -> Response:
        place = get_node(self.user, node_id)
        if not place.node.is_folder:
            raise NotAFolder
        return listing(place, *page_query(request))


class FormUploadView(ByteEndpoint):
    """Upload one or many files as a form. All become visible, or none."""

    @extend_schema(request={"multipart/form-data": _FORM}, responses={201: UploadedSerializer})
    def post(self, request: Request, node_id: uuid.UUID) -> Response:
        place = get_node(self.user, node_id)
        if not place.node.is_folder:
            raise NotAFolder
        outcomes = receive_form(self.user, place.node, plain(request))
        shown = show(locate(outcome.node) for outcome in outcomes)
        return Response(UploadedSerializer({"files": shown}).data, status=201)


class FoldersView(Endpoint):
    """Make a folder."""

    @extend_schema(request=FolderInput, responses={201: NodeSerializer})
    def post(self, request: Request) -> Response:
        data = FolderInput(data=json_of(request))
        data.is_valid(raise_exception=True)
        names = split_path(data.validated_data["path"], folder=True)
        folder = tree.create_folder(self.user, self.user, names, request=plain(request))
        return node_response(locate(folder), 201)


class TrashView(Endpoint):
    """What was deleted, latest first, in pages."""

    @extend_schema(operation_id="trash_list", parameters=[PageQuery], responses=TrashSerializer)
    def get(self, request: Request) -> Response:
        cursor, limit = page_query(request)
        found = tree.trash_of(self.user, cursor=cursor, limit=limit)
        shown = {"nodes": show(map(locate, found.nodes)), "next": found.cursor}
        return Response(TrashSerializer(shown).data)


class TrashedView(Endpoint):
    """Something in the trash."""

    @extend_schema(responses=NodeSerializer)
    def get(self, request: Request, node_id: uuid.UUID) -> Response:
        return node_response(get_trashed(self.user, node_id))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, node_id: uuid.UUID) -> Response:
        """Delete for good."""
        get_trashed(self.user, node_id)
        trash.purge(self.user, self.user, node_id, request=plain(request))
        return Response(status=204)


class AccountView(Endpoint):
    """Who asks, and how much space there is."""

    @extend_schema(responses=AccountSerializer)
    def get(self, request: Request) -> Response:
        usage = quota.usage(self.user)
        return Response(AccountSerializer({"name": self.user.get_username(), "usage": usage}).data)
