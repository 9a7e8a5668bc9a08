"""REST: brokers, their drivers, and what an operator does to them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from brokers import clock, health, history, registry
from brokers.errors import Misconfigured
from brokers.models import Broker
from brokers.present import as_dict
from console import brokers, jobs, operations
from console.api.base import OperatorEndpoint, broker_or_404, given, keyset
from console.api.serializers import (
    BrokerChange,
    BrokerSerializer,
    BrokersSerializer,
    DriversSerializer,
    HistoryQuery,
    HistorySerializer,
    NewBroker,
    OutlookSerializer,
    ProgressSerializer,
    RemovalInput,
    RemovalSerializer,
    TrialSerializer,
)
from replication import drain, rebalance
from vfs.api.base import page_query
from vfs.api.serializers import PageQuery


class BrokersView(OperatorEndpoint):
    """The brokers."""

    rights: ClassVar[dict[str, str]] = {**OperatorEndpoint.rights, "POST": "brokers.add_broker"}

    @extend_schema(operation_id="brokers_list", parameters=[PageQuery], responses=BrokersSerializer)
    def get(self, request: Request) -> Response:
        """By name, in pages, with their health as of the last poll."""
        found, cursor = keyset(Broker.objects.all(), "name", *page_query(request))
        return Response({"brokers": [as_dict(broker) for broker in found], "next": cursor})

    @extend_schema(request=NewBroker, responses={201: BrokerSerializer, 200: BrokerSerializer})
    def post(self, request: Request) -> Response:
        """Connect a place: prepare it, mark it, poll it; with `adopt` a job looks through it. 200 with `dry_run`, which
        changes nothing."""
        values = given(NewBroker, request)
        added = brokers.add(who=self.who, **values)
        if values["adopt"] and not values["dry_run"]:
            jobs.begin_adoption(added.pk, self.who)
        return Response(as_dict(added), status=200 if values["dry_run"] else 201)


class BrokerView(OperatorEndpoint):
    """One broker."""

    @extend_schema(responses=BrokerSerializer)
    def get(self, request: Request, broker_id: int) -> Response:
        return Response(as_dict(broker_or_404(broker_id)))

    @extend_schema(request=BrokerChange, responses=BrokerSerializer)
    def patch(self, request: Request, broker_id: int) -> Response:
        """Change what is given. New options must lead to the same place."""
        broker = broker_or_404(broker_id)
        return Response(as_dict(brokers.update(broker.pk, self.who, **given(BrokerChange, request))))


class DriversView(OperatorEndpoint):
    """The kinds of brokers, with the options that each takes."""

    @extend_schema(responses=DriversSerializer)
    def get(self, request: Request) -> Response:
        shown = [_driver(slug, label) for slug, label in registry.choices()]
        return Response({"drivers": shown})


def _driver(slug: str, label: str) -> dict[str, Any]:
    try:
        kind = registry.get(slug)
    except Misconfigured as error:
        return {"slug": slug, "label": slug, "unusable": str(error), "options": [], "deviations": {}}
    return {
        "slug": slug,
        "label": label,
        "unusable": "",
        "options": [_option(name, field, kind) for name, field in kind.form.base_fields.items()],
        "deviations": dict(getattr(kind.cls, "deviations", {})),
    }


def _option(name: str, field: forms.Field, kind: registry.Kind) -> dict[str, Any]:
    secret = name in kind.secret_options
    choices = [[str(value), str(text)] for value, text in getattr(field, "choices", [])]
    initial = field.initial() if callable(field.initial) else field.initial
    return {
        "name": name,
        "label": str(field.label or name.replace("_", " ").capitalize()),
        "help": str(field.help_text),
        "type": _type(field),
        "required": field.required,
        "secret": secret,
        "initial": None if secret else initial,
        "choices": choices,
    }


def _type(field: forms.Field) -> str:
    if isinstance(field, forms.BooleanField):
        return "boolean"
    if isinstance(field, forms.ChoiceField):
        return "choice"
    if isinstance(field, forms.FloatField | forms.DecimalField):
        return "number"
    if isinstance(field, forms.IntegerField):
        return "integer"
    return "long_text" if isinstance(field.widget, forms.Textarea) else "text"


class HistoryView(OperatorEndpoint):
    @extend_schema(parameters=[HistoryQuery], responses=HistorySerializer)
    def get(self, request: Request, broker_id: int) -> Response:
        """How the broker has done: calls, errors, bytes and latencies, for charts."""
        broker = broker_or_404(broker_id)
        query = HistoryQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        asked = query.validated_data
        until = asked.get("until") or clock.now()
        since = asked.get("since") or until - timedelta(days=1)
        points = history.series(broker.pk, since, until, asked["step"])
        return Response({"points": [_point(point) for point in points]})


def _point(point: history.Point) -> dict[str, Any]:
    parts = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        "start": point.start.isoformat(),
        "span": point.span,
        "calls": point.calls,
        "failures": point.failures,
        "errors": point.errors,
        "bytes_up": point.bytes_up,
        "bytes_down": point.bytes_down,
        "used": point.used,
        "available": point.available,
        "speeds": {
            operation: {"calls": point.count(operation)}
            | {name: point.quantile(operation, part) for name, part in parts.items()}
            for operation in sorted(point.latency)
        },
    }


# -- actions ------------------------------------------------------------------------------------------


class TestView(OperatorEndpoint):
    @extend_schema(request=None, responses=TrialSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Write, read, hash, list and delete one small object. 200 also when it fails: see `ok`."""
        return Response(operations.as_dict(brokers.test(broker_or_404(broker_id).pk, self.who)))


class PollView(OperatorEndpoint):
    @extend_schema(request=None, responses=BrokerSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Look at the broker's health and capacity now."""
        return Response(as_dict(health.poll(broker_or_404(broker_id).pk)))


class EnableView(OperatorEndpoint):
    @extend_schema(request=None, responses=BrokerSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Use the broker again. Idempotent."""
        return Response(as_dict(brokers.set_enabled(broker_or_404(broker_id).pk, True, self.who)))


class DisableView(OperatorEndpoint):
    @extend_schema(request=None, responses=BrokerSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Neither read, write nor poll the broker; its copies stay. Idempotent."""
        return Response(as_dict(brokers.set_enabled(broker_or_404(broker_id).pk, False, self.who)))


class MarkerView(OperatorEndpoint):
    @extend_schema(request=None, responses=BrokerSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Declare that the place, whose marker is gone or damaged, is this broker's."""
        return Response(as_dict(brokers.write_marker(broker_or_404(broker_id).pk, self.who)))


class ConfirmLossView(OperatorEndpoint):
    @extend_schema(request=None, responses=BrokerSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Say that what a broker with an incident is missing is lost: it is used again, and what it does not have is
        copied from elsewhere. Idempotent."""
        return Response(as_dict(operations.confirm_loss(broker_or_404(broker_id).pk, self.who)))


class DrainView(OperatorEndpoint):
    @extend_schema(responses=ProgressSerializer)
    def get(self, request: Request, broker_id: int) -> Response:
        """How far the drain is, or what one would have to move."""
        return Response(operations.as_dict(drain.progress(broker_or_404(broker_id).pk)))

    @extend_schema(request=None, responses=ProgressSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Move everything to the other brokers; the workers do it. Idempotent."""
        return Response(operations.as_dict(operations.begin_drain(broker_or_404(broker_id).pk, self.who)))


class UndoDrainView(OperatorEndpoint):
    @extend_schema(request=None, responses=ProgressSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Use a draining broker like the others again. Idempotent."""
        return Response(operations.as_dict(operations.undo_drain(broker_or_404(broker_id).pk, self.who)))


class RemoveView(OperatorEndpoint):
    rights: ClassVar[dict[str, str]] = {**OperatorEndpoint.rights, "POST": "brokers.delete_broker"}

    @extend_schema(request=RemovalInput, responses=RemovalSerializer)
    def post(self, request: Request, broker_id: int) -> Response:
        """Remove a broker that holds no needed copy; 409 says why not."""
        broker = broker_or_404(broker_id)
        values = given(RemovalInput, request)
        if values["dry_run"]:
            result = operations.look_at_removal(broker.pk)
        elif "force_name" in values:
            result = operations.remove_by_force(broker.pk, values["force_name"], self.who)
        else:
            result = operations.remove(broker.pk, self.who, leave_objects=values["leave_objects"])
        return Response(operations.as_dict(result))


class RebalanceView(OperatorEndpoint):
    """Load moves between the brokers in proportion to their free space."""

    @extend_schema(operation_id="rebalance_status", responses=OutlookSerializer)
    def get(self, request: Request) -> Response:
        """How load stands, and what would move."""
        return Response(operations.as_dict(rebalance.look()))

    @extend_schema(operation_id="rebalance_start", request=None, responses=OutlookSerializer)
    def post(self, request: Request) -> Response:
        """Begin; the workers do it and stop by themselves. Idempotent."""
        return Response(operations.as_dict(operations.begin_rebalance(self.who)))

    @extend_schema(operation_id="rebalance_stop", responses=OutlookSerializer)
    def delete(self, request: Request) -> Response:
        """End it where it is. Idempotent."""
        return Response(operations.as_dict(operations.stop_rebalance(self.who)))
