"""What the operator's endpoints share: who may, how errors look, pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import QuerySet
from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.tokens import ADMIN
from brokers.errors import BrokerError, Misconfigured
from brokers.models import Broker
from brokers.services import InvalidOptions, StaleBroker
from console.jobs import JobRefused
from console.operations import Who
from replication.removal import RemovalRefused
from vfs.api.base import Endpoint, json_of, plain
from vfs.api.problems import CONTENT_TYPE, RETRY_AFTER, exception_handler, problem
from vfs.errors import BadCursor
from vfs.paging import PAGE_MOST, decode, encode

M = TypeVar("M", bound=models.Model)


class OperatorEndpoint(Endpoint):
    """For staff: to all others it does not exist (404). A token needs the scope `admin`; `rights` are the permissions
    that a method needs, as on the console's pages (a superuser has all)."""

    scopes: ClassVar[dict[str, str]] = dict.fromkeys(("GET", "POST", "PATCH", "DELETE"), ADMIN)
    rights: ClassVar[dict[str, str]] = {
        "GET": "brokers.view_broker",
        "POST": "brokers.change_broker",
        "PATCH": "brokers.change_broker",
        "DELETE": "brokers.change_broker",
    }

    def check_permissions(self, request: Request) -> None:
        if request.user.is_authenticated and not request.user.is_staff:
            raise Http404
        super().check_permissions(request)
        right = self.rights.get("GET" if request.method in {"HEAD", "OPTIONS"} else str(request.method))
        if right is not None and not self.user.has_perm(right):
            raise PermissionDenied

    def get_exception_handler(self) -> Callable[[Exception, dict[str, Any]], Response | None]:
        return operator_errors

    @property
    def who(self) -> Who:
        return Who(self.user, plain(self.request))


def operator_errors(error: Exception, context: dict[str, Any]) -> Response | None:
    """What operators' services raise as problems; everything else as elsewhere in the API."""
    wait = {"Retry-After": str(RETRY_AFTER)}
    match error:
        case InvalidOptions():
            return _problem(400, error.code, str(error), errors=error.errors)
        case StaleBroker() | RemovalRefused() | JobRefused():
            return _problem(409, error.code, str(error))
        case Misconfigured():
            return _problem(400, error.code, str(error))
        case BrokerError():
            # What the provider answered: not a failure of this server.
            status, headers = (503, wait) if error.temporary else (502, {})
            return _problem(status, f"broker_{error.code}", f"The broker answered: {error}", headers)
    return exception_handler(error, context)


def _problem(
    status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    body = problem(status, code, detail, **more)
    return Response(body, status=status, headers=headers, content_type=CONTENT_TYPE)


def broker_or_404(broker_id: int) -> Broker:
    found = Broker.objects.filter(pk=broker_id).first()
    if found is None:
        raise Http404
    return found


def given(serializer: Any, request: Request) -> dict[str, Any]:
    """The values of a JSON request. Raises ValidationError."""
    data = serializer(data=json_of(request) or {})
    data.is_valid(raise_exception=True)
    values: dict[str, Any] = data.validated_data
    return values


def keyset(
    rows: QuerySet[M], field: str, cursor: str | None, limit: int, *, parse: Callable[[str], Any] = str
) -> tuple[list[M], str | None]:
    """A page of `rows` by a unique field ("-pk" for the latest first), and the next one's cursor. Raises BadCursor."""
    name = field.removeprefix("-")
    rows = rows.order_by(field)
    if cursor:
        (last,) = decode(cursor, 1)
        try:
            rows = rows.filter(**{f"{name}__{'lt' if field.startswith('-') else 'gt'}": parse(last)})
        except ValueError:
            raise BadCursor from None
    limit = max(1, min(limit, PAGE_MOST))
    found = list(rows[: limit + 1])
    if len(found) <= limit:
        return found, None
    return found[:limit], encode((str(getattr(found[limit - 1], name)),))
