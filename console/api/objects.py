"""REST: the raw objects of a broker."""

from __future__ import annotations

from typing import ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from console import brokers, browse, operations
from console.api.base import OperatorEndpoint, broker_or_404, given
from console.api.serializers import ObjectsQuery, ObjectsSerializer, OrphansInput, OrphansSerializer


class ObjectsView(OperatorEndpoint):
    @extend_schema(parameters=[ObjectsQuery], responses=ObjectsSerializer)
    def get(self, request: Request, broker_id: int) -> Response:
        """What is at the place, and which files it belongs to, in pages."""
        broker = broker_or_404(broker_id)
        query = ObjectsQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        asked = query.validated_data
        page = browse.page(
            broker,
            prefix=asked["prefix"],
            kind=asked["kind"],
            cursor=asked.get("cursor"),
            limit=asked["limit"],
        )
        return Response({"objects": [browse.as_dict(entry) for entry in page.entries], "next": page.cursor})


class OrphansView(OperatorEndpoint):
    rights: ClassVar[dict[str, str]] = {**OperatorEndpoint.rights, "POST": "replication.delete_orphan"}

    @extend_schema(request=OrphansInput, responses=OrphansSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Delete orphans, with every guard: what is in use, too young, not seen twice or a last copy stays, and the
        answer says so for each."""
        broker = broker_or_404(broker_id)
        asked = given(OrphansInput, request)
        outcomes = brokers.delete_orphans(broker.pk, asked["objects"], self.who, dry_run=asked["dry_run"])
        return Response({"objects": [operations.as_dict(outcome) for outcome in outcomes]})
